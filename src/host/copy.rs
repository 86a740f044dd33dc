//! Copying a range of one device to another: past every cache, in little memory, only what is not
//! zero, and read back. What the devices are, and what is to be copied when, is decided elsewhere.
//!
//! Three at once: one reads the next piece, one writes, one reads back what was written.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rustix::fs::{FallocateFlags, OFlags};

/// One read, and at most one write: large enough for a disk to be busy, small enough that a few of
/// them are nothing.
const PIECE: usize = 1 << 20;
/// Pieces in memory at once, beside the one that is read back.
const PIECES: usize = 4;
/// What is looked at for being zero: the unit of most thin pools.
const BLOCK: usize = 64 << 10;
/// What `O_DIRECT` wants of offsets, lengths and memory; no device has larger logical blocks.
const ALIGNMENT: usize = 4096;

/// What a copy did, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Read from the source.
    pub read: u64,
    /// Written to the target.
    pub written: u64,
    /// Zeroed on the target, because it was not zero there.
    pub zeroed: u64,
}

/// Memory at an aligned address: no safe type promises alignment.
struct Piece {
    memory: Vec<u8>,
    skip: usize,
    offset: u64,
    len: usize,
}

impl Piece {
    fn new() -> Self {
        let memory = vec![0_u8; PIECE.saturating_add(ALIGNMENT)];
        // A vector stays where it is as long as it does not grow.
        let skip = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, skip, offset: 0, len: 0 }
    }

    fn bytes(&self) -> &[u8] {
        self.memory.get(self.skip..).and_then(|m| m.get(..self.len)).unwrap_or_default()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.get_mut(self.skip..).and_then(|m| m.get_mut(..self.len)).unwrap_or_default()
    }

    fn read(&mut self, from: &File, offset: u64, len: usize) -> io::Result<()> {
        (self.offset, self.len) = (offset, len.min(PIECE));
        from.read_exact_at(self.bytes_mut(), offset)
    }

    /// The runs of blocks that are all zero, or all not: where each begins, and its bytes.
    fn runs(&self) -> Vec<(u64, &[u8], bool)> {
        let (bytes, mut runs) = (self.bytes(), Vec::new());
        let mut start = 0_usize;
        while start < bytes.len() {
            let zero = is_zero(block(bytes, start));
            let mut end = start;
            while end < bytes.len() && is_zero(block(bytes, end)) == zero {
                end = end.saturating_add(BLOCK).min(bytes.len());
            }
            let at = self.offset.saturating_add(u64::try_from(start).unwrap_or_default());
            runs.push((at, bytes.get(start..end).unwrap_or_default(), zero));
            start = end;
        }
        runs
    }
}

fn block(bytes: &[u8], at: usize) -> &[u8] {
    bytes.get(at..at.saturating_add(BLOCK).min(bytes.len())).unwrap_or_default()
}

/// Compared as a whole: that is far quicker than a loop where the compiler saves space.
fn is_zero(bytes: &[u8]) -> bool {
    static ZEROES: [u8; BLOCK] = [0; BLOCK];
    bytes.chunks(BLOCK).all(|chunk| ZEROES.get(..chunk.len()) == Some(chunk))
}

/// Copies a range of `from` to the same place of `to`, and reads it back. Returns when it is on
/// the medium. `offset` and `len` are multiples of 4096.
///
/// # Errors
/// What the kernel says, [`io::ErrorKind::ResourceBusy`] when somebody else has the target, or that
/// other bytes were read back than were written. Some of the range may be copied then.
pub fn copy(from: &Path, to: &Path, offset: u64, len: u64) -> io::Result<Copied> {
    let source = open(from, false)?;
    let target = open(to, true)?;
    copy_files(&source, &target, offset, len)
}

fn copy_files(source: &File, target: &File, offset: u64, len: u64) -> io::Result<Copied> {
    let (full, to_write) = sync_channel::<Piece>(PIECES);
    let (written, to_check) = sync_channel::<Piece>(PIECES);
    let (empty, to_fill) = sync_channel::<Piece>(PIECES);
    for _ in 0..PIECES {
        drop(empty.send(Piece::new()));
    }
    // Whoever fails drops his ends, and the others stop for want of pieces.
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || read(source, (offset, len), &to_fill, &full));
        let verifier = scope.spawn(move || check(target, &to_check, &empty));
        let wrote = write(target, &to_write, &written);
        drop((to_write, written));
        let checked = join(verifier.join());
        let read = join(reader.join());
        let (read, mut copied) = (read?, wrote?);
        checked?;
        copied.read = read;
        target.sync_data()?;
        if read == len { Ok(copied) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    })
}

fn join<T>(joined: std::thread::Result<io::Result<T>>) -> io::Result<T> {
    joined.unwrap_or_else(|_| Err(io::Error::other("a thread of the copy died")))
}

fn read(
    source: &File,
    (offset, len): (u64, u64),
    empty: &Receiver<Piece>,
    full: &SyncSender<Piece>,
) -> io::Result<u64> {
    let mut done = 0_u64;
    while done < len {
        let Ok(mut piece) = empty.recv() else { break };
        let rest = usize::try_from(len.saturating_sub(done)).unwrap_or(PIECE).min(PIECE);
        piece.read(source, offset.saturating_add(done), rest)?;
        done = done.saturating_add(u64::try_from(rest).unwrap_or_default());
        if full.send(piece).is_err() {
            break;
        }
    }
    Ok(done)
}

fn write(target: &File, full: &Receiver<Piece>, written: &SyncSender<Piece>) -> io::Result<Copied> {
    let mut copied = Copied::default();
    let mut there = Piece::new();
    while let Ok(piece) = full.recv() {
        for (at, bytes, zero) in piece.runs() {
            let len = u64::try_from(bytes.len()).unwrap_or_default();
            if !zero {
                target.write_all_at(bytes, at)?;
                copied.written = copied.written.saturating_add(len);
                continue;
            }
            // Reading costs nothing where a thin pool has no block, and less than writing elsewhere.
            there.read(target, at, bytes.len())?;
            if !is_zero(there.bytes()) {
                let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(target, flags, at, len)?;
                copied.zeroed = copied.zeroed.saturating_add(len);
            }
        }
        if written.send(piece).is_err() {
            break;
        }
    }
    Ok(copied)
}

fn check(target: &File, written: &Receiver<Piece>, empty: &SyncSender<Piece>) -> io::Result<()> {
    let mut there = Piece::new();
    while let Ok(piece) = written.recv() {
        there.read(target, piece.offset, piece.len)?;
        if there.bytes() != piece.bytes() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("other bytes are read back than were written at byte {}", piece.offset),
            ));
        }
        // The reader may have read all that there is.
        drop(empty.send(piece));
    }
    Ok(())
}

fn open(path: &Path, alone: bool) -> io::Result<File> {
    let mut flags = OFlags::DIRECT | OFlags::NOCTTY;
    if alone {
        flags |= OFlags::EXCL;
    }
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).write(alone).custom_flags(flags).open(path)?;
    if !file.metadata()?.file_type().is_block_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a block device"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    fn all(file: &File, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn the_range_is_the_same_afterwards_and_the_rest_as_before() {
        let bytes = |n: usize| u64::try_from(n).unwrap();
        let len = 5 * PIECE + 3 * ALIGNMENT;
        let source: Vec<u8> =
            (0..len).map(|i| u8::try_from(i / ALIGNMENT % 251).unwrap_or_default()).collect();
        let target = file(&vec![b'x'; len]);
        let (from, count) = (PIECE + ALIGNMENT, 3 * PIECE + ALIGNMENT);
        let copied = copy_files(&file(&source), &target, bytes(from), bytes(count)).unwrap();
        assert_eq!(copied.read, bytes(count));
        let got = all(&target, len);
        assert_eq!(got[from..from + count], source[from..from + count]);
        assert!(got[..from].iter().chain(&got[from + count..]).all(|byte| *byte == b'x'));
    }

    #[test]
    fn zeroes_are_written_only_over_what_is_not_zero() {
        let bytes = |n: usize| u64::try_from(n).unwrap();
        let mut source = vec![0; 4 * PIECE];
        source[PIECE..PIECE + 10].fill(7);
        let target = file(&vec![0; 4 * PIECE]);
        target.write_all_at(b"old", bytes(3 * PIECE + 5)).unwrap();
        let copied = copy_files(&file(&source), &target, 0, bytes(4 * PIECE)).unwrap();
        assert_eq!(copied.written, bytes(BLOCK));
        assert_eq!((copied.read, copied.zeroed), (bytes(4 * PIECE), bytes(PIECE)));
        assert_eq!(all(&target, 4 * PIECE), source);
    }

    #[test]
    fn a_source_that_ends_early_is_an_error() {
        let (source, target) = (file(&vec![1; PIECE]), file(&vec![0; 4 * PIECE]));
        copy_files(&source, &target, 0, 4 << 20).unwrap_err();
    }

    #[test]
    fn nothing_but_a_device_is_written_to() {
        let source = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        let target = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        std::fs::write(target.path(), "mine").unwrap();
        copy(source.path(), target.path(), 0, 4096).unwrap_err();
        assert_eq!(std::fs::read(target.path()).unwrap(), b"mine");
    }
}
