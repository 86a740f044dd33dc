//! What LVM's own settings cost or save: the same commands with LVM's defaults, and with each setting that the driver
//! gives them. The driver takes no part in it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use cinderblock_lab::driver::Machine;
use serde_json::{Map, Value, json};

use super::samples::Samples;
use super::standalone::{self, VG};

/// How often each is measured, in turns: what the machine does meanwhile meets all of them.
const ROUNDS: usize = 15;

/// LVM's defaults, which the others are compared with.
const DEFAULTS: &str = "defaults";

/// The disks that LVM may open, as `--devices` has them, stand where this does.
const DISKS: &str = "DISKS";

/// Settings by their names, as arguments in a shell.
const SETTINGS: [(&str, &str); 9] = [
    (DEFAULTS, ""),
    (
        "no_udev",
        "--config 'activation{udev_sync=0 udev_rules=0} devices{obtain_device_list_from_udev=0}'",
    ),
    ("no_backup_no_archive", "--config 'backup{backup=0 archive=0}'"),
    ("no_monitoring", "--config 'activation{monitoring=0}'"),
    ("no_lvmpolld_no_dbus", "--config 'global{use_lvmpolld=0 notify_dbus=0}'"),
    ("no_hints", "--config 'devices{hints=\"none\"}'"),
    ("devices", "--devices DISKS"),
    ("devices_and_hints", "--config 'devices{hints=\"all\"}' --devices DISKS"),
    (
        "all_of_these",
        "--config 'activation{udev_sync=0 udev_rules=0 monitoring=0} backup{backup=0 archive=0} \
         devices{use_devicesfile=0 obtain_device_list_from_udev=0 hints=\"none\"} \
         global{use_lvmpolld=0 notify_dbus=0 event_activation=0}' --devices DISKS",
    ),
];

/// Commands by their names: each ends as it began.
const COMMANDS: [(&str, &str); 3] = [
    ("lvcreate_thin", "lvcreate -qq -y -W n -V 1g --thinpool pool0 -n settings VG"),
    ("lvremove_thin", "lvremove -qq -y VG/settings"),
    ("vgs", "vgs --noheadings -o vg_uuid VG"),
];

/// Measures, and says what each takes of what it takes with LVM's defaults: of the shortest times, as whatever else the
/// machine does only adds to them.
pub(super) fn measure() -> Result<Value> {
    let machine = &standalone::machine()?;
    let disks = machine
        .sh(&format!("pvs --noheadings -o pv_name -S vg_name={VG} | paste -sd, | tr -d ' '"))?;
    let mut times: BTreeMap<(&str, &str), Samples> = BTreeMap::new();
    for round in 0..ROUNDS {
        println!("bench: round {} of {ROUNDS}, LVM's settings", round + 1);
        for (setting, words) in SETTINGS {
            let words = words.replace(DISKS, disks.trim());
            for (command, of) in COMMANDS {
                let (program, rest) = of.split_once(' ').context("a command has arguments")?;
                let rest = rest.replace("VG", VG);
                let time = timed(machine, &format!("{program} {words} {rest}"))?;
                times.entry((command, setting)).or_default().add(time);
            }
        }
    }
    let mut told = Map::new();
    for (command, _) in COMMANDS {
        let shortest = |setting| times.get(&(command, setting)).map_or(0.0, Samples::shortest);
        let of_defaults =
            |setting| json!((shortest(setting) / shortest(DEFAULTS) * 100.0).round() / 100.0);
        let each =
            SETTINGS.iter().map(|(setting, _)| ((*setting).to_owned(), of_defaults(setting)));
        told.insert(command.to_owned(), each.collect());
    }
    Ok(Value::Object(told))
}

/// How long a command takes in the VM, without the call into it and the shell.
fn timed(machine: &Machine, command: &str) -> Result<Duration> {
    let script = format!(
        "start=$(date +%s%N); {command} >/dev/null 2>/tmp/said || {{ cat /tmp/said >&2; exit 1; }}; \
         echo $(( $(date +%s%N) - start ))"
    );
    let said = machine.sh(&script)?;
    Ok(Duration::from_nanos(said.trim().parse().with_context(|| format!("{command}: {said}"))?))
}
