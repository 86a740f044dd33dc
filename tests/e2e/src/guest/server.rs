//! The guest's side of the exec protocol: one thread and some helpers per call. It opens no connection of its own.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::shutdown;
use crate::bootfile::{BootFile, READY};
use crate::programs;
use crate::protocol::{
    CHUNK, Call, FrameReader, Kind, PORT, ProcessState, Program, Reply, Request, Status, VERSION,
    parse, write_frame, write_json,
};

/// How long output is waited for after a program's end, in case a child of it still holds a pipe. Longer
/// than a busy host may stall: what comes later is lost.
const LINGER: Duration = Duration::from_secs(15);

/// Spawned programs of this boot, by process id.
type Spawned = Arc<Mutex<BTreeMap<i32, ProcessState>>>;

/// The connection's sending half; frames of several threads take turns.
type Sender = Arc<Mutex<TcpStream>>;

/// Serves calls for ever.
pub(super) fn serve(boot: &BootFile) -> Result<Infallible> {
    let listener = TcpListener::bind((boot.address, PORT))
        .with_context(|| format!("listening on {}:{PORT}", boot.address))?;
    let spawned = Spawned::default();
    println!("{READY} on {}:{PORT}", boot.address);
    loop {
        let (stream, _) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) => {
                eprintln!("lab-guest: accept: {error}");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let (boot, spawned) = (boot.clone(), Arc::clone(&spawned));
        let served = thread::Builder::new().spawn(move || {
            if let Err(error) = answer(stream, &boot, &spawned) {
                eprintln!("lab-guest: a call failed: {error:#}");
            }
        });
        if let Err(error) = served {
            eprintln!("lab-guest: no thread for a call: {error}");
        }
    }
}

fn answer(stream: TcpStream, boot: &BootFile, spawned: &Spawned) -> Result<()> {
    stream.set_nodelay(true)?;
    let sender: Sender = Arc::new(Mutex::new(stream.try_clone()?));
    let mut reader = FrameReader::new(stream);
    let Some(frame) = reader.next_frame().context("reading the call")? else {
        return Ok(());
    };
    ensure!(frame.kind == Kind::Call, "a connection began with {:?}", frame.kind);
    let reply = match admit(parse(&frame.payload)?, boot) {
        Ok(Request::Exec(program)) => exec(&program, &sender, reader),
        Ok(request) => other(request, boot, spawned, &sender),
        Err(error) => Err(error),
    };
    let reply = reply.unwrap_or_else(|error| Reply::Failed { message: format!("{error:#}") });
    // A host that is gone, perhaps as its timeout passed, needs no reply.
    drop(send_reply(&sender, &reply));
    Ok(())
}

fn send_reply(sender: &Sender, reply: &Reply) -> Result<()> {
    let mut stream = lock(sender);
    write_json(&mut *stream, Kind::Reply, reply)?;
    stream.shutdown(Shutdown::Write)?;
    Ok(())
}

fn admit(call: Call, boot: &BootFile) -> Result<Request> {
    ensure!(
        call.version == VERSION,
        "the caller speaks version {} of the exec protocol and this VM {VERSION}: reboot the node",
        call.version
    );
    ensure!(call.token == boot.token, "the call is meant for another boot of the node");
    Ok(call.request)
}

fn other(request: Request, boot: &BootFile, spawned: &Spawned, sender: &Sender) -> Result<Reply> {
    Ok(match request {
        Request::Ping => Reply::Ready { node: boot.node.clone() },
        Request::Spawn { program, log } => Reply::Spawned { pid: spawn(&program, &log, spawned)? },
        Request::State { pid } => {
            Reply::State(lock(spawned).get(&pid).copied().unwrap_or(ProcessState::Unknown))
        }
        Request::Signal { pid, signal } => {
            // Held while signalling: the reaper takes the same lock before the pid is free again.
            let table = lock(spawned);
            match table.get(&pid) {
                Some(ProcessState::Running) => send_signal(pid, signal)?,
                Some(_) => {}
                None => bail!("no process {pid} was spawned in this boot"),
            }
            Reply::Done
        }
        Request::Shutdown { grace_ms } => {
            send_reply(sender, &Reply::Done)?;
            shutdown::shutdown(Duration::from_millis(grace_ms))
        }
        Request::Exec(_) => bail!("a program to run has its own path"),
    })
}

/// A command in a process group of its own, with everything but its pipes.
fn command(program: &Program) -> Result<Command> {
    let name = program.argv.first().context("a program needs a name")?;
    // Looked up here, in the guest's own PATH or the call's, so that a missing one has a clear error.
    let path = program.env.get("PATH").map_or(programs::GUEST_PATH, String::as_str);
    let folders = std::env::split_paths(path).collect::<Vec<PathBuf>>().into_iter();
    let cwd = program.cwd.as_deref().unwrap_or(Path::new("/"));
    // `./program` is meant from its own working directory, not from the server's.
    let word = if name.contains('/') { cwd.join(name) } else { PathBuf::from(name) };
    let word = word.to_str().context("a program's name is no text")?;
    let file = programs::find_in(word, folders)
        .with_context(|| format!("the program {name} is not there or not executable"))?;
    let mut command = Command::new(file);
    command
        .arg0(name)
        .args(&program.argv[1..])
        .process_group(0)
        .env_clear()
        .envs([("PATH", programs::GUEST_PATH), ("HOME", "/root"), ("LC_ALL", "C.UTF-8")])
        .envs(&program.env)
        .current_dir(cwd);
    Ok(command)
}

fn start(mut command: Command, program: &Program) -> Result<(Child, i32)> {
    let child = command.spawn().with_context(|| {
        let cwd = program.cwd.as_deref().unwrap_or(Path::new("/"));
        format!("cannot start {:?} in {}", program.argv, cwd.display())
    })?;
    let pid = i32::try_from(child.id()).context("a process id out of range")?;
    Ok((child, pid))
}

fn spawn(program: &Program, log: &Path, spawned: &Spawned) -> Result<i32> {
    let open = || File::options().create(true).append(true).open(log);
    let out = open().with_context(|| format!("opening the log {}", log.display()))?;
    let mut command = command(program)?;
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    let (mut child, pid) = start(command, program)?;
    lock(spawned).insert(pid, ProcessState::Running);
    let spawned = Arc::clone(spawned);
    thread::Builder::new().spawn(move || {
        drop(wait_unreaped(pid));
        let mut table = lock(&spawned);
        if let Ok(status) = child.wait() {
            table.insert(pid, ProcessState::Ended(status.into()));
        }
    })?;
    Ok(pid)
}

fn exec(program: &Program, sender: &Sender, host: FrameReader<TcpStream>) -> Result<Reply> {
    let mut command = command(program)?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (mut child, pid) = start(command, program)?;
    // True once the program has ended; then its pid may belong to another.
    let ended = Arc::new(Mutex::new(false));
    let (queue, stdin) = mpsc::channel();
    if let Some(pipe) = child.stdin.take() {
        thread::spawn(move || feed(pipe, &stdin));
    }
    let watch = Arc::clone(&ended);
    thread::spawn(move || listen(host, queue, pid, &watch));
    let (done, outputs) = mpsc::channel();
    if let Some(pipe) = child.stdout.take() {
        carry(pipe, Kind::Stdout, sender, &done);
    }
    if let Some(pipe) = child.stderr.take() {
        carry(pipe, Kind::Stderr, sender, &done);
    }
    drop(done);
    wait_unreaped(pid)?;
    let mut over = lock(&ended);
    let status: Status = child.wait().context("waiting for the program")?.into();
    *over = true;
    drop(over);
    let deadline = Instant::now() + LINGER;
    for _ in 0..2 {
        // Left early when a child of the program holds a pipe open.
        let _ = outputs.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
    Ok(Reply::Exit(status))
}

/// Waits for the end of a child, which keeps its pid until it is waited for again.
fn wait_unreaped(pid: i32) -> Result<()> {
    let pid = Pid::from_raw(pid).context("no process id")?;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    loop {
        match waitid(WaitId::Pid(pid), options) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.map(drop).context("waiting for a program"),
        }
    }
}

/// Queues stdin from the host, without a limit: it must notice at any time that the host is gone.
fn listen(
    mut host: FrameReader<TcpStream>,
    queue: mpsc::Sender<Vec<u8>>,
    pid: i32,
    ended: &Mutex<bool>,
) {
    let mut queue = Some(queue);
    while let Ok(Some(frame)) = host.next_frame() {
        if frame.kind == Kind::Stdin {
            if let Some(queue) = &queue {
                // The program may have closed its stdin.
                drop(queue.send(frame.payload));
            }
        } else {
            queue = None;
        }
    }
    let over = lock(ended);
    if !*over {
        drop(send_signal(pid, Signal::KILL.as_raw()));
    }
}

fn feed(mut pipe: ChildStdin, stdin: &mpsc::Receiver<Vec<u8>>) {
    while let Ok(bytes) = stdin.recv() {
        if pipe.write_all(&bytes).is_err() {
            return;
        }
    }
}

/// Carries one output to the host as it comes. Bytes after the reply go nowhere, but are read, so
/// that a child that outlived the program does not stop at a full pipe.
fn carry(
    mut pipe: impl Read + Send + 'static,
    kind: Kind,
    sender: &Sender,
    done: &mpsc::Sender<()>,
) {
    let (sender, done) = (Arc::clone(sender), done.clone());
    thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    drop(write_frame(&mut *lock(&sender), kind, &buffer[..count]));
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let _ = done.send(());
    });
}

fn send_signal(pid: i32, signal: i32) -> Result<()> {
    let group = Pid::from_raw(pid).context("no process id")?;
    let signal = Signal::from_named_raw(signal).with_context(|| format!("no signal {signal}"))?;
    kill_process_group(group, signal).with_context(|| format!("signalling the group {pid}"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
