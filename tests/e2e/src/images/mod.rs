//! The lab's own images, made of the tools and of Debian's busybox, as archives in the tool cache. Loading them into nodes is the cluster's business.

mod seed;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use ring::digest::{SHA256, digest};

use crate::oci::{self, Image, Layer, Written};
use crate::tools::{self, Tools};
use crate::{hex, programs, say};

/// The sandbox of every pod.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10.1";

/// For pods of tests: every applet of busybox, and a shell. `wget -T` of Debian 12's busybox crashes;
/// take `timeout 5 wget`.
pub const BUSYBOX: &str = "docker.io/library/busybox:1.37";

/// A command for a pod of busybox that does nothing, and ends at once when it is told to.
pub const IDLE: [&str; 3] = ["sh", "-c", "trap exit TERM; sleep 36000 & wait"];

/// Who does not start as root.
const NOBODY: &str = "65532:65532";

/// Raised when archives are written in another way, so that old ones are not used.
const FORMAT: u32 = 1;

/// An image archive in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// The tool that it is made of, or `busybox`.
    pub tool: &'static str,
    /// The image in it.
    pub image: Written,
    /// The archive; what is in it never changes.
    pub file: PathBuf,
}

/// An image that is one static program.
struct Program {
    tool: &'static str,
    repository: &'static str,
    /// The Go module whose version is the tag; else the tag itself.
    version: &'static str,
    user: &'static str,
}

const PROGRAMS: [Program; 6] = [
    Program {
        tool: "pause",
        repository: "registry.k8s.io/pause",
        version: "3.10.1",
        user: "65535:65535",
    },
    Program {
        tool: "coredns",
        repository: "registry.k8s.io/coredns/coredns",
        version: "github.com/coredns/coredns",
        user: "",
    },
    Program {
        tool: "snapshot-controller",
        repository: "registry.k8s.io/sig-storage/snapshot-controller",
        version: "github.com/kubernetes-csi/external-snapshotter/v8",
        user: NOBODY,
    },
    Program {
        tool: "csi-provisioner",
        repository: "registry.k8s.io/sig-storage/csi-provisioner",
        version: "github.com/kubernetes-csi/external-provisioner/v6",
        user: "",
    },
    Program {
        tool: "csi-resizer",
        repository: "registry.k8s.io/sig-storage/csi-resizer",
        version: "github.com/kubernetes-csi/external-resizer/v2",
        user: "",
    },
    Program {
        tool: "csi-snapshotter",
        repository: "registry.k8s.io/sig-storage/csi-snapshotter",
        version: "github.com/kubernetes-csi/external-snapshotter/v8",
        user: "",
    },
];

impl Program {
    fn name(&self) -> String {
        let tag = tools::version(self.version).unwrap_or(self.version);
        format!("{}:{tag}", self.repository)
    }

    fn image(&self, tools: &Tools) -> Result<Image> {
        let inside = format!("/{}", self.tool);
        let layer = Layer::new().file(&inside, &tools.program(self.tool), 0o755)?;
        Ok(Image::new(&self.name()).layer(layer).entrypoint([inside]).user(self.user))
    }
}

/// The full name of the image of a tool, such as `coredns` or `csi-provisioner`.
#[must_use]
pub fn name_of(tool: &str) -> Option<String> {
    PROGRAMS.iter().find(|program| program.tool == tool).map(Program::name)
}

/// The lab's own images in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// One archive each.
    pub archives: Vec<Archive>,
    /// A containerd root that has them all, for new nodes.
    pub seed: PathBuf,
}

/// Makes what is not in the cache yet; the tools must be there.
///
/// # Errors
/// A tool or busybox is missing, or an archive cannot be written.
pub fn ensure(tools: &Tools) -> Result<Images> {
    let mut archives = vec![busybox(tools)?];
    for program in &PROGRAMS {
        // The tools' folder belongs to their content.
        archives.push(make(tools, program.tool, "", &program.image(tools)?)?);
    }
    Ok(Images { seed: seed::ensure_seed(tools, &archives)?, archives })
}

/// Debian's busybox is not pinned, so its content is looked at.
fn busybox(tools: &Tools) -> Result<Archive> {
    let program = programs::find("busybox").context("the program busybox is not installed")?;
    let bytes = fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
    let mut layer = Layer::new()
        .folder("/tmp", 0o1777)?
        .folder("/root", 0o700)?
        .folder("/var/tmp", 0o1777)?
        .bytes("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644)?
        .bytes("/etc/group", "root:x:0:\n", 0o644)?
        .file("/bin/busybox", &program, 0o755)?;
    for applet in programs::run("busybox", &["--list"], "")?.lines() {
        if applet != "busybox" {
            layer = layer.link(&format!("/bin/{applet}"), "busybox")?;
        }
    }
    for (folder, to) in [("/sbin", "bin"), ("/usr/bin", "../bin"), ("/usr/sbin", "../bin")] {
        layer = layer.link(folder, to)?;
    }
    let image = Image::new(BUSYBOX).layer(layer).env("PATH", programs::GUEST_PATH).command(["sh"]);
    make(tools, "busybox", &hex(digest(&SHA256, &bytes).as_ref()), &image)
}

/// Writes an archive unless it is there. Its name has a key of everything that goes in.
fn make(tools: &Tools, tool: &'static str, content: &str, image: &Image) -> Result<Archive> {
    let key = format!("{FORMAT} {content} {image:?}");
    let key = hex(&digest(&SHA256, key.as_bytes()).as_ref()[..6]);
    let file = tools.images().join(format!("{tool}-{key}.tar"));
    if !file.exists() {
        let _lock = tools.lock()?;
        if !file.exists() {
            say(&format!("making the image {}", image.name()));
            let folder = tools.images();
            fs::create_dir_all(&folder)
                .with_context(|| format!("creating {}", folder.display()))?;
            image.write(&file)?;
        }
    }
    Ok(Archive { tool, image: oci::inspect(&file)?, file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_upstream() {
        assert_eq!(name_of("pause").as_deref(), Some(PAUSE));
        let provisioner = name_of("csi-provisioner").unwrap();
        assert!(provisioner.starts_with("registry.k8s.io/sig-storage/csi-provisioner:v6."));
        for program in &PROGRAMS {
            let tag = program.name().rsplit_once(':').unwrap().1.to_owned();
            assert!(!tag.contains('/'), "the module of {} is not pinned", program.tool);
            assert!(tools::names().any(|name| name == program.tool), "{}", program.tool);
        }
        assert_eq!(name_of("docker"), None);
    }
}
