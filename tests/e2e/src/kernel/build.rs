//! Configuring and compiling a kernel. Where its source comes from is in `source`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{console, heartbeat, programs};

/// Lines of a build's output in an error message.
const TAIL: usize = 20;

/// Builds User-Mode Linux out of `tree`; the result is the program, somewhere below `work`.
pub(super) fn build(tree: &Path, work: &Path, config: &str, log: &Path) -> Result<PathBuf> {
    let objects = work.join("objects");
    fs::create_dir_all(&objects).with_context(|| format!("creating {}", objects.display()))?;
    let output = File::create(log).with_context(|| format!("creating {}", log.display()))?;
    let make = Make { tree, objects: &objects, log, output };
    make.run("defconfig")?;
    let file = objects.join(".config");
    let default = fs::read_to_string(&file).context("make left no configuration")?;
    fs::write(&file, merged(&default, config)).context("writing the configuration")?;
    make.run("olddefconfig")?;
    let now = fs::read_to_string(&file).context("make left no configuration")?;
    let lost: Vec<_> = lost(&now, config).collect();
    ensure!(lost.is_empty(), "this Linux source has no {}", lost.join(", "));
    make.run("linux")?;
    Ok(objects.join("linux"))
}

struct Make<'a> {
    tree: &'a Path,
    objects: &'a Path,
    log: &'a Path,
    output: File,
}

impl Make<'_> {
    fn run(&self, target: &str) -> Result<()> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let program = programs::find("make").context("make is not installed")?;
        let mut command = Command::new(program);
        command
            .args(["-s", "ARCH=um", &format!("-j{cores}"), "-C"])
            .arg(self.tree)
            .arg(format!("O={}", self.objects.display()))
            .arg(target)
            // Cargo's, for its own children.
            .env_remove("MAKEFLAGS")
            .env_remove("CARGO_MAKEFLAGS")
            .stdin(Stdio::null())
            .stdout(self.output.try_clone()?)
            .stderr(self.output.try_clone()?);
        let status = heartbeat::wait(command, "kernel: still building it")?;
        ensure!(
            status.success(),
            "`make {target}` failed ({status}); the end of {}:\n{}",
            self.log.display(),
            console::tail(self.log, TAIL)
        );
        Ok(())
    }
}

/// `default` with what `config` asks for instead.
fn merged(default: &str, config: &str) -> String {
    let asked: Vec<_> = config.lines().filter_map(name).collect();
    let kept = default.lines().filter(|line| name(line).is_none_or(|name| !asked.contains(&name)));
    kept.chain(config.lines()).fold(String::new(), |all, line| all + line + "\n")
}

/// What `config` asks for and the kernel will not have.
fn lost<'a>(now: &str, config: &'a str) -> impl Iterator<Item = &'a str> {
    let now: Vec<_> = now.lines().map(str::to_owned).collect();
    config.lines().filter(move |line| {
        name(line).is_some() && !line.ends_with("=n") && !now.iter().any(|it| it == line)
    })
}

/// `CONFIG_X` of `CONFIG_X=y` and `# CONFIG_X is not set`.
fn name(line: &str) -> Option<&str> {
    let line = line.strip_prefix("# ").unwrap_or(line);
    line.starts_with("CONFIG_").then(|| line.split(['=', ' ']).next()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_takes_the_place_of_the_default() {
        let config = "# Why.\nCONFIG_B=y\nCONFIG_C=n\n";
        let all = merged("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\n", config);
        assert_eq!(all, "CONFIG_A=y\n# Why.\nCONFIG_B=y\nCONFIG_C=n\n");
        assert_eq!(lost("CONFIG_A=y\n", config).collect::<Vec<_>>(), ["CONFIG_B=y"]);
        assert_eq!(lost("CONFIG_B=y\n", config).count(), 0);
    }
}
