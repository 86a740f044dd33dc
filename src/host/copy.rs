//! Copying a range of one device to another: past every cache, in little memory, only what is not
//! zero, and read back. What the devices are, and what is to be copied when, is decided elsewhere.
//!
//! Three at once: one reads the next piece, one writes, one reads back what was written. The devices
//! stay open and the memory stays ours for a whole copy: both are dear to give back and take again.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rustix::fs::{FallocateFlags, OFlags};

/// One read, and at most one write: large enough for a disk to be busy, small enough that all of them
/// stay in a processor's cache.
const PIECE: usize = 1 << 20;
/// Pieces on their way at once: one for each of the three.
const PIECES: usize = 3;
/// What is looked at for being zero: the unit of most thin pools.
const BLOCK: usize = 64 << 10;
/// What `O_DIRECT` wants of offsets, lengths and memory; no device has larger logical blocks.
const ALIGNMENT: usize = 4096;

/// How many runs of zeroes are zeroed on the target without a look, after one was not zero there.
const DIRTY_RUNS: u32 = 16;

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

impl std::fmt::Debug for Piece {
    /// Not what it holds.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes at {}", self.len, self.offset)
    }
}

/// Memory at an aligned address: no safe type promises alignment.
struct Piece {
    memory: Vec<u8>,
    skip: usize,
    offset: u64,
    len: usize,
    /// What was changed on the target, as ranges of the piece.
    changed: Vec<Range<usize>>,
}

impl Piece {
    fn new() -> Self {
        let memory = vec![0_u8; PIECE.saturating_add(ALIGNMENT)];
        // A vector stays where it is as long as it does not grow.
        let skip = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, skip, offset: 0, len: 0, changed: Vec::new() }
    }

    fn bytes(&self) -> &[u8] {
        self.memory.get(self.skip..).and_then(|m| m.get(..self.len)).unwrap_or_default()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.get_mut(self.skip..).and_then(|m| m.get_mut(..self.len)).unwrap_or_default()
    }

    fn read(&mut self, from: &File, offset: u64, len: usize) -> io::Result<()> {
        (self.offset, self.len) = (offset, len.min(PIECE));
        self.changed.clear();
        from.read_exact_at(self.bytes_mut(), offset)
    }

    /// Where on the devices this place of it is.
    fn at(&self, start: usize) -> u64 {
        self.offset.saturating_add(u64::try_from(start).unwrap_or_default())
    }

    /// The runs of blocks that are all zero, or all not.
    fn runs(&self) -> Vec<(Range<usize>, bool)> {
        let (bytes, mut runs) = (self.bytes(), Vec::new());
        let mut start = 0_usize;
        while start < bytes.len() {
            let zero = is_zero(block(bytes, start));
            let mut end = start;
            while end < bytes.len() && is_zero(block(bytes, end)) == zero {
                end = end.saturating_add(BLOCK).min(bytes.len());
            }
            runs.push((start..end, zero));
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

/// Two devices, of which one is copied to the other.
#[derive(Debug)]
pub struct Copier {
    /// What is copied.
    pub from: PathBuf,
    /// Where to.
    pub to: PathBuf,
    open: Option<Open>,
}

impl Copier {
    /// Opens nothing yet.
    #[must_use]
    pub const fn new(from: PathBuf, to: PathBuf) -> Self {
        Self { from, to, open: None }
    }

    /// Copies a range to the same place of the target, and reads back what it changed. Returns when
    /// it is on the medium. `offset` and `len` are multiples of 4096.
    ///
    /// # Errors
    /// What the kernel says, [`io::ErrorKind::ResourceBusy`] when somebody else has the target, or
    /// that other bytes were read back than were written. Some of the range may be copied then.
    pub fn copy(&mut self, offset: u64, len: u64) -> io::Result<Copied> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => Open::new(open(&self.from, false)?, open(&self.to, true)?),
        };
        let copied = open.copy(offset, len)?;
        // After a failure it begins anew.
        self.open = Some(open);
        Ok(copied)
    }
}

#[derive(Debug)]
struct Open {
    source: File,
    target: File,
    pieces: Vec<Piece>,
    /// What the target has, for whoever looks: the one that writes, and the one that reads back.
    looks: [Piece; 2],
    dirty: u32,
}

impl Open {
    fn new(source: File, target: File) -> Self {
        let pieces = (0..PIECES).map(|_| Piece::new()).collect();
        Self { source, target, pieces, looks: [Piece::new(), Piece::new()], dirty: 0 }
    }

    fn copy(&mut self, offset: u64, len: u64) -> io::Result<Copied> {
        let Self { source, target, pieces, looks: [look, back], dirty } = self;
        let (source, target) = (&*source, &*target);
        let (full, to_write) = sync_channel::<Piece>(PIECES);
        let (written, to_check) = sync_channel::<Piece>(PIECES);
        let (empty, to_fill) = sync_channel::<Piece>(PIECES);
        for piece in pieces.drain(..) {
            drop(empty.send(piece));
        }
        // Whoever fails drops his ends, and the others stop for want of pieces.
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let read = read(source, (offset, len), &to_fill, &full);
                drop(full);
                (read, to_fill)
            });
            let verifier = scope.spawn(move || check(target, back, &to_check, &empty));
            let wrote = write(target, (look, dirty), &to_write, &written);
            drop((to_write, written));
            let checked = join(verifier.join())?;
            let (read, to_fill) = join(reader.join())?;
            // All are there again, as the other two have ended.
            pieces.extend(to_fill.try_iter());
            let (read, mut copied) = (read?, wrote?);
            checked?;
            copied.read = read;
            target.sync_data()?;
            if read == len { Ok(copied) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
        })
    }
}

fn join<T>(joined: std::thread::Result<T>) -> io::Result<T> {
    joined.map_err(|_| io::Error::other("a thread of the copy died"))
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

fn write(
    target: &File,
    (look, dirty): (&mut Piece, &mut u32),
    full: &Receiver<Piece>,
    written: &SyncSender<Piece>,
) -> io::Result<Copied> {
    let mut copied = Copied::default();
    while let Ok(mut piece) = full.recv() {
        for (run, zero) in piece.runs() {
            let (at, len) = (piece.at(run.start), u64::try_from(run.len()).unwrap_or_default());
            if !zero {
                target.write_all_at(piece.bytes().get(run.clone()).unwrap_or_default(), at)?;
                copied.written = copied.written.saturating_add(len);
            } else if is_dirty(target, (look, dirty), at, run.len())? {
                let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(target, flags, at, len)?;
                copied.zeroed = copied.zeroed.saturating_add(len);
            } else {
                continue;
            }
            piece.changed.push(run);
        }
        if written.send(piece).is_err() {
            break;
        }
    }
    Ok(copied)
}

/// Whether a run that is to be zero has to be zeroed. Reading costs nothing where a thin pool has no
/// block, and less than writing elsewhere; but what was used before is rarely zero.
fn is_dirty(
    target: &File,
    (look, dirty): (&mut Piece, &mut u32),
    at: u64,
    len: usize,
) -> io::Result<bool> {
    if *dirty == 0 {
        look.read(target, at, len)?;
        *dirty = if is_zero(look.bytes()) { 0 } else { DIRTY_RUNS };
        return Ok(*dirty > 0);
    }
    *dirty = dirty.saturating_sub(1);
    Ok(true)
}

fn check(
    target: &File,
    back: &mut Piece,
    written: &Receiver<Piece>,
    empty: &SyncSender<Piece>,
) -> io::Result<()> {
    while let Ok(piece) = written.recv() {
        for run in piece.changed.iter().cloned() {
            let at = piece.at(run.start);
            back.read(target, at, run.len())?;
            if Some(back.bytes()) != piece.bytes().get(run) {
                let sentence = "other bytes are read back than were written in the MiB at byte";
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{sentence} {at}")));
            }
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
        let copied = Open::new(file(&source), target.try_clone().unwrap())
            .copy(bytes(from), bytes(count))
            .unwrap();
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
        let copied = Open::new(file(&source), target.try_clone().unwrap())
            .copy(0, bytes(4 * PIECE))
            .unwrap();
        assert_eq!(copied.written, bytes(BLOCK));
        assert_eq!((copied.read, copied.zeroed), (bytes(4 * PIECE), bytes(PIECE)));
        assert_eq!(all(&target, 4 * PIECE), source);
    }

    #[test]
    fn used_devices_are_zeroed_with_few_looks_in_one_copy_after_the_other() {
        let bytes = |n: usize| u64::try_from(n).unwrap();
        let target = file(&vec![b'x'; 4 * PIECE]);
        let mut open = Open::new(file(&vec![0; 4 * PIECE]), target.try_clone().unwrap());
        for half in 0..2 {
            let copied = open.copy(bytes(half * 2 * PIECE), bytes(2 * PIECE)).unwrap();
            assert_eq!((copied.written, copied.zeroed), (0, bytes(2 * PIECE)));
            assert_eq!(open.pieces.len(), PIECES);
        }
        assert_eq!(open.dirty, DIRTY_RUNS - 3);
        assert_eq!(all(&target, 4 * PIECE), vec![0; 4 * PIECE]);
    }

    #[test]
    fn a_source_that_ends_early_is_an_error() {
        let (source, target) = (file(&vec![1; PIECE]), file(&vec![0; 4 * PIECE]));
        Open::new(source, target).copy(0, 4 << 20).unwrap_err();
    }

    #[test]
    fn nothing_but_a_device_is_written_to() {
        let source = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        let target = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        std::fs::write(target.path(), "mine").unwrap();
        Copier::new(source.path().into(), target.path().into()).copy(0, 4096).unwrap_err();
        assert_eq!(std::fs::read(target.path()).unwrap(), b"mine");
    }
}
