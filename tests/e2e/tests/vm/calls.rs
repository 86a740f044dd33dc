//! Programs in a guest: everything that the exec protocol promises. One VM serves all.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cinderblock_lab::{Node, ProcessState, Status, TimedOut};

use crate::support::{small, test_lab};

/// Guests sleep for 300 s in these tests, and a busy machine may be slow.
const LONG_BEFORE_SLEEP_ENDS: Duration = Duration::from_secs(100);

#[test]
fn programs_in_a_guest() -> Result<()> {
    let test = test_lab("calls")?;
    let node = test.lab.up(&[small(1)])?.remove(0);
    ends(&node)?;
    streams(&node)?;
    surroundings(&node)?;
    failures(&node);
    many_at_once(&node)?;
    timeouts(&node)?;
    a_chatterbox(&node)?;
    children_that_stay(&node)?;
    spawned(&node, test.lab.dir())?;
    shared_folder(&node, test.lab.dir())
}

fn sh<'a>(node: &'a Node, script: &str) -> cinderblock_lab::Exec<'a> {
    node.exec(["sh", "-c", script])
}

/// Looks until it is so; an error after a minute.
fn comes_true(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !is_so()? {
        ensure!(start.elapsed() < Duration::from_mins(1), "{what} did not come within a minute");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn ends(node: &Node) -> Result<()> {
    for code in [0, 1, 255] {
        assert_eq!(sh(node, &format!("exit {code}")).run()?.status, Status::Exited(code));
    }
    assert_eq!(sh(node, "kill -TERM $$").run()?.status, Status::Signaled(15));
    assert_eq!(sh(node, "kill -KILL $$").run()?.status, Status::Signaled(9));
    Ok(())
}

fn streams(node: &Node) -> Result<()> {
    let output = sh(node, "echo to-out; echo to-err >&2; exit 3").run()?;
    assert_eq!(output.stdout, b"to-out\n");
    assert_eq!(output.stderr, b"to-err\n");
    assert_eq!(output.status, Status::Exited(3));
    // More than all pipes and sockets on the way hold, both ways at once.
    let large: Vec<u8> = (0..3_000_000_u32).map(|it| it.to_le_bytes()[0]).collect();
    assert_eq!(node.exec(["cat"]).stdin(large.clone()).run()?.stdout, large);
    // A program that does not read its stdin.
    assert_eq!(node.exec(["true"]).stdin(large).run()?.status, Status::Exited(0));
    assert_eq!(node.exec(["cat"]).run()?.stdout, b"");
    assert_eq!(sh(node, "echo one; echo two >&2").stream(Some("node1: "))?, Status::Exited(0));
    Ok(())
}

fn surroundings(node: &Node) -> Result<()> {
    let exec = sh(node, "echo $A; pwd; hostname").env("A", "b c").cwd("/usr/lib");
    assert_eq!(exec.text()?, "b c\n/usr/lib\nnode1");
    assert_eq!(sh(node, "echo $PATH $HOME | grep -c sbin").text()?, "1");
    assert_eq!(node.exec(["./true"]).cwd("/usr/bin").run()?.status, Status::Exited(0));
    let fds = node.exec(["ls", "/proc/self/fd"]).text()?;
    assert_eq!(fds, "0\n1\n2\n3", "only ls's own folder is open besides the three");
    Ok(())
}

fn failures(node: &Node) {
    let error = format!("{:#}", node.exec(["no-such-program"]).run().unwrap_err());
    assert!(
        error.contains("node node1") && error.contains("no-such-program is not there"),
        "{error}"
    );
    let error = format!("{:#}", node.exec(["true"]).cwd("/no/such").run().unwrap_err());
    assert!(error.contains("in /no/such"), "{error}");
    let error = format!("{:#}", sh(node, "echo because >&2; exit 7").text().unwrap_err());
    assert!(error.contains("exit code 7") && error.contains("because"), "{error}");
}

fn many_at_once(node: &Node) -> Result<()> {
    let start = Instant::now();
    let texts = thread::scope(|scope| {
        let calls: Vec<_> = (0..8)
            .map(|number| scope.spawn(move || sh(node, &format!("sleep 5; echo {number}")).text()))
            .collect();
        calls.into_iter().map(|it| it.join().unwrap()).collect::<Result<Vec<_>>>()
    })?;
    assert_eq!(texts, ["0", "1", "2", "3", "4", "5", "6", "7"]);
    assert!(start.elapsed() < Duration::from_secs(35), "they ran one after the other");
    Ok(())
}

fn timeouts(node: &Node) -> Result<()> {
    let start = Instant::now();
    let script = "echo $$; echo early >&2; sleep 300 & echo $!; wait";
    let error = sh(node, script).timeout(Duration::from_secs(10)).run().unwrap_err();
    assert!(start.elapsed() < LONG_BEFORE_SLEEP_ENDS);
    let late: &TimedOut = error.downcast_ref().context("not a timeout")?;
    // What came before came live.
    assert_eq!(late.stderr, b"early\n");
    let pids = String::from_utf8(late.stdout.clone())?;
    assert_eq!(pids.lines().count(), 2, "{pids}");
    for pid in pids.lines() {
        let dead = || Ok(!sh(node, &format!("kill -0 {pid}")).run()?.status.success());
        comes_true(&format!("the end of {pid}"), dead)?;
    }
    Ok(())
}

fn a_chatterbox(node: &Node) -> Result<()> {
    let start = Instant::now();
    let exec = sh(node, "while :; do echo chatter; done").timeout(Duration::from_secs(2));
    let error = exec.run().unwrap_err();
    assert!(start.elapsed() < LONG_BEFORE_SLEEP_ENDS);
    assert!(error.downcast_ref::<TimedOut>().is_some() && error.to_string().len() < 4096);
    assert_eq!(node.exec(["echo", "still here"]).text()?, "still here");
    Ok(())
}

fn children_that_stay(node: &Node) -> Result<()> {
    // The child keeps the pipes open; the call ends all the same, and the child lives on.
    let start = Instant::now();
    let pid = sh(node, "sleep 300 & echo $!").text()?;
    assert!(start.elapsed() < LONG_BEFORE_SLEEP_ENDS);
    sh(node, &format!("kill {pid}")).text()?;
    Ok(())
}

fn spawned(node: &Node, dir: &std::path::Path) -> Result<()> {
    let log = dir.join("spawned.log");
    let daemon = sh(node, "echo up; echo warn >&2; exec sleep 300").spawn(&log)?;
    assert_eq!(daemon.state()?, ProcessState::Running);
    let again = node.spawned(daemon.pid);
    // Leader of its own process group: field 5 of its stat.
    let group = sh(node, &format!("cut -d' ' -f5 /proc/{}/stat", daemon.pid)).text()?;
    assert_eq!(group, daemon.pid.to_string());
    // Nothing says that it has run already when the call that started it ends.
    comes_true("what it prints", || Ok(fs::read_to_string(&log)? == "up\nwarn\n"))?;
    again.signal(15)?;
    let ended = daemon.wait(Duration::from_mins(1))?;
    assert_eq!(ended, ProcessState::Ended(Status::Signaled(15)));
    daemon.signal(9)?;
    let short = sh(node, "exit 4").spawn(&log)?;
    assert_eq!(short.wait(Duration::from_mins(1))?, ProcessState::Ended(Status::Exited(4)));
    assert_eq!(node.spawned(999_999).state()?, ProcessState::Unknown);
    node.spawned(999_999).signal(9).unwrap_err();
    let error = format!("{:#}", node.exec(["no-such-program"]).spawn(&log).unwrap_err());
    assert!(error.contains("no-such-program is not there"), "{error}");
    Ok(())
}

fn shared_folder(node: &Node, dir: &std::path::Path) -> Result<()> {
    let (from_guest, from_host) = (dir.join("from-guest"), dir.join("from-host"));
    sh(node, &format!("echo guest > {}", from_guest.display())).text()?;
    assert_eq!(fs::read_to_string(from_guest)?, "guest\n");
    // Not there when the guest looked first.
    let path = from_host.to_str().context("path")?;
    assert!(!node.exec(["test", "-e", path]).run()?.status.success());
    fs::write(&from_host, "host\n")?;
    assert_eq!(node.exec(["cat", path]).text()?, "host");
    fs::write(&from_host, "again\n")?;
    assert_eq!(node.exec(["cat", path]).text()?, "again");
    Ok(())
}
