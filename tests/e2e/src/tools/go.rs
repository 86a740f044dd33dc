//! Finding a Go that can build the tools, or fetching Go's own toolchain module. It builds nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use ring::digest::{SHA256, digest};

use super::catalog::go_version;
use crate::{hex, programs, say};

/// The checksum of the toolchain module for the version in go.mod, as in Go's checksum database
/// (SHA-256 over the list of the files' SHA-256; Go writes it in base64).
const TOOLCHAIN_SUM: (&str, &str) =
    ("1.26.6", "a3098dc3848f33d878e8518e786255516cc51040d298eea0ee002d5a85e9dbcb");

/// From this version on, Go fetches the version that a module asks for by itself.
const SELF_FETCHING: (u32, u32, u32) = (1, 21, 0);

/// Where an installation by hand is, whose folder may not be in PATH under sudo.
const BY_HAND: &str = "/usr/local/go/bin/go";

/// A Go that works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Go {
    pub(super) program: PathBuf,
    /// The value of GOTOOLCHAIN.
    pub(super) toolchain: &'static str,
}

/// The machine's Go, or else one in the cache, which is fetched when it is not there.
pub(super) fn find(cache: &Path) -> Result<Go> {
    let wanted = parse_version(go_version()).context("go.mod has no version of Go")?;
    for program in [programs::find("go"), programs::find(BY_HAND)].into_iter().flatten() {
        match local_version(&program) {
            Some(version) if version >= wanted => return Ok(Go { program, toolchain: "local" }),
            Some(version) if version >= SELF_FETCHING => {
                say(&format!(
                    "{} is older than {}: it fetches that one by itself",
                    program.display(),
                    go_version()
                ));
                return Ok(Go { program, toolchain: "auto" });
            }
            _ => {}
        }
    }
    let program = fetched(cache)?;
    Ok(Go { program, toolchain: "local" })
}

fn local_version(program: &Path) -> Option<(u32, u32, u32)> {
    let output = Command::new(program)
        .args(["env", "GOVERSION"])
        .env("GOTOOLCHAIN", "local")
        .current_dir("/")
        .output()
        .ok()?;
    parse_version(String::from_utf8_lossy(&output.stdout).trim().strip_prefix("go")?)
}

/// `1.26.6`, `1.27`, `1.27rc1`, `1.26.8 X:experiment`.
fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let end = text.find(|it: char| !it.is_ascii_digit() && it != '.').unwrap_or(text.len());
    let mut numbers = text[..end].split('.').map(str::parse);
    let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some((major, minor, numbers.next().and_then(Result::ok).unwrap_or(0)))
}

/// Go in the cache.
fn fetched(cache: &Path) -> Result<PathBuf> {
    let version = go_version();
    let folder = cache.join(format!("go{version}"));
    let program = folder.join("bin/go");
    if program.exists() {
        return Ok(program);
    }
    let by_hand = format!("install Go {version} or newer by hand (https://go.dev/dl)");
    for tool in ["curl", "unzip"] {
        ensure!(
            programs::find(tool).is_some(),
            "there is no Go on this machine, and fetching it takes {tool}: {by_hand}, or run \
             `apt-get install -y --no-install-recommends curl ca-certificates unzip`"
        );
    }
    let module = format!("v0.0.1-go{version}.linux-amd64");
    let proxy = proxy(&std::env::var("GOPROXY").unwrap_or_default());
    let Some(proxy) = proxy else {
        bail!("there is no Go on this machine, and GOPROXY forbids fetching it: {by_hand}");
    };
    let url = format!("{proxy}/golang.org/toolchain/@v/{module}.zip");
    say(&format!("no Go on this machine: fetching {url} (70 MB) into {}", cache.display()));
    let work = cache.join(format!("go{version}.partial"));
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))?;
    }
    fs::create_dir_all(&work).with_context(|| format!("creating {}", work.display()))?;
    let zip = work.join("go.zip");
    let curl = ["--fail", "--silent", "--show-error", "--location", "--retry", "3", "--output"];
    let arguments = curl.map(AsRef::as_ref).into_iter().chain([zip.as_os_str(), url.as_ref()]);
    programs::run("curl", &arguments.collect::<Vec<_>>(), "").with_context(|| by_hand.clone())?;
    programs::run("unzip", &["-q".as_ref(), zip.as_os_str(), "-d".as_ref(), work.as_os_str()], "")?;
    let root = work.join(format!("golang.org/toolchain@{module}"));
    let sum = tree_sum(&work, &root)?;
    ensure!(
        TOOLCHAIN_SUM == (version, sum.as_str()),
        "the Go that {url} gave has the checksum {sum}, but {} belongs to Go {}: {by_hand}",
        TOOLCHAIN_SUM.1,
        TOOLCHAIN_SUM.0
    );
    make_executable(&root.join("bin"))?;
    make_executable(&root.join("pkg/tool/linux_amd64"))?;
    fs::rename(&root, &folder).with_context(|| format!("creating {}", folder.display()))?;
    fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))?;
    Ok(program)
}

/// The first proxy of a GOPROXY list; none when it forbids fetching.
fn proxy(list: &str) -> Option<String> {
    let first = list.split([',', '|']).map(str::trim).find(|it| !it.is_empty());
    match first {
        None | Some("direct") => Some("https://proxy.golang.org".to_owned()),
        Some("off") => None,
        Some(url) => Some(url.trim_end_matches('/').to_owned()),
    }
}

/// Go's checksum of an unpacked module, in hexadecimal digits. Names count from `base`.
fn tree_sum(base: &Path, root: &Path) -> Result<String> {
    let mut files = Vec::new();
    collect(root, &mut files)?;
    let mut lines = Vec::new();
    for file in files {
        let name = file.strip_prefix(base)?.to_str().context("a file name is no text")?.to_owned();
        let bytes = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        lines.push((name, hex(digest(&SHA256, &bytes).as_ref())));
    }
    lines.sort();
    let list: Vec<_> = lines.iter().map(|(name, sum)| format!("{sum}  {name}\n")).collect();
    let list = list.concat();
    Ok(hex(digest(&SHA256, list.as_bytes()).as_ref()))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let reading = || format!("reading {}", folder.display());
    for entry in fs::read_dir(folder).with_context(reading)? {
        let entry = entry.with_context(reading)?;
        if entry.file_type().with_context(reading)?.is_dir() {
            collect(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// A module's zip file has no modes.
fn make_executable(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for entry in entries.flatten() {
        fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o755))
            .with_context(|| format!("chmod {}", entry.path().display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go() {
        assert_eq!(parse_version("1.26.6"), Some((1, 26, 6)));
        assert_eq!(parse_version("1.27rc1"), Some((1, 27, 0)));
        assert_eq!(parse_version("1.26.8 X:nocoverageredesign"), Some((1, 26, 8)));
        assert_eq!(parse_version("devel"), None);
    }

    #[test]
    fn the_checksum_belongs_to_the_version_in_go_mod() {
        assert_eq!(TOOLCHAIN_SUM.0, go_version());
    }

    #[test]
    fn the_proxy_is_the_users() {
        assert_eq!(proxy("").as_deref(), Some("https://proxy.golang.org"));
        assert_eq!(proxy("direct").as_deref(), Some("https://proxy.golang.org"));
        assert_eq!(proxy("https://a.b/c/,direct").as_deref(), Some("https://a.b/c"));
        assert_eq!(proxy("off"), None);
    }

    #[test]
    fn the_sum_is_that_of_go() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("m@v1")).unwrap();
        fs::write(folder.path().join("m@v1/b"), "two\n").unwrap();
        fs::write(folder.path().join("m@v1/a"), "one\n").unwrap();
        let sum = tree_sum(folder.path(), &folder.path().join("m@v1")).unwrap();
        let list = "2c8b08da5ce60398e1f19af0e5dccc744df274b826abe585eaba68c525434806  m@v1/a\n\
                    27dd8ed44a83ff94d557f9fd0412ed5a8cbca69ea04922d88c01184a07300a5a  m@v1/b\n";
        assert_eq!(sum, hex(digest(&SHA256, list.as_bytes()).as_ref()));
    }
}
