//! The exec protocol: frames and messages that host and guest share. It never opens a socket and never starts a process.
//!
//! One TCP connection carries one call. The host sends a [`Call`], then stdin; the guest answers
//! with output frames while they come, and with one [`Reply`] at the end. A frame is one byte of
//! kind, four bytes of length (big endian) and the payload.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;

use serde::{Deserialize, Serialize};

/// Raised when a host and a guest of different builds could no longer talk.
pub const VERSION: u32 = 1;

/// TCP port of the exec server on a node's address.
pub const PORT: u16 = 7790;

/// Largest payload of one frame, in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Bytes of output or stdin that one frame carries at most.
pub const CHUNK: usize = 32 << 10;

const HEADER: usize = 5;

/// What a frame's payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Host to guest, first frame: a [`Call`] as JSON.
    Call,
    /// Host to guest: bytes for the program's stdin.
    Stdin,
    /// Host to guest: stdin ends here.
    StdinEnd,
    /// Guest to host: bytes from the program's stdout.
    Stdout,
    /// Guest to host: bytes from the program's stderr.
    Stderr,
    /// Guest to host, last frame: a [`Reply`] as JSON.
    Reply,
}

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Self::Call => 1,
            Self::Stdin => 2,
            Self::StdinEnd => 3,
            Self::Stdout => 4,
            Self::Stderr => 5,
            Self::Reply => 6,
        }
    }

    fn from_byte(byte: u8) -> io::Result<Self> {
        Ok(match byte {
            1 => Self::Call,
            2 => Self::Stdin,
            3 => Self::StdinEnd,
            4 => Self::Stdout,
            5 => Self::Stderr,
            6 => Self::Reply,
            other => return Err(invalid(format!("unknown frame kind {other}"))),
        })
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is.
    pub kind: Kind,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
}

/// Writes one frame with a single write, so that frames of several threads never mix under a lock.
///
/// # Errors
/// The writer's error, or `InvalidData` for a payload above [`MAX_PAYLOAD`].
pub fn write_frame(writer: &mut impl Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    if payload.len() > MAX_PAYLOAD {
        return Err(invalid(format!("a frame of {} bytes is too large", payload.len())));
    }
    let length = u32::try_from(payload.len()).map_err(invalid)?;
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.push(kind.byte());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(payload);
    writer.write_all(&bytes)?;
    writer.flush()
}

/// Writes a message as one JSON frame.
///
/// # Errors
/// As [`write_frame`].
pub fn write_json(writer: &mut impl Write, kind: Kind, message: &impl Serialize) -> io::Result<()> {
    write_frame(writer, kind, &serde_json::to_vec(message)?)
}

/// Reads frames; a read that times out in the middle of a frame loses nothing.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: R,
    buffer: Vec<u8>,
}

impl<R: Read> FrameReader<R> {
    /// Wraps a reader that stands at the start of a frame.
    pub fn new(inner: R) -> Self {
        Self { inner, buffer: Vec::new() }
    }

    /// The wrapped reader.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// The next frame, or `None` when the other side closed between two frames.
    ///
    /// # Errors
    /// The reader's error (after `WouldBlock` or `TimedOut` call again), `UnexpectedEof` inside a
    /// frame, `InvalidData` for bytes that are not a frame.
    pub fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        if !self.fill(HEADER)? {
            return Ok(None);
        }
        let kind = Kind::from_byte(self.buffer[0])?;
        let mut length = [0; 4];
        length.copy_from_slice(&self.buffer[1..HEADER]);
        let length = usize::try_from(u32::from_be_bytes(length)).map_err(invalid)?;
        if length > MAX_PAYLOAD {
            return Err(invalid(format!("a frame of {length} bytes is too large")));
        }
        if !self.fill(HEADER + length)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let payload = self.buffer.split_off(HEADER);
        self.buffer.clear();
        Ok(Some(Frame { kind, payload }))
    }

    /// Reads until the buffer holds `want` bytes; false when the stream ended before the first.
    fn fill(&mut self, want: usize) -> io::Result<bool> {
        while self.buffer.len() < want {
            let have = self.buffer.len();
            self.buffer.resize(want, 0);
            let result = self.inner.read(&mut self.buffer[have..]);
            self.buffer.truncate(have + result.as_ref().copied().unwrap_or(0));
            match result {
                Ok(0) if have == 0 => return Ok(false),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Reads a JSON payload.
///
/// # Errors
/// `InvalidData` when the payload is not such a message.
pub fn parse<T: for<'a> Deserialize<'a>>(payload: &[u8]) -> io::Result<T> {
    serde_json::from_slice(payload).map_err(invalid)
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The first frame of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// [`VERSION`] of the caller.
    pub version: u32,
    /// The boot's token: only the host that booted this VM, and no earlier boot's caller, is heard.
    pub token: String,
    /// What to do.
    pub request: Request,
}

/// What the host asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Answered with [`Reply::Ready`].
    Ping,
    /// Run a program to its end; stdin, stdout and stderr go over this connection.
    Exec(Program),
    /// Start a program that outlives the connection, in a process group of its own.
    Spawn {
        /// What to start.
        program: Program,
        /// File in the guest to which stdout and stderr are appended.
        log: PathBuf,
    },
    /// How a spawned program is doing.
    State {
        /// From [`Reply::Spawned`].
        pid: i32,
    },
    /// Send a signal to a spawned program's process group.
    Signal {
        /// From [`Reply::Spawned`].
        pid: i32,
        /// Signal number.
        signal: i32,
    },
    /// Stop everything in order, write the disks, power off.
    Shutdown {
        /// Milliseconds that programs get between SIGTERM and SIGKILL.
        grace_ms: u64,
    },
}

/// A program and its surroundings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The program (looked up in PATH) and its arguments.
    pub argv: Vec<String>,
    /// Added to the guest's small default environment.
    pub env: BTreeMap<String, String>,
    /// Working directory; `/` when absent.
    pub cwd: Option<PathBuf>,
}

/// What the guest answers; the last frame of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Ping`].
    Ready {
        /// The node's name.
        node: String,
    },
    /// To [`Request::Exec`]: the program ended.
    Exit(Status),
    /// To [`Request::Spawn`].
    Spawned {
        /// Process id in the guest; also its process group.
        pid: i32,
    },
    /// To [`Request::State`].
    State(ProcessState),
    /// Done; nothing to say.
    Done,
    /// The request could not be carried out.
    Failed {
        /// One sentence.
        message: String,
    },
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// With this exit code.
    Exited(i32),
    /// Killed by this signal.
    Signaled(i32),
}

impl Status {
    /// True for exit code 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }

    /// The exit code, unless a signal killed it.
    #[must_use]
    pub fn code(self) -> Option<i32> {
        match self {
            Self::Exited(code) => Some(code),
            Self::Signaled(_) => None,
        }
    }

    /// The signal that killed it.
    #[must_use]
    pub fn signal(self) -> Option<i32> {
        match self {
            Self::Exited(_) => None,
            Self::Signaled(signal) => Some(signal),
        }
    }
}

impl From<ExitStatus> for Status {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exited(code),
            (None, signal) => Self::Signaled(signal.unwrap_or(0)),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(formatter, "exit code {code}"),
            Self::Signaled(signal) => write!(formatter, "killed by signal {signal}"),
        }
    }
}

/// How a spawned program is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessState {
    /// Still there.
    Running,
    /// Over.
    Ended(Status),
    /// This boot spawned no such process.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte per read, and a timeout before each.
    struct Slow(Vec<u8>, bool);

    impl Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            if self.0.is_empty() {
                return Ok(0);
            }
            buffer[0] = self.0.remove(0);
            Ok(1)
        }
    }

    fn patient<R: Read>(reader: &mut FrameReader<R>) -> io::Result<Option<Frame>> {
        loop {
            match reader.next_frame() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }

    #[test]
    fn frames_survive_timeouts_inside_them() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, Kind::Stdout, b"hello").unwrap();
        write_frame(&mut bytes, Kind::StdinEnd, b"").unwrap();
        let mut reader = FrameReader::new(Slow(bytes, false));
        let first = patient(&mut reader).unwrap().unwrap();
        assert_eq!(first, Frame { kind: Kind::Stdout, payload: b"hello".to_vec() });
        let second = patient(&mut reader).unwrap().unwrap();
        assert_eq!(second, Frame { kind: Kind::StdinEnd, payload: Vec::new() });
        assert_eq!(patient(&mut reader).unwrap(), None);
    }

    #[test]
    fn a_cut_frame_is_an_error() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, Kind::Stdout, b"hello").unwrap();
        for cut in 1..bytes.len() {
            let error = FrameReader::new(&bytes[..cut]).next_frame().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "cut at {cut}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let unknown = FrameReader::new(&[99, 0, 0, 0, 0][..]).next_frame().unwrap_err();
        assert_eq!(unknown.kind(), io::ErrorKind::InvalidData);
        let huge = FrameReader::new(&[1, 255, 0, 0, 0][..]).next_frame().unwrap_err();
        assert_eq!(huge.kind(), io::ErrorKind::InvalidData);
        let refused = write_frame(&mut Vec::new(), Kind::Stdin, &vec![0; MAX_PAYLOAD + 1]);
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn messages_round_trip() {
        let call = Call {
            version: VERSION,
            token: "t".to_owned(),
            request: Request::Exec(Program {
                argv: vec!["echo".to_owned(), "ä b".to_owned()],
                env: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
                cwd: Some(PathBuf::from("/tmp")),
            }),
        };
        let mut bytes = Vec::new();
        write_json(&mut bytes, Kind::Call, &call).unwrap();
        let frame = FrameReader::new(&bytes[..]).next_frame().unwrap().unwrap();
        assert_eq!(parse::<Call>(&frame.payload).unwrap(), call);
    }

    #[test]
    fn status_of_a_process() {
        assert_eq!(Status::from(ExitStatus::from_raw(3 << 8)), Status::Exited(3));
        assert_eq!(Status::from(ExitStatus::from_raw(9)), Status::Signaled(9));
        assert_eq!(Status::Signaled(9).to_string(), "killed by signal 9");
        assert!(Status::Exited(0).success() && !Status::Signaled(0).success());
    }
}
