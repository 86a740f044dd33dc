//! Putting a disk into a VM that runs, by the management socket of User-Mode Linux. Taking one out is not done here.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::disks::Disk;
use super::remove;

/// What a request begins with (`arch/um/drivers/mconsole.h`).
const MAGIC: u32 = 0xcafe_babe;
const VERSION: u32 = 2;

/// An answer's error, whether more comes, and the length of its text.
const HEADER: usize = 12;
const ANSWER: usize = HEADER + 512;
const TIMEOUT: Duration = Duration::from_secs(30);

/// Has the VM whose state is in `folder` take one more disk.
pub(super) fn plug(folder: &Path, name: &str, disk: &Disk) -> Result<()> {
    let command = format!("config ubd{}={},,{}", disk.letter, disk.file.display(), disk.serial);
    let socket = folder.join("uml").join(name).join("mconsole");
    // The VM is in another network namespace, from where it sees no name that is not a file's.
    let own = folder.join("plug");
    remove(&own)?;
    let answer = ask(&own, &socket, &command)
        .with_context(|| format!("asking {} for `{command}`", socket.display()));
    remove(&own)?;
    let (error, text) = answer?;
    ensure!(error == 0, "the VM of {name} refuses `{command}`: {text}");
    Ok(())
}

fn ask(own: &Path, socket: &Path, command: &str) -> Result<(u32, String)> {
    let own = UnixDatagram::bind(own)?;
    own.set_read_timeout(Some(TIMEOUT))?;
    own.send_to(&request(command)?, socket)?;
    let mut answer = [0; ANSWER];
    let length = own.recv(&mut answer)?;
    parse(answer.get(..length).unwrap_or_default())
}

fn request(command: &str) -> Result<Vec<u8>> {
    let length = u32::try_from(command.len()).context("a long command")?;
    let head = [MAGIC, VERSION, length].into_iter().flat_map(u32::to_ne_bytes);
    Ok(head.chain(command.bytes()).collect())
}

fn parse(answer: &[u8]) -> Result<(u32, String)> {
    let (head, text) = answer.split_at_checked(HEADER).context("a short answer")?;
    let error = head.first_chunk().copied().map(u32::from_ne_bytes).context("a short answer")?;
    let text = String::from_utf8_lossy(text);
    Ok((error, text.trim_end_matches('\0').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers() {
        let request = request("config ubdd=/x").unwrap();
        assert_eq!(request.len(), HEADER + 14);
        assert_eq!(request[..4], MAGIC.to_ne_bytes());
        assert_eq!(request[8..12], 14_u32.to_ne_bytes());
        let mut answer = [1_u32, 0, 3].into_iter().flat_map(u32::to_ne_bytes).collect::<Vec<_>>();
        answer.extend(b"no!\0");
        assert_eq!(parse(&answer).unwrap(), (1, "no!".to_owned()));
        parse(&answer[..5]).unwrap_err();
    }
}
