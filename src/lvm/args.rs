//! The argument lists that all commands have in common: the configuration, the devices, and how an LV
//! is proved to be the one that is meant. Pure.

use std::path::PathBuf;
use std::time::Duration;

use super::change::Target;
use super::tag::OWNED;
use crate::host::invocation::{Effect, Input, Invocation, Program};
use crate::names::LvmUuid;

/// How long a report may take. LVM reads every disk of the host; a disk that hangs takes as long
/// as it wants, and the report is given up.
const REPORT_TIMEOUT: Duration = Duration::from_mins(1);

pub(super) const CONFIG: &str = concat!(
    "activation{udev_sync=0 udev_rules=0 monitoring=0 retry_deactivation=1 error_when_full=1} ",
    "backup{backup=0 archive=0} ",
    "devices{use_devicesfile=0 obtain_device_list_from_udev=0 scan_lvs=0 hints=\"none\" ",
    // Other names of these devices must match nothing: one that is accepted by any name is scanned.
    "global_filter=[\"r|^/dev/mapper/cb-crypt-|\"] filter=[\"a|.*|\"]} ",
    "global{use_lvmpolld=0 notify_dbus=0 use_lvmlockd=0 event_activation=0} ",
);
pub(super) const CONFIG_JSON: &str = concat!(
    "log{report_command_log=1 command_log_selection=\"all\" prefix=\"\"} ",
    "report{output_format=\"json\" time_format=\"%s\"}",
);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Log {
    Json,
    Plain,
}

pub(super) struct Args {
    pub(super) list: Vec<String>,
}

impl Args {
    pub(super) fn new(command: &str, log: Log) -> Self {
        let config = match log {
            Log::Json => [CONFIG, CONFIG_JSON].concat(),
            Log::Plain => CONFIG.to_owned(),
        };
        Self { list: vec![command.to_owned(), "--config".to_owned(), config] }
    }

    pub(super) fn on(target: &Target, command: &str, log: Log) -> Self {
        Self::new(command, log).with(&["--yes", "--devices", &join(&target.devices)])
    }

    pub(super) fn with(mut self, more: &[&str]) -> Self {
        self.list.extend(more.iter().map(|arg| (*arg).to_owned()));
        self
    }

    pub(super) fn each(mut self, option: &str, values: &[String]) -> Self {
        for value in values {
            self = self.with(&[option, value]);
        }
        self
    }

    pub(super) fn select(self, target: &Target, lv: &LvmUuid) -> Self {
        let vg = &target.uuid;
        let proof = format!("vg_uuid=\"{vg}\" && lv_uuid=\"{lv}\" && lv_tags={{\"{OWNED}\"}}");
        self.with(&["--select", &proof, target.vg.as_str()])
    }

    /// The same, unless the LV has thick snapshots: LVM would remove them with it.
    pub(super) fn select_to_remove(self, target: &Target, lv: &LvmUuid) -> Self {
        let vg = &target.uuid;
        let proof = format!(
            "vg_uuid=\"{vg}\" && lv_uuid=\"{lv}\" && lv_tags={{\"{OWNED}\"}} && lv_attr!~\"^[oO]\""
        );
        self.with(&["--select", &proof, target.vg.as_str()])
    }

    pub(super) fn read(self) -> Invocation {
        let effect = Effect::Read(REPORT_TIMEOUT);
        Invocation { program: Program::Lvm, args: self.list, effect, input: Input::Nothing }
    }

    pub(super) fn change(self) -> Invocation {
        Invocation {
            program: Program::Lvm,
            args: self.list,
            effect: Effect::Change,
            input: Input::Nothing,
        }
    }
}

pub(super) fn join(devices: &[PathBuf]) -> String {
    let texts: Vec<_> = devices.iter().map(|d| d.to_string_lossy()).collect();
    texts.join(",")
}
