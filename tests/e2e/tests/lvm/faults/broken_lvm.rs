//! LVM that fails in every way that a program can: the call can be repeated, nothing is left where it says that nothing was done, and who uses a volume never notices.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cinderblock_lab::Status as Exit;
use cinderblock_lab::driver::{Class, Csi, Machine, disk, is_open};
use tonic::{Code, Status};

use crate::support::{
    BACKEND, GIB, MIB, THICK, THIN, Vol, code, expect_nothing_left, lvs, pooled, started,
    without_trash,
};

/// A second VG, with thick volumes alone.
const BESIDE: &str = "vg1";
const THICK_BESIDE: Class = Class { backend: "beside", ..THICK };

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
alone-*) kill -STOP $PPID; exec strace -f -qq -o /dev/null -e trace=ioctl -e inject=ioctl:signal=KILL:when="${how#alone-}" "$real" "$@" ;;
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

/// The ways that differ, for what takes several steps.
const KINDS: [&str; 7] =
    ["exit-5", "done-and-5", "crash", "done-and-crash", "silent", "rubbish", "half"];

/// The code of a call whose command ended so, if it fails. What the VG holds afterwards tells: it has happened, or
/// nothing has, which is final unless whoever killed LVM may let it live the next time. A success that changed
/// nothing is followed by another command.
fn judged(how: &str) -> Option<Code> {
    match how {
        "crash" => Some(Code::Unavailable),
        _ if how.starts_with("exit-") => Some(Code::Internal),
        _ => None,
    }
}

/// Of the command that drops a tag: what still bears it must not be used.
fn tag_dropped(how: &str) -> Option<Code> {
    match how {
        "silent" | "rubbish" => Some(Code::Unavailable),
        _ => judged(how),
    }
}

/// Of an activation, which changes nothing that lasts and is not judged by the VG.
fn activated(how: &str) -> Option<Code> {
    match how {
        "done-and-5" | "silent" | "rubbish" => Some(Code::Internal),
        "done-and-crash" => Some(Code::Unavailable),
        _ => judged(how),
    }
}

/// Of the first of two commands: once it has happened, no code is final.
fn first_of_two(how: &str) -> Option<Code> {
    if how.starts_with("done-and-") { Some(Code::Unavailable) } else { judged(how) }
}

/// What there is, with sizes, beside what is being wiped.
fn summary(machine: &Machine) -> Result<String> {
    machine.sh("lvs --noheadings --units b -o vg_name,lv_name,lv_size -S 'lv_name!~\"^cb-trash\"'")
}

/// How many of these commands have failed.
fn failures(machine: &Machine, command: &str) -> Result<f64> {
    let begins = format!(
        "cinderblock_program_seconds_count{{program=\"lvm {command}\",outcome=\"failed\"}}"
    );
    Ok(machine.driver.metric(&begins)?.unwrap_or_default())
}

/// A call whose LVM command is spoiled and that has to fail with this code, if with any, repeated until it goes well.
fn spoiled<T>(
    machine: &Machine,
    (command, how, wanted): (&str, &str, Option<Code>),
    mut call: impl FnMut() -> Result<T, Status>,
) -> Result<T> {
    let (before, failed) = (summary(machine)?, failures(machine, command)?);
    spoil(machine, command, how)?;
    let start = Instant::now();
    let first = call();
    let took = start.elapsed();
    ensure!(took < SOON, "{command} {how}: it took {took:?}");
    machine.sh("test ! -e /run/weather/next").with_context(|| format!("no {command} was run"))?;
    let counted = failures(machine, command)? - failed;
    let fails = !matches!(how, "silent" | "rubbish" | "half");
    ensure!((counted > 0.5) == fails, "{command} {how}: {counted} failures were counted");
    let code = first.as_ref().err().map(Status::code);
    ensure!(code == wanted, "{command} {how}: {:?}, not {wanted:?}", first.err());
    let status = match first {
        Ok(done) => return Ok(done),
        Err(status) => status,
    };
    println!("{command} {how}: {:?}: {}", status.code(), status.message());
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
        let v = spoiled(machine, ("lvcreate", one, judged(one)), || {
            Vol::create(csi, class, &name, 64 * MIB)
        })?;
        ensure!(lvs(machine)?.contains(&name), "{one}: {name} is not there");
        size += 32 * MIB;
        let grown =
            spoiled(machine, ("lvextend", other, judged(other)), || csi.expand(&live.id, size))?;
        ensure!(grown == size, "{other}: it has {grown}");
        csi.expand_on_node(&live.id, &live.pod)?;
        let snapshot = format!("snapshot-{n}");
        let taken = spoiled(machine, ("lvcreate", other, judged(other)), || {
            csi.snapshot(&snapshot, &live.id)
        })?;
        spoiled(machine, ("lvremove", one, judged(one)), || {
            csi.delete_snapshot(&taken.snapshot_id)
        })?;
        spoiled(machine, ("lvremove", other, judged(other)), || v.delete())?;
        ensure!(!lvs(machine)?.contains(&name), "{other}: {name} is still there");
    }
    Ok(())
}

/// First and later uses, and what is wiped when it goes: volumes of another VG than the one in which LVM hangs.
fn every_use(machine: &Machine, csi: &Csi) -> Result<()> {
    for how in KINDS {
        let name = format!("pvc-{how}");
        let v = Vol::wiped(csi, THICK_BESIDE, "zero", &name, 64 * MIB)?;
        // Its filesystem is made, and the tag that says so dropped.
        spoiled(machine, ("lvchange", how, tag_dropped(how)), || v.stage())?;
        v.unstage()?;
        machine.sh(&format!("lvchange -qq -an {BESIDE}/{name}"))?;
        spoiled(machine, ("lvchange", how, activated(how)), || v.stage())?;
        v.unstage()?;
        let taken = csi.snapshot(&format!("snapshot-{how}"), &v.id)?;
        let delete = || csi.delete_snapshot(&taken.snapshot_id);
        spoiled(machine, ("lvconvert", how, first_of_two(how)), delete)?;
        // Zeroes would go beside what it keeps.
        let bound = machine
            .sh("lvs --noheadings -o lv_name,origin -S 'lv_name=~\"^cb-trash\" && origin!=\"\"'")?;
        ensure!(bound.is_empty(), "{how}: trash that is not split from its volume: {bound}");
        spoiled(machine, ("lvrename", how, judged(how)), || v.delete())?;
        let left = summary(machine)?;
        ensure!(!left.contains(BESIDE), "{how}: {left}");
        // The trash has an lvchange of its own, which is not the one to spoil.
        without_trash(machine)?;
    }
    Ok(())
}

fn lvm_hangs(machine: &Machine) -> Result<bool> {
    Ok(machine.driver.metric("cinderblock_troubles{reason=\"LvmHangs\"}")? == Some(1.0))
}

/// A change that does not come to its end: what needs no LVM goes on, and so do volumes of another VG; it is told that it is
/// being worked on, and after a minute that LVM hangs.
fn a_change_that_hangs(machine: &Machine, csi: &Csi, live: &Vol) -> Result<()> {
    spoil(machine, "lvcreate", "hang")?;
    thread::scope(|scope| {
        let patient = csi.clone().with_timeout(Duration::from_mins(10));
        let late = scope.spawn(move || Vol::create(&patient, THICK, "pvc-late", 64 * MIB));
        let meanwhile = while_it_hangs(machine, csi, live);
        let is_late = !late.is_finished();
        machine.sh("touch /run/weather/go")?;
        let v = late.join().unwrap()?;
        meanwhile?;
        ensure!(is_late, "it has ended");
        machine.driver.wait_until(Duration::from_mins(1), "told that LVM answers", || {
            Ok(!lvm_hangs(machine)?)
        })?;
        Ok(v.delete()?)
    })
}

fn while_it_hangs(machine: &Machine, csi: &Csi, live: &Vol) -> Result<()> {
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
    every_use(machine, csi)?;
    machine.driver.wait_until(Duration::from_mins(3), "told that LVM hangs", || lvm_hangs(machine))
}

/// An agent that starts knows nothing until LVM has told it.
fn every_report(machine: &Machine, csi: &Csi, live: &Vol) -> Result<()> {
    let known = csi.volumes()?;
    let ways = WAYS.iter().filter(|how| !how.starts_with("done"));
    for (n, how) in ways.enumerate() {
        machine.driver.stop()?;
        spoil(machine, "fullreport", how)?;
        machine.start(BACKEND)?;
        let times =
            machine.driver.log_text().matches("LVM gives no report; trying again in").count();
        ensure!(times == n + 1, "{how}: it was told {times} times in {} starts", n + 1);
        ensure!(csi.volumes()? == known, "{how}: other volumes");
    }
    machine.driver.stop()?;
    machine.sh("rm /run/weather/go")?;
    spoil(machine, "fullreport", "hang")?;
    thread::scope(|scope| {
        let starting = scope.spawn(|| machine.start(BACKEND));
        let meanwhile = while_no_report_comes(machine, csi, live);
        machine.sh("touch /run/weather/go")?;
        starting.join().unwrap()?;
        meanwhile
    })?;
    ensure!(csi.volumes()? == known, "other volumes after a report that hung");
    Ok(())
}

fn while_no_report_comes(machine: &Machine, csi: &Csi, live: &Vol) -> Result<()> {
    machine.sh("until test ! -e /run/weather/next; do sleep 0.2; done")?;
    ensure!(!machine.driver.is_ready(), "ready before LVM has told anything");
    let start = Instant::now();
    loop {
        // Its socket may not be there yet.
        let told = live.stage().err().context("staged without a report")?;
        ensure!(told.code() == Code::Unavailable, "{told:?}");
        if told.message().contains("LVM has given no report since the agent started") {
            break;
        }
        ensure!(start.elapsed() < SOON, "it says: {told:?}");
        thread::sleep(Duration::from_millis(200));
    }
    let early = code(csi.create(&THICK.request("pvc-early", 64 * MIB)))?;
    ensure!(early == Code::Unavailable, "{early:?}");
    ensure!(!machine.driver.is_ready(), "ready before LVM has told anything");
    Ok(())
}

#[test]
fn whatever_lvm_does_the_call_can_be_repeated() -> Result<()> {
    let beside = format!(
        "{}  - name: beside\n    volumeGroup: {BESIDE}\n    create: true\n    devices: [{}]\n",
        pooled(1, "60%"),
        disk(2)
    );
    started("broken-lvm", &[2 * GIB, GIB], &beside, |machine| {
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
            let writer = machine.node.exec(["sh", "-c", &write]).timeout(Duration::from_mins(10));
            let writer = scope.spawn(move || writer.run());
            let tried = every_change(machine, &csi, &live)
                .and_then(|()| a_change_that_hangs(machine, &csi, &live))
                .and_then(|()| every_report(machine, &csi, &live));
            machine.sh(&format!("touch {}/stop", live.pod.display()))?;
            let output = writer.join().unwrap()?;
            tried.map(|()| output)
        })?;
        ensure!(output.status == Exit::Exited(0), "the writer: {}", output.stderr_text());
        live.detach()?;
        live.delete()?;
        without_trash(machine)?;
        let left = machine.sh(&format!("lvs -a --noheadings -o lv_name {BESIDE}"))?;
        ensure!(left.is_empty(), "{left}");
        expect_nothing_left(machine)
    })
}
