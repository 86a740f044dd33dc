//! The driver's image, made without a container engine: a base of Debian with the programs that the driver runs, and the driver. Where it is loaded is elsewhere.

mod base;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::process::geteuid;

use crate::cargo;
use crate::driver::{self, Other, Profile};
use crate::oci::{self, Layer};
use crate::{programs, say};

pub use base::Debian;

/// Where the image is published.
pub const REPOSITORY: &str = "ghcr.io/cinderblock-dev/cinderblock";

/// The project's version, which is the image's tag and the chart's.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Where the driver is in the image.
const PROGRAM: &str = "/usr/bin/cinderblock";

/// The driver's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its full name.
    pub name: String,
    /// The digest of its manifest.
    pub digest: String,
    /// The OCI archive with it; the next build of this profile replaces it.
    pub archive: PathBuf,
}

/// How an image is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// How the driver is built. [`Profile::Dev`] is ready sooner: neither optimised nor compressed.
    pub profile: Profile,
    /// Which Debian the base is of.
    pub debian: Debian,
    /// Whether the base is made anew though it is in the cache: Debian may have updates.
    pub fresh_base: bool,
}

impl Recipe {
    /// The newest Debian that is in the cache, or else today's.
    #[must_use]
    pub const fn new(profile: Profile) -> Self {
        Self { profile, debian: Debian::Today, fresh_base: false }
    }
}

/// The driver's image in the cache below cargo's target folder: the same input has the same file.
///
/// # Errors
/// Not root while the base is not in the cache, no mmdebstrap, no way to Debian's packages, or the
/// driver does not build or does not run on the base.
pub fn build(recipe: &Recipe) -> Result<Image> {
    pack(recipe, &driver::program(recipe.profile)?, recipe.profile.name())
}

/// As [`build`], of another version, for tests and under the same name.
///
/// # Errors
/// As [`build`].
pub fn build_other(other: &Other) -> Result<Image> {
    let label = format!("other-{}", other.commit());
    pack(&Recipe::new(Profile::Dev), &other.program()?, &label)
}

/// The image with this program; `label` is in its files' names.
fn pack(recipe: &Recipe, program: &Path, label: &str) -> Result<Image> {
    let start = Instant::now();
    let folder = cargo::target_folder()?.join("image");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let base = base::ensure(&folder, &recipe.debian, recipe.fresh_base)?;
    let stripped = folder.join(format!("cinderblock-{label}"));
    programs::run("strip", &["--strip-debug", "-o", &text(&stripped), &text(program)], "")
        .context("taking debug information out of the driver (strip is in Debian's binutils)")?;
    base::prove(&base, &stripped)?;
    let archive = folder.join(format!("cinderblock-{label}.tar"));
    let written = image(&base, &stripped, recipe.profile)?.write(&archive)?;
    let size = archive.metadata().map_or(0, |data| data.len()) >> 20;
    say(&format!(
        "the image {} ({size} MiB) is made after {:.1} s",
        written.name,
        start.elapsed().as_secs_f32()
    ));
    Ok(Image { name: written.name, digest: written.digest, archive })
}

/// Makes the image twice, each time from nothing but Debian's packages and the built driver, and
/// demands the same digest.
///
/// # Errors
/// As [`build`], and when the two differ.
pub fn check(recipe: &Recipe) -> Result<Image> {
    let recipe = Recipe { fresh_base: true, ..recipe.clone() };
    let first = build(&recipe)?;
    let second = build(&recipe)?;
    ensure!(
        first == second,
        "the image is not reproducible: its digest was {} and then {}",
        first.digest,
        second.digest
    );
    Ok(second)
}

fn image(base: &Path, program: &Path, profile: Profile) -> Result<oci::Image> {
    let files = Layer::new()
        .tree(base, "/")?
        .folder("/tmp", 0o1777)?
        .folder("/proc", 0o755)?
        .folder("/sys", 0o755)?
        .folder("/dev", 0o755)?
        .folder("/run", 0o755)?
        .link("/var/run", "/run")?
        .bytes(
            "/etc/passwd",
            "root:x:0:0:root:/:/bin/sh\nnonroot:x:65532:65532::/:/bin/sh\n",
            0o644,
        )?
        .bytes("/etc/group", "root:x:0:\nnonroot:x:65532:\n", 0o644)?
        .bytes("/etc/nsswitch.conf", "hosts: files dns\n", 0o644)?;
    let own = Layer::new().file(PROGRAM, program, 0o755)?;
    Ok(oci::Image::new(&format!("{REPOSITORY}:{VERSION}"))
        .layer(files)
        .layer(own)
        .entrypoint([PROGRAM])
        .env("PATH", programs::GUEST_PATH)
        // One heap, given back when it is free: the agent does little at once, and is small so.
        .env("MALLOC_ARENA_MAX", "1")
        .env("MALLOC_TRIM_THRESHOLD_", "131072")
        .label("org.opencontainers.image.title", "cinderblock")
        .label("org.opencontainers.image.version", VERSION)
        .label("org.opencontainers.image.licenses", env!("CARGO_PKG_LICENSE"))
        .label("org.opencontainers.image.source", env!("CARGO_PKG_REPOSITORY"))
        .gzip(profile == Profile::Release))
}

/// Whether the base can be made here.
fn need_root() -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "mmdebstrap needs root to make the image's base: run this once with sudo; the base is kept \
         for later runs"
    );
    Ok(())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
