//! The commands that we give to LVM, and their argument lists. Pure; `host` runs them.
//!
//! Every call carries our whole configuration, so that no lvm.conf, devices file or filter of the
//! host has a say: volumes are never scanned for PVs (`scan_lvs=0`, and a filter for decrypted
//! devices), nothing is archived under /etc, errors come as JSON.
//!
//! A command that destroys or changes an LV names it by `--select` with the VG's and the LV's
//! identifiers and our tag: LVM itself proves under its own lock that it is the one we mean. Such a
//! call goes without the JSON log, because LVM 2.03.16 crashes when both are asked for; its result
//! is read back from the metadata anyway.

use std::path::{Path, PathBuf};

use super::args::{Args, Log, join};
use super::change::{Change, Range, Target};
use super::layout::ThickLayout;
use super::pool_command;
use super::tag::OWNED;
use crate::host::invocation::Invocation;
use crate::names::{LvName, LvmUuid, VgName};
use crate::units::{Bytes, Extents};

/// Room for LVM's metadata on each PV of a VG that we make: tens of thousands of tagged LVs
/// (about 600 bytes each), the text being kept at least twice.
const PV_METADATA_SIZE: Bytes = Bytes::mib(64);

/// Unit in which a copy-on-write snapshot keeps old blocks. The kernel holds an entry in memory for
/// each: at LVM's default of 4 KiB a large volume would need gigabytes.
pub const COW_CHUNK: Bytes = Bytes::kib(64);

/// One report of all VGs on all devices of the host.
#[must_use]
pub fn report() -> Invocation {
    let mut args =
        Args::new("fullreport", Log::Json).with(&["--all", "--units", "b", "--nosuffix"]);
    for (kind, fields) in super::report::FIELDS {
        args = args.with(&["--configreport", kind, "-o", &fields.join(",")]);
    }
    args.read()
}

/// LVM's version.
#[must_use]
pub fn version() -> Invocation {
    Args { list: vec!["version".to_owned()] }.read()
}

/// Makes a PV whose identifier proves later that it is ours.
#[must_use]
pub fn create_pv(device: &Path, uuid: &LvmUuid) -> Invocation {
    let path = device.to_string_lossy();
    Args::new("pvcreate", Log::Json)
        .with(&["--yes", "--devices", &path, "--uuid", uuid.as_str(), "--norestorefile"])
        .with(&["--metadatasize", &format!("{}b", PV_METADATA_SIZE.get()), &path])
        .change()
}

/// Makes a VG of PVs. What it holds is not activated by the host at boot, but by us when needed.
#[must_use]
pub fn create_vg(name: &VgName, devices: &[PathBuf]) -> Invocation {
    let mut args = Args::new("vgcreate", Log::Json)
        .with(&["--yes", "--devices", &join(devices)])
        .with(&["--setautoactivation", "n", "--addtag", OWNED, name.as_str()]);
    for device in devices {
        args = args.with(&[&*device.to_string_lossy()]);
    }
    args.change()
}

/// A change of a VG.
#[must_use]
pub fn change(target: &Target, change: &Change) -> Invocation {
    let vg = target.vg.as_str();
    let full = |lv: &LvName| format!("{vg}/{lv}");
    match change {
        Change::CreateThick { lv, extents, layout, on, tags } => {
            create_thick(target, lv, *extents, *layout, on, tags)
        }
        Change::CreateThin { lv, pool, size, tags } => create(
            target,
            lv,
            tags,
            vg,
            &[
                "--type",
                "thin",
                "--virtualsize",
                &format!("{}b", size.get()),
                "--thinpool",
                pool.as_str(),
            ],
        ),
        Change::SnapshotThin { lv, origin, tags } => {
            create(target, lv, tags, &full(origin), &["--snapshot", "--permission", "r"])
        }
        Change::SnapshotThick { lv, origin, store, tags } => {
            let (chunk, store) = (format!("{}b", COW_CHUNK.get()), store.get().to_string());
            let options = ["--type", "snapshot", "--permission", "r", "--chunksize", &chunk];
            create(
                target,
                lv,
                tags,
                &full(origin),
                &[&options[..], &["--extents", &store]].concat(),
            )
        }
        Change::SplitSnapshot { lv } => {
            Args::on(target, "lvconvert", Log::Json).with(&["--splitsnapshot", &full(lv)]).change()
        }
        Change::CloneThin { lv, origin, tags } => create(
            target,
            lv,
            tags,
            &full(origin),
            &["--snapshot", "--permission", "rw", "--setactivationskip", "n", "--activate", "y"],
        ),
        Change::Extend { lv, extents, from } => {
            let from: Vec<String> = from.iter().map(Range::argument).collect();
            Args::on(target, "lvextend", Log::Json)
                .with(&["--extents", &extents.get().to_string(), &full(lv)])
                .with(&from.iter().map(String::as_str).collect::<Vec<_>>())
                .change()
        }
        Change::ExtendMetadata { lv, size, from } => {
            pool_command::extend_metadata(target, lv, *size, from)
        }
        Change::Remove { uuid, .. } => {
            Args::on(target, "lvremove", Log::Plain).select_to_remove(target, uuid).change()
        }
        // lvrename(8) takes no --select: whoever gives the name proves what it means by the name.
        Change::Rename { lv, to } => {
            Args::on(target, "lvrename", Log::Json).with(&[vg, lv.as_str(), to.as_str()]).change()
        }
        Change::MakeWritable { uuid, .. } => Args::on(target, "lvchange", Log::Plain)
            .with(&["--permission", "rw"])
            .select(target, uuid)
            .change(),
        Change::Retag { uuid, add, del, .. } => Args::on(target, "lvchange", Log::Plain)
            .each("--addtag", add)
            .each("--deltag", del)
            .select(target, uuid)
            .change(),
        Change::Activate { lv } => to_kernel(target, lv, &ACTIVATE),
        Change::ActivateDegraded { lv } => {
            to_kernel(target, lv, &[&ACTIVATE[..], &["--activationmode", "partial"]].concat())
        }
        Change::Refresh { lv } => to_kernel(target, lv, &["--refresh"]),
        Change::ConvertToPool { lv, metadata, chunk_size } => {
            pool_command::convert(target, lv, metadata, *chunk_size)
        }
        Change::Tag { lv, add } => Args::on(target, "lvchange", Log::Json)
            .each("--addtag", add)
            .with(&[&full(lv)])
            .change(),
        Change::RemoveUnfinished { uuid, .. } => pool_command::remove_unfinished(target, uuid),
        Change::ReplaceLegs { lv } => {
            Args::on(target, "lvconvert", Log::Json).with(&["--repair", &full(lv)]).change()
        }
        // LVM's own name; nobody else may give it.
        Change::RemoveLostSpare => Args::on(target, "lvremove", Log::Plain)
            .with(&["--select", "lv_health_status=partial", &format!("{vg}/lvol0_pmspare")])
            .change(),
        Change::ForgetMissing => {
            Args::on(target, "vgreduce", Log::Json).with(&["--removemissing", vg]).change()
        }
        Change::ExtendVg { device } => {
            let devices = [target.devices.as_slice(), std::slice::from_ref(device)].concat();
            Args::new("vgextend", Log::Json)
                .with(&["--yes", "--devices", &join(&devices), vg, &device.to_string_lossy()])
                .change()
        }
    }
}

const ACTIVATE: [&str; 3] = ["--activate", "y", "--ignoreactivationskip"];

/// Gives the kernel something of an LV; the metadata stays as it is.
fn to_kernel(target: &Target, lv: &LvName, options: &[&str]) -> Invocation {
    let full = format!("{}/{lv}", target.vg);
    Args::on(target, "lvchange", Log::Json).with(options).with(&[&full]).change()
}

pub(super) fn create(
    target: &Target,
    lv: &LvName,
    tags: &[String],
    of: &str,
    options: &[&str],
) -> Invocation {
    Args::on(target, "lvcreate", Log::Json)
        .with(options)
        .with(&["--name", lv.as_str()])
        .each("--addtag", tags)
        .with(&[of])
        .change()
}

fn create_thick(
    target: &Target,
    lv: &LvName,
    extents: Extents,
    layout: ThickLayout,
    on: &[Range],
    tags: &[String],
) -> Invocation {
    let size = target.extent_size.size_of(extents);
    let mut options = ["--wipesignatures", "y", "--zero", "y"].map(str::to_owned).to_vec();
    options.extend(["--extents".to_owned(), extents.get().to_string()]);
    options.extend(layout.options(size));
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let mut call = create(target, lv, tags, target.vg.as_str(), &options);
    call.args.extend(on.iter().map(Range::argument));
    call
}

#[cfg(test)]
mod tests {
    use super::super::args::{CONFIG, CONFIG_JSON};
    use super::*;
    use crate::host::invocation::Effect;
    use crate::lvm::layout::RaidLevel;
    use crate::names::CRYPT_PREFIX;
    use crate::units::ExtentSize;

    fn target() -> Target {
        Target {
            vg: VgName::parse("vg0").unwrap(),
            uuid: LvmUuid::parse("9xijuU-B1GC-B7Fu-PXHq-P1oQ-unvP-b4f6Ov").unwrap(),
            extent_size: ExtentSize::new(4 << 20).unwrap(),
            devices: vec!["/dev/sdb".into(), "/dev/disk/by-id/x".into()],
        }
    }

    /// One line an argument list; the configuration, the same in all, is shown once.
    fn lines(calls: &[Invocation]) -> String {
        let line = |call: &Invocation| {
            let args = call.args.iter().map(|a| match a.as_str() {
                CONFIG => "<CONFIG>".to_owned(),
                a if a == [CONFIG, CONFIG_JSON].concat() => "<CONFIG+JSON>".to_owned(),
                a => a.to_owned(),
            });
            format!("{:?} {}", call.effect, args.collect::<Vec<_>>().join(" "))
        };
        calls.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn argument_lists() {
        let lv = |name: &str| LvName::parse(name).unwrap();
        let uuid = LvmUuid::parse("LIzauM-HExZ-Tumu-tpuc-qokj-fSCW-AVLTZv").unwrap();
        let tags = vec![OWNED.to_owned(), "cb.volume".to_owned()];
        let raid = |level, legs, stripe_size| Change::CreateThick {
            lv: lv("pvc-1"),
            extents: Extents::new(12),
            layout: ThickLayout::Raid { level, legs, stripe_size },
            on: vec![Range { device: "/dev/sdb".into(), start: 0, len: 100 }],
            tags: tags.clone(),
        };
        let changes = [
            Change::CreateThick {
                lv: lv("pvc-1"),
                extents: Extents::new(256),
                layout: ThickLayout::Linear,
                on: vec![],
                tags: tags.clone(),
            },
            Change::CreateThick {
                lv: lv("pvc-1"),
                extents: Extents::new(256),
                layout: ThickLayout::Striped { stripes: 2, stripe_size: Bytes::kib(64) },
                on: vec![],
                tags: tags.clone(),
            },
            raid(RaidLevel::Raid1, 2, Bytes::ZERO),
            raid(RaidLevel::Raid6, 5, Bytes::kib(64)),
            raid(RaidLevel::Raid10, 4, Bytes::kib(64)),
            Change::CreateThin {
                lv: lv("pvc-1"),
                pool: lv("pool0"),
                size: Bytes::gib(1),
                tags: tags.clone(),
            },
            Change::SnapshotThin { lv: lv("snap-1"), origin: lv("pvc-1"), tags: tags.clone() },
            Change::CloneThin { lv: lv("pvc-2"), origin: lv("snap-1"), tags },
            Change::Extend { lv: lv("pvc-1"), extents: Extents::new(512), from: vec![] },
            Change::Extend {
                lv: lv("pvc-1"),
                extents: Extents::new(512),
                from: vec![Range { device: "/dev/sdb".into(), start: 100, len: 256 }],
            },
            Change::ExtendMetadata { lv: lv("pool0"), size: Bytes::mib(32), from: vec![] },
            Change::Remove { lv: lv("pvc-1"), uuid: uuid.clone() },
            Change::Rename { lv: lv("pvc-1"), to: LvName::trash(&uuid) },
            Change::MakeWritable { lv: lv("snap-1"), uuid: uuid.clone() },
            Change::Retag {
                lv: lv("pvc-1"),
                uuid,
                add: vec!["cb.x=1".to_owned()],
                del: vec!["cb.fresh".to_owned()],
            },
            Change::Activate { lv: lv("pvc-1") },
            Change::ActivateDegraded { lv: lv("pvc-1") },
            Change::Refresh { lv: lv("pvc-1") },
            Change::ConvertToPool {
                lv: lv("pool0"),
                metadata: lv("pool0").pool_metadata(),
                chunk_size: Bytes::kib(64),
            },
            Change::Tag { lv: lv("pool0"), add: vec![OWNED.to_owned()] },
            Change::RemoveUnfinished { lv: lv("lvol0"), uuid: LvmUuid::derived("lvol0") },
            Change::ReplaceLegs { lv: lv("pvc-1") },
            Change::RemoveLostSpare,
            Change::ForgetMissing,
            Change::ExtendVg { device: "/dev/sdc".into() },
        ];
        let mut calls = vec![report(), version()];
        calls.push(create_pv(Path::new("/dev/sdb"), &LvmUuid::derived("x")));
        calls.push(create_vg(&target().vg, &target().devices));
        calls.extend(changes.iter().map(|c| change(&target(), c)));
        insta::assert_snapshot!(lines(&calls));
        insta::assert_snapshot!("configuration", [CONFIG, CONFIG_JSON].concat());
        assert!(CONFIG.contains(&format!("r|^/dev/mapper/{CRYPT_PREFIX}|")));
    }

    #[test]
    fn only_reports_may_be_given_up() {
        let calls = [
            create_pv(Path::new("/dev/sdb"), &LvmUuid::derived("x")),
            create_vg(&target().vg, &[]),
        ];
        assert!(calls.iter().all(|c| c.effect == Effect::Change));
        assert!(matches!(report().effect, Effect::Read(_)));
    }
}
