//! The host's side of the exec protocol: running programs in a guest. It never starts a program on the host.

use std::fmt;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::netns::NetNs;
use crate::process::ProcessId;
use crate::protocol::{
    CHUNK, Call, FrameReader, Kind, PORT, Program, Reply, Request, Status, VERSION, parse,
    write_frame, write_json,
};
use crate::vm::{Node, Run, Spawned};

/// For a call that sets no timeout of its own.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_mins(1);

/// What a busy host may need to connect, however short a call's own timeout is.
const CONNECT_AT_LEAST: Duration = Duration::from_secs(30);

/// How often a waiting call looks whether its VM still lives.
const LOOK: Duration = Duration::from_millis(250);

/// Bytes of each output in the message of a timeout.
const SHOWN: usize = 1000;

/// A program to run in a guest.
///
/// Its environment is a small default (PATH, HOME, `LC_ALL`) and what [`Exec::env`] adds. When the host
/// goes away or the timeout passes, the guest kills the program's process group.
#[derive(Debug)]
#[must_use = "nothing runs before run, text, stream or spawn"]
pub struct Exec<'a> {
    node: &'a Node,
    program: Program,
    stdin: Vec<u8>,
    timeout: Duration,
}

/// What a program left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub status: Status,
    /// All of its stdout.
    pub stdout: Vec<u8>,
    /// All of its stderr.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Its stdout as text, without the newline at its end.
    #[must_use]
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Its stderr as text, without the newline at its end.
    #[must_use]
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }
}

/// A call that took too long; found in an error with `downcast_ref`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimedOut {
    /// Node and command line.
    pub what: String,
    /// The timeout.
    pub timeout: Duration,
    /// Stdout until then; empty for a streamed call.
    pub stdout: Vec<u8>,
    /// Stderr until then; empty for a streamed call.
    pub stderr: Vec<u8>,
}

impl fmt::Display for TimedOut {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.timeout.as_secs_f32();
        write!(formatter, "{} did not end within {seconds} s and is killed", self.what)?;
        for (name, bytes) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            let last = &bytes[bytes.len().saturating_sub(SHOWN)..];
            if !last.is_empty() {
                write!(formatter, "; end of {name}: {}", String::from_utf8_lossy(last).trim_end())?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for TimedOut {}

impl<'a> Exec<'a> {
    pub(crate) fn new(node: &'a Node, argv: Vec<String>) -> Self {
        let program = Program { argv, ..Program::default() };
        Self { node, program, stdin: Vec::new(), timeout: DEFAULT_TIMEOUT }
    }

    /// Adds a variable to its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.program.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Its working directory in the guest, `/` by default.
    pub fn cwd(mut self, folder: impl Into<PathBuf>) -> Self {
        self.program.cwd = Some(folder.into());
        self
    }

    /// What it reads from stdin, nothing by default. The guest holds it in memory: give large
    /// inputs as files in the lab's directory.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// How long it may take in all, [`DEFAULT_TIMEOUT`] by default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs it to its end. Any exit code or signal is a good answer.
    ///
    /// # Errors
    /// The node is off or dies, the program cannot be started, or [`TimedOut`].
    pub fn run(self) -> Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let ended = self.drive(|kind, bytes| {
            if kind == Kind::Stdout { &mut stdout } else { &mut stderr }.extend_from_slice(bytes);
        })?;
        match ended {
            Some(status) => Ok(Output { status, stdout, stderr }),
            None => {
                Err(TimedOut { what: self.what(), timeout: self.timeout, stdout, stderr }.into())
            }
        }
    }

    /// Runs it and returns its stdout as text, without the newline at the end.
    ///
    /// # Errors
    /// As [`Exec::run`], and anything but exit code 0; the message has its stderr.
    pub fn text(self) -> Result<String> {
        let what = self.what();
        let output = self.run()?;
        if !output.status.success() {
            bail!("{what}: {}; stderr: {}", output.status, output.stderr_text());
        }
        Ok(output.stdout_text())
    }

    /// Runs it and copies its output to our stdout and stderr while it comes; with a prefix, whole
    /// lines with the prefix before each.
    ///
    /// # Errors
    /// As [`Exec::run`].
    pub fn stream(self, prefix: Option<&str>) -> Result<Status> {
        let mut lines = Lines::new(prefix);
        let ended = self.drive(|kind, bytes| lines.take(kind, bytes))?;
        lines.finish();
        let (stdout, stderr) = (Vec::new(), Vec::new());
        ended.ok_or_else(|| {
            TimedOut { what: self.what(), timeout: self.timeout, stdout, stderr }.into()
        })
    }

    /// Runs it and hands over its stdout while it comes. What was handed over stays known when the
    /// node dies.
    ///
    /// # Errors
    /// As [`Exec::run`].
    pub fn follow(self, mut sink: impl FnMut(&[u8])) -> Result<Status> {
        let ended = self.drive(|kind, bytes| {
            if kind == Kind::Stdout {
                sink(bytes);
            }
        })?;
        let (stdout, stderr) = (Vec::new(), Vec::new());
        ended.ok_or_else(|| {
            TimedOut { what: self.what(), timeout: self.timeout, stdout, stderr }.into()
        })
    }

    /// Starts it so that it outlives this call and this process. Its stdout and stderr are appended
    /// to `log` in the guest; in the lab's directory the host can read along.
    ///
    /// # Errors
    /// The node is off, the program is not there, or the log cannot be opened.
    pub fn spawn(self, log: &Path) -> Result<Spawned> {
        let (program, log) = (self.program.clone(), log.to_owned());
        let reply = self.node.ask(Request::Spawn { program, log }, self.timeout)?;
        let Reply::Spawned { pid } = reply else {
            return Err(unexpected(reply));
        };
        Ok(self.node.spawned(pid))
    }

    /// Node and command line, for messages.
    fn what(&self) -> String {
        format!("node {}: `{}`", self.node.name(), self.program.argv.join(" "))
    }

    /// None when the timeout passed.
    fn drive(&self, mut sink: impl FnMut(Kind, &[u8])) -> Result<Option<Status>> {
        let deadline = Instant::now() + self.timeout;
        let request = Request::Exec(self.program.clone());
        let mut connection = self.node.connect(request, self.timeout.max(CONNECT_AT_LEAST))?;
        let mut writer = connection.stream().try_clone().context("duplicating a socket")?;
        let result = std::thread::scope(|scope| {
            // On its own thread: a program may write much before it reads.
            scope.spawn(move || send_stdin(&mut writer, &self.stdin));
            let result = loop {
                match connection.next(deadline) {
                    Ok(Next::Output(kind, bytes)) => sink(kind, &bytes),
                    Ok(Next::Reply(Reply::Exit(status))) => break Ok(Some(status)),
                    Ok(Next::Reply(other)) => break Err(unexpected(other)),
                    Ok(Next::TimedOut) => break Ok(None),
                    Err(error) => break Err(error),
                }
            };
            // The guest kills what still runs, and the thread above gets no further.
            drop(connection.stream().shutdown(Shutdown::Both));
            result
        });
        result.with_context(|| self.what())
    }
}

/// Sends stdin; a guest that is gone, or a program that has ended, needs it no more.
fn send_stdin(writer: &mut TcpStream, stdin: &[u8]) {
    let sent = stdin.chunks(CHUNK).try_for_each(|it| write_frame(writer, Kind::Stdin, it));
    drop(sent.and_then(|()| write_frame(writer, Kind::StdinEnd, &[])));
}

/// The error for an answer that is none to the request.
pub(crate) fn unexpected(reply: Reply) -> anyhow::Error {
    if let Reply::Failed { message } = reply {
        anyhow!(message)
    } else {
        anyhow!("the guest gave the answer {reply:?} to another question")
    }
}

/// Waits for the answer to a request that has no output.
pub(crate) fn ask(mut connection: Connection, timeout: Duration) -> Result<Reply> {
    let deadline = Instant::now() + timeout;
    match connection.next(deadline)? {
        Next::Reply(failed @ Reply::Failed { .. }) => Err(unexpected(failed)),
        Next::Reply(reply) => Ok(reply),
        Next::Output(..) => bail!("output without a program"),
        Next::TimedOut => bail!("no answer within {} s", timeout.as_secs_f32()),
    }
}

/// What comes next on a connection.
enum Next {
    Output(Kind, Vec<u8>),
    Reply(Reply),
    TimedOut,
}

/// One call on its way.
pub(crate) struct Connection {
    reader: FrameReader<TcpStream>,
    vm: ProcessId,
}

impl Connection {
    pub(crate) fn open(
        net: &NetNs,
        address: Ipv4Addr,
        run: Run,
        request: Request,
        timeout: Duration,
    ) -> Result<Self> {
        let mut stream = net.connect(address, PORT, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK))?;
        let call = Call { version: VERSION, token: run.token, request };
        write_json(&mut stream, Kind::Call, &call).context("sending the request")?;
        Ok(Self { reader: FrameReader::new(stream), vm: run.process })
    }

    fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    fn next(&mut self, deadline: Instant) -> Result<Next> {
        // Looked at before each frame: a program may write without end.
        while Instant::now() < deadline {
            match self.reader.next_frame() {
                Ok(Some(frame)) if frame.kind == Kind::Reply => {
                    return Ok(Next::Reply(parse(&frame.payload)?));
                }
                Ok(Some(frame)) => return Ok(Next::Output(frame.kind, frame.payload)),
                Ok(None) => bail!("the guest closed the connection without an answer"),
                Err(error) if waits(&error) => {}
                Err(error) => return Err(error).context("the connection to the guest broke"),
            }
            // A VM that is cut sends nothing any more, not even an end.
            if !self.vm.is_alive() {
                bail!("the VM died meanwhile");
            }
        }
        Ok(Next::TimedOut)
    }
}

fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Copies output to the terminal.
struct Lines<'a> {
    prefix: Option<&'a str>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl<'a> Lines<'a> {
    fn new(prefix: Option<&'a str>) -> Self {
        Self { prefix, stdout: Vec::new(), stderr: Vec::new() }
    }

    fn take(&mut self, kind: Kind, bytes: &[u8]) {
        let ready = match self.prefix {
            None => bytes.to_vec(),
            Some(prefix) if kind == Kind::Stdout => whole_lines(&mut self.stdout, prefix, bytes),
            Some(prefix) => whole_lines(&mut self.stderr, prefix, bytes),
        };
        // A closed terminal is no reason to stop the program in the guest.
        drop(if kind == Kind::Stdout {
            let mut out = io::stdout().lock();
            out.write_all(&ready).and_then(|()| out.flush())
        } else {
            io::stderr().lock().write_all(&ready)
        });
    }

    fn finish(&mut self) {
        if !self.stdout.is_empty() {
            self.take(Kind::Stdout, b"\n");
        }
        if !self.stderr.is_empty() {
            self.take(Kind::Stderr, b"\n");
        }
    }
}

/// Adds bytes to a line that is not whole yet and takes out what is.
fn whole_lines(rest: &mut Vec<u8>, prefix: &str, bytes: &[u8]) -> Vec<u8> {
    let mut ready = Vec::new();
    for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
        rest.extend_from_slice(piece);
        if rest.ends_with(b"\n") {
            ready.extend_from_slice(prefix.as_bytes());
            ready.append(rest);
        }
    }
    ready
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_get_their_prefix_when_they_are_whole() {
        let mut rest = Vec::new();
        assert_eq!(whole_lines(&mut rest, "n1: ", b"a\nb"), b"n1: a\n");
        assert_eq!(whole_lines(&mut rest, "n1: ", b"c"), b"");
        assert_eq!(whole_lines(&mut rest, "n1: ", b"\n\n"), b"n1: bc\nn1: \n");
        assert!(rest.is_empty());
    }

    #[test]
    fn a_timeout_tells_what_came_before() {
        let error = TimedOut {
            what: "node n: `x`".to_owned(),
            timeout: Duration::from_millis(1500),
            stdout: b"half\n".to_vec(),
            stderr: Vec::new(),
        };
        let text = "node n: `x` did not end within 1.5 s and is killed; end of stdout: half";
        assert_eq!(error.to_string(), text);
    }
}
