//! Running a program on the host to its end, but not for longer than it may take. It does not know where the program is started.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::exec::{Output, TimedOut};

/// Runs a command that `start` starts. Any exit code is a good answer.
///
/// # Errors
/// The command cannot be started, or [`TimedOut`].
pub(crate) fn run(
    command: &mut Command,
    stdin: &[u8],
    timeout: Duration,
    start: impl FnOnce(&mut Command) -> Result<Child>,
) -> Result<Output> {
    let what = command.get_program().display().to_string();
    command.stdin(if stdin.is_empty() { Stdio::null() } else { Stdio::piped() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let deadline = Instant::now() + timeout;
    let mut child = start(command)?;
    let (input, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        if let Some(mut pipe) = input {
            // A program that ends before it has read everything says why on stderr.
            scope.spawn(move || drop(pipe.write_all(stdin)));
        }
        let stdout = scope.spawn(|| read(stdout));
        let stderr = scope.spawn(|| read(stderr));
        let mut pause = Duration::from_millis(2);
        let ended = loop {
            if let Some(status) = child.try_wait().context("waiting for a program")? {
                break Some(status);
            }
            if Instant::now() > deadline {
                child.kill().context("ending a program that is late")?;
                child.wait().context("waiting for a program")?;
                break None;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        };
        let stdout = stdout.join().unwrap_or_default();
        let stderr = stderr.join().unwrap_or_default();
        match ended {
            Some(status) => Ok(Output { status: status.into(), stdout, stderr }),
            None => Err(TimedOut { what, timeout, stdout, stderr }.into()),
        }
    })
}

fn read(pipe: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // What came before an error is better than nothing.
        drop(pipe.read_to_end(&mut bytes));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, stdin: &[u8], timeout: Duration) -> Result<Output> {
        run(Command::new("sh").args(["-c", script]), stdin, timeout, |it| Ok(it.spawn()?))
    }

    #[test]
    fn output_comes_whole() {
        let large = vec![b'x'; 1 << 20];
        let output = sh("cat; echo why >&2; exit 3", &large, Duration::from_secs(20)).unwrap();
        assert_eq!((output.stdout.len(), output.stderr_text().as_str()), (1 << 20, "why"));
        assert_eq!(output.status.code(), Some(3));
    }

    #[test]
    fn a_late_program_is_ended() {
        let start = Instant::now();
        let error = sh("echo early; exec sleep 60", &[], Duration::from_secs(3)).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(30));
        let late: &TimedOut = error.downcast_ref().unwrap();
        assert_eq!(late.stdout, b"early\n");
    }
}
