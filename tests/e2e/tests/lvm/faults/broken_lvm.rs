//! LVM that fails in every way that a program can: the call can be repeated, nothing is left where it says that nothing was done, and who uses a volume never notices.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cinderblock_lab::Status as Exit;
use cinderblock_lab::driver::{Csi, Machine, is_open};
use tonic::{Code, Status};

use crate::support::{
    BACKEND, GIB, MIB, THICK, THIN, VG, Vol, code, expect_nothing_left, lvs, pooled, started,
};

/// No call that was spoiled takes longer.
const SOON: Duration = Duration::from_secs(20);

/// Stands where LVM does. Spoils one command, as a file says: `COMMAND HOW`.
const WRAPPER: &str = r#"#!/bin/sh
real=/run/weather/real/${0##*/}
read -r command how 2>/dev/null </run/weather/next || exec "$real" "$@"
[ "$command" = "$1" ] || exec "$real" "$@"
rm /run/weather/next
case $how in
exit-*) echo "no reason at all" >&2; exit "${how#exit-}" ;;
done-and-crash) "$real" "$@" >/dev/null; kill -SEGV $$ ;;
done-and-*) "$real" "$@" >/dev/null; exit "${how#done-and-}" ;;
crash) kill -SEGV $$ ;;
silent) exit 0 ;;
rubbish) printf '\377\376{"log": [{"'; exit 0 ;;
half) "$real" "$@" | head -c 200; exit 0 ;;
trace) exec strace -f -qq -o /run/weather/trace -e trace=ioctl "$real" "$@" ;;
cut-*) exec strace -f -qq -o /dev/null -e trace=ioctl -e inject=ioctl:signal=KILL:when="${how#cut-}" "$real" "$@" ;;
late) sh /run/weather/late; exec "$real" "$@" ;;
hang) until [ -e /run/weather/go ]; do sleep 0.2; done; exec "$real" "$@" ;;
esac
"#;

/// Before it has done anything, after, and with answers that say nothing.
const WAYS: [&str; 11] = [
    "exit-1",
    "exit-2",
    "exit-3",
    "exit-4",
    "exit-5",
    "done-and-5",
    "crash",
    "done-and-crash",
    "silent",
    "rubbish",
    "half",
];

/// Puts the wrapper in LVM's place.
pub(super) fn wrap(machine: &Machine) -> Result<()> {
    let script = format!(
        "mkdir -p /run/weather/real
         lvm=$(readlink -f /usr/sbin/lvm)
         cp $lvm /run/weather/real/lvm
         for link in $(find /usr/sbin -lname '*lvm'); do ln -sf lvm /run/weather/real/${{link##*/}}; done
         cat >/run/weather/lvm <<'END'\n{WRAPPER}END
         chmod +x /run/weather/lvm
         mount --bind /run/weather/lvm $lvm"
    );
    machine.sh(&script).map(drop)
}

pub(super) fn spoil(machine: &Machine, command: &str, how: &str) -> Result<()> {
    machine.sh(&format!("echo {command} {how} >/run/weather/next")).map(drop)
}

/// What there is, with sizes.
fn summary(machine: &Machine) -> Result<String> {
    machine.sh(&format!("lvs --noheadings --units b -o lv_name,lv_size {VG}"))
}

/// A call whose LVM command is spoiled, repeated until it goes well.
fn spoiled<T>(
    machine: &Machine,
    (command, how): (&str, &str),
    mut call: impl FnMut() -> Result<T, Status>,
) -> Result<T> {
    let before = summary(machine)?;
    spoil(machine, command, how)?;
    let start = Instant::now();
    let first = call();
    let took = start.elapsed();
    ensure!(took < SOON, "{command} {how}: it took {took:?}");
    machine.sh("test ! -e /run/weather/next").with_context(|| format!("no {command} was run"))?;
    let status = match first {
        Ok(done) => return Ok(done),
        Err(status) => status,
    };
    println!("{command} {how}: {:?}: {}", status.code(), status.message());
    let told = [Code::Unavailable, Code::Aborted, Code::Internal];
    ensure!(told.contains(&status.code()), "{command} {how}: {status:?}");
    if !is_open(&status) {
        let after = summary(machine)?;
        ensure!(before == after, "{command} {how}: {status:?} left\n{after}\nof\n{before}");
    }
    call().with_context(|| format!("{command} {how}, repeated"))
}

/// Each kind of change, each time spoiled in the next of the ways.
fn every_change(machine: &Machine, csi: &Csi, live: &Vol) -> Result<()> {
    let mut size = 128 * MIB;
    for (n, pair) in WAYS.chunks(2).enumerate() {
        let [one, other] = [pair[0], *pair.last().unwrap_or(&pair[0])];
        let name = format!("pvc-{n}");
        let class = if n % 2 == 0 { THICK } else { THIN };
        let v = spoiled(machine, ("lvcreate", one), || Vol::create(csi, class, &name, 64 * MIB))?;
        ensure!(lvs(machine)?.contains(&name), "{one}: {name} is not there");
        size += 32 * MIB;
        let grown = spoiled(machine, ("lvextend", other), || csi.expand(&live.id, size))?;
        ensure!(grown == size, "{other}: it has {grown}");
        csi.expand_on_node(&live.id, &live.pod)?;
        let snapshot = format!("snapshot-{n}");
        let taken = spoiled(machine, ("lvcreate", other), || csi.snapshot(&snapshot, &live.id))?;
        spoiled(machine, ("lvremove", one), || csi.delete_snapshot(&taken.snapshot_id))?;
        spoiled(machine, ("lvremove", other), || v.delete())?;
        ensure!(!lvs(machine)?.contains(&name), "{other}: {name} is still there");
    }
    Ok(())
}

/// A change that does not come to its end: what needs no LVM goes on, and it is told that it is being worked on.
fn a_change_that_hangs(machine: &Machine, csi: &Csi, live: &Vol) -> Result<()> {
    spoil(machine, "lvcreate", "hang")?;
    thread::scope(|scope| {
        let late = scope.spawn(|| Vol::create(csi, THICK, "pvc-late", 64 * MIB));
        machine.driver.wait_until(Duration::from_mins(1), "making it", || {
            Ok(machine.sh("ls /run/weather")?.lines().all(|file| file != "next"))
        })?;
        let again = code(csi.create(&THICK.request("pvc-late", 64 * MIB)))?;
        ensure!(again == Code::Aborted, "{again:?}");
        let second = "/run/v/second/pod".as_ref();
        live.publish(second)?;
        live.unpublish(second)?;
        csi.stats(&live.id, &live.pod)?;
        ensure!(csi.volumes()?.len() == 1, "the list changed");
        ensure!(!late.is_finished(), "it has ended");
        machine.sh("touch /run/weather/go")?;
        let v = late.join().unwrap()?;
        Ok(v.delete()?)
    })
}

/// An agent that starts knows nothing until LVM has told it.
fn every_report(machine: &Machine, csi: &Csi) -> Result<()> {
    let known = csi.volumes()?;
    for (n, how) in ["exit-5", "crash", "silent", "rubbish", "half"].into_iter().enumerate() {
        machine.driver.stop()?;
        spoil(machine, "fullreport", how)?;
        machine.start(BACKEND)?;
        let times = machine.driver.log_text().matches("; trying again in").count();
        ensure!(times == n + 1, "{how}: it was told {times} times in {} starts", n + 1);
        ensure!(csi.volumes()? == known, "{how}: other volumes");
    }
    Ok(())
}

#[test]
fn whatever_lvm_does_the_call_can_be_repeated() -> Result<()> {
    started("broken-lvm", &[2 * GIB], &pooled(1, "60%"), |machine| {
        let csi = machine.driver.csi()?;
        let live = Vol::create(&csi, THIN, "pvc-live", 128 * MIB)?;
        live.attach()?;
        wrap(machine)?;
        let write = format!(
            "cd {}; until [ -e stop ]; do dd if=/dev/urandom of=now bs=256k count=1 conv=fsync 2>/dev/null || exit 1
             sha256sum now >sum; sha256sum --quiet -c sum || exit 1; sleep 0.2; done",
            live.pod.display()
        );
        let output = thread::scope(|scope| {
            let writer = machine.node.exec(["sh", "-c", &write]).timeout(Duration::from_mins(5));
            let writer = scope.spawn(move || writer.run());
            let tried = every_change(machine, &csi, &live)
                .and_then(|()| a_change_that_hangs(machine, &csi, &live))
                .and_then(|()| every_report(machine, &csi));
            machine.sh(&format!("touch {}/stop", live.pod.display()))?;
            let output = writer.join().unwrap()?;
            tried.map(|()| output)
        })?;
        ensure!(output.status == Exit::Exited(0), "the writer: {}", output.stderr_text());
        live.detach()?;
        live.delete()?;
        expect_nothing_left(machine)
    })
}
