//! Finding and running programs, for host and guest; nothing here knows what the programs are for.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Searched after PATH: a plain user's PATH has no sbin, and PID 1 has no PATH at all.
const ALWAYS: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The PATH that programs in a guest get.
pub(crate) const GUEST_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The file that `name` starts, or none. A name with a slash stands for itself.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    find_in(name, std::env::split_paths(&path).chain(ALWAYS.map(PathBuf::from)))
}

/// As [`find`], looking only into these folders.
pub(crate) fn find_in(name: &str, folders: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|file| is_program(file));
    }
    folders.map(|folder| folder.join(name)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// Runs a program to its end and returns its stdout.
///
/// # Errors
/// The program is missing, cannot be started, or ends with anything but exit code 0; the message
/// has the command line and what the program wrote to stderr.
pub(crate) fn run<A: AsRef<OsStr>>(name: &str, arguments: &[A], stdin: &str) -> Result<String> {
    let line = || {
        let words = arguments.iter().map(|word| word.as_ref().to_string_lossy());
        std::iter::once(name.into()).chain(words).collect::<Vec<_>>().join(" ")
    };
    let program = find(name).with_context(|| format!("the program {name} is not installed"))?;
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(if stdin.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", line()))?;
    if let Some(mut pipe) = child.stdin.take() {
        // A program that ends before it has read everything says why on stderr.
        drop(pipe.write_all(stdin.as_bytes()));
    }
    let output = child.wait_with_output().with_context(|| format!("waiting for `{}`", line()))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed ({}): {}", line(), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_programs_by_name_and_by_path() {
        assert!(find("sh").is_some());
        assert_eq!(find("/bin/sh"), Some(PathBuf::from("/bin/sh")));
        assert_eq!(find("no-such-program-here"), None);
        assert_eq!(find("/etc/passwd"), None);
    }

    #[test]
    fn a_failure_names_the_command_and_its_stderr() {
        assert_eq!(run("cat", &["-"], "in").unwrap(), "in");
        let error = run("sh", &["-c", "echo why >&2; exit 3"], "").unwrap_err().to_string();
        assert!(
            error.contains("`sh -c") && error.contains("why") && error.contains('3'),
            "{error}"
        );
        let error = run("no-such-program-here", &["x"], "").unwrap_err().to_string();
        assert_eq!(error, "the program no-such-program-here is not installed");
    }
}
