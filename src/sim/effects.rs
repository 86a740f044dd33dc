//! What the agent does to the simulated host, and sees of it: [`Host`], with the world in the place of
//! a kernel. What strikes an effect, and when, is never decided here.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::JoinError;

use super::fault::Mode;
use super::host::{Pass, SimHost};
use super::world::{Holds, MAJOR, World};
use super::{cut, lvm, print, programs};
use crate::host::block::Disk;
use crate::host::copy::{Copied, Copier};
use crate::host::dm::DmDevice;
use crate::host::dm_status::{DmStatus, Layer};
use crate::host::dm_undo::Halves;
use crate::host::invocation::{Invocation, Program};
use crate::host::luks::COPY_AT;
use crate::host::mount::MountCall;
use crate::host::mountinfo::{Mount, MountTable};
use crate::host::runner::{Completed, Exit, RunError};
use crate::host::{FilesystemUsage, Host, PathKind, Usage, superblock, xfs_log};
use crate::lvm::tag::{FsType, Wipe};
use crate::names::{LvmUuid, VgName};
use crate::units::Bytes;

impl SimHost {
    fn execute(&self, call: &Invocation) -> Completed {
        let mut world = self.world();
        if call.program == Program::Lvm {
            lvm::run(&mut world, &call.args)
        } else {
            programs::run(&mut world, call)
        }
    }
}

/// That many bytes of it, and zeroes where it has no more.
fn sized(mut bytes: Vec<u8>, len: usize) -> Vec<u8> {
    bytes.resize(len, 0);
    bytes
}

fn not_found(what: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} is not there", what.display()))
}

impl Host for SimHost {
    async fn run(&self, call: &Invocation) -> Result<Completed, RunError> {
        self.take_time().await;
        let reads = match call.program {
            Program::Lvm => lvm::is_read(&call.args),
            _ => programs::is_read(call),
        };
        let dead = || RunError::Start(call.label(), io::Error::other("the process is dead"));
        self.alive().map_err(|_| dead())?;
        self.note_run(call.label());
        if reads {
            let done = self.execute(call);
            self.be_late(&call.to_string()).await;
            return Ok(done);
        }
        if call.program == Program::Lvm {
            self.hang(&call.to_string()).await;
        }
        match self.pass(call.to_string()) {
            Pass::Dead => Err(dead()),
            Pass::Free => Ok(self.execute(call)),
            Pass::Strike(Mode::Cut) if cut::has_midst(call) => {
                cut::run(&mut self.world(), call);
                let (stdout, stderr) = (String::new(), String::new());
                Ok(Completed { exit: Exit::Signal(9), stdout, stderr })
            }
            Pass::Strike(mode) => {
                if mode.happens() {
                    self.execute(call);
                }
                match mode {
                    Mode::Fail | Mode::FailAfter | Mode::Cut => Ok(Completed {
                        exit: Exit::Code(5),
                        stdout: String::new(),
                        stderr: "injected fault".to_owned(),
                    }),
                    Mode::Lose => Err(RunError::Lost(call.label(), io::Error::other("injected"))),
                    Mode::KillBefore | Mode::KillAfter => Err(dead()),
                }
            }
        }
    }

    /// Nothing blocks here: so that everything has its order, it is done by the caller.
    async fn apart<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        self.take_time().await;
        let done = work(self);
        Ok(self.answer(done).await)
    }

    fn device(&self, dm_name: &str) -> io::Result<Option<DmDevice>> {
        self.ask(dm_name)?;
        self.alive()?;
        Ok(self.world().device(dm_name))
    }

    fn device_status(&self, dm_name: &str) -> io::Result<Option<DmStatus>> {
        self.ask(dm_name)?;
        self.alive()?;
        let world = self.world();
        if let Some(line) = world.pool_status(dm_name) {
            let targets = vec![("thin-pool".to_owned(), line)];
            return Ok(Some(DmStatus { open_count: 1, targets }));
        }
        if let Some(line) = world.cow_status(dm_name) {
            let targets = vec![("snapshot".to_owned(), line)];
            return Ok(Some(DmStatus { open_count: 0, targets }));
        }
        let line = world.raid_status(dm_name).map(|line| ("raid".to_owned(), line));
        let targets: Vec<_> = line.into_iter().collect();
        let Some(device) = world.device(dm_name) else {
            // A part of a pool: nobody has it but the pool.
            let part = DmStatus { open_count: 1, targets };
            return Ok(Some(part).filter(|part| !part.targets.is_empty()));
        };
        let held = world.lv_at(&device.node).map(|(_, lv)| &lv.uuid);
        let held = held.filter(|_| world.mapping_at(&device.node).is_none());
        let open = world.users(&device.node);
        let open =
            open.saturating_add(world.mappings.values().filter(|m| Some(&m.lv) == held).count());
        let open_count = u32::try_from(open).unwrap_or(u32::MAX);
        Ok(Some(DmStatus { open_count, targets }))
    }

    fn read_device(&self, device: &Path, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        self.ask(&device.to_string_lossy())?;
        self.alive()?;
        let mut world = self.world();
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let image = if let Some(node) = world.disk_node(device) {
            match world.disks.get(&node).map(|d| d.holds.clone()) {
                Some(Holds::Pv(pv)) => print::pv_image(&world, &pv),
                _ => vec![],
            }
        } else if let Some(copy) = world.luks_copy(device).filter(|_| offset == COPY_AT) {
            return Ok(sized(crate::host::luks::print(&copy.header), len));
        } else if let Some(luks) = world.luks_mut(device) {
            crate::host::luks::print(&luks.header)
        } else {
            let content = world.content_mut(device).ok_or_else(|| not_found(device))?;
            let head = content.superblock.as_ref().map(superblock::print).unwrap_or_default();
            if xfs_log::begins_at(&head) == Some(offset) {
                let of = content.superblock.filter(|_| !content.log_cut).map(|sb| sb.uuid);
                return Ok(sized(xfs_log::print(of), len));
            }
            head
        };
        Ok(sized(image.get(from..).unwrap_or_default().to_vec(), len))
    }

    fn write_device(&self, device: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.effect(format!("write {} {offset} {}", device.display(), bytes.len()), |world| {
            if world.write_luks(device, offset, bytes) {
                return Ok(());
            }
            let content = world.content_mut(device).ok_or_else(|| not_found(device))?;
            let mut head = content.superblock.as_ref().map(superblock::print).unwrap_or_default();
            let at = usize::try_from(offset).map_err(io::Error::other)?;
            if let Some(room) = head.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
                room.copy_from_slice(bytes);
                content.superblock = superblock::parse(&head);
            }
            Ok(())
        })
    }

    fn flush(&self, devices: &[PathBuf]) -> Vec<io::Result<()>> {
        let flush = |device: &PathBuf| {
            self.ask(&device.to_string_lossy())?;
            self.alive()?;
            self.world().flush(device)
        };
        devices.iter().map(flush).collect()
    }

    fn zero_device(&self, device: &Path, offset: u64, len: u64) -> io::Result<()> {
        self.effect(format!("zero {} {offset} {len}", device.display()), |world| {
            if world.zero(device, offset, len) { Ok(()) } else { Err(not_found(device)) }
        })
    }

    fn clear_device(&self, device: &Path, how: Wipe, offset: u64, len: u64) -> io::Result<()> {
        self.effect(format!("{how} {} {offset} {len}", device.display()), |world| {
            let held = world.lv_at(device).map(|(_, lv)| lv.uuid.clone());
            if world.users(device) > 0
                || world.mappings.values().any(|m| Some(&m.lv) == held.as_ref())
            {
                return Err(io::ErrorKind::ResourceBusy.into());
            }
            if world.no_discard && how == Wipe::Discard {
                return Err(io::ErrorKind::Unsupported.into());
            }
            if world.read_only(device) {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            if world.zero(device, offset, len) { Ok(()) } else { Err(not_found(device)) }
        })
    }

    fn copy_device(&self, devices: &mut Copier, offset: u64, len: u64) -> io::Result<Copied> {
        let (from, to) = (&devices.from, &devices.to);
        let what = format!("copy {} to {} {offset} {len}", from.display(), to.display());
        self.effect(what, |world| world.copy(from, to, (offset, len)))
    }

    fn disk(&self, path: &Path) -> io::Result<Disk> {
        self.alive()?;
        let world = self.world();
        let node = world.disk_node(path).ok_or_else(|| not_found(path))?;
        let disk = world.disks.get(&node).ok_or_else(|| not_found(path))?;
        let in_vg = matches!(&disk.holds, Holds::Pv(pv) if world.vgs.values().any(|vg| vg.state.pvs.contains_key(pv)));
        let size = disk.size;
        Ok(Disk { node, size, partitions: vec![], holders: vec![], claimed: in_vg })
    }

    fn mounts(&self) -> io::Result<MountTable> {
        self.alive()?;
        Ok(MountTable::new(self.world().mounts.clone()))
    }

    fn mount(&self, call: &MountCall) -> io::Result<()> {
        self.ask(&format!("{call:?}"))?;
        self.effect(format!("{call:?}"), |world| mount(world, call))
    }

    fn unmount(&self, target: &Path) -> io::Result<()> {
        self.ask(&target.to_string_lossy())?;
        self.effect(format!("unmount {}", target.display()), |world| {
            let at = world.mounts.iter().rposition(|m| m.target == target);
            let at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
            world.mounts.remove(at);
            Ok(())
        })
    }

    fn path_kind(&self, path: &Path) -> io::Result<PathKind> {
        self.ask(&path.to_string_lossy())?;
        self.alive()?;
        let world = self.world();
        let over = world.mounts.iter().rev().find(|m| m.target == path);
        if let Some(mount) = over.filter(|m| m.fs_type == "devtmpfs") {
            let node = Path::new("/dev").join(mount.root.strip_prefix("/").unwrap_or(&mount.root));
            let name = node.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(device) = world.device(&name) {
                return Ok(PathKind::BlockDevice(device.number));
            }
        }
        Ok(world.paths.get(path).copied().unwrap_or(PathKind::Absent))
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        self.effect(format!("mkdir {}", path.display()), |world| {
            world.paths.entry(path.to_owned()).or_insert(PathKind::Directory);
            Ok(())
        })
    }

    fn make_file(&self, path: &Path) -> io::Result<()> {
        self.effect(format!("touch {}", path.display()), |world| {
            world.paths.entry(path.to_owned()).or_insert(PathKind::File);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.effect(format!("remove {}", path.display()), |world| {
            if world.mounts.iter().any(|m| m.target == path) {
                return Err(io::ErrorKind::ResourceBusy.into());
            }
            world.paths.remove(path);
            Ok(())
        })
    }

    fn remove_dead_links(&self, _directory: &Path) -> io::Result<()> {
        // The simulated host has no links.
        self.alive()
    }

    fn remove_unfinished_device(&self, _: &str) -> io::Result<bool> {
        // What is simulated is there as a whole or not at all.
        self.alive().map(|()| false)
    }

    fn resume_mappings(&self) -> io::Result<Vec<(String, io::Result<()>)>> {
        self.alive()?;
        Ok(self.world().resume_mappings().into_iter().map(|name| (name, Ok(()))).collect())
    }

    fn layers(&self, vg: &LvmUuid) -> io::Result<Vec<Layer>> {
        self.alive()?;
        Ok(self.world().layers(vg))
    }

    fn take_back(&self, vg: &VgName, halves: &Halves) -> io::Result<bool> {
        self.alive()?;
        if !self.world().has_half(halves) {
            return Ok(true);
        }
        self.effect(format!("take back in {vg}"), |world| {
            world.take_back(halves);
            Ok(true)
        })
    }

    fn has_files(&self, device: &Path, _: FsType) -> io::Result<Option<bool>> {
        self.alive()?;
        let mut world = self.world();
        let content = world.content_mut(device).ok_or_else(|| not_found(device))?;
        Ok(Some(!content.data.is_empty()))
    }

    fn filesystem_usage(&self, path: &Path) -> io::Result<FilesystemUsage> {
        self.ask(&path.to_string_lossy())?;
        self.alive()?;
        let mut world = self.world();
        let source = world.mounts.iter().rev().find(|m| m.target == path).map(|m| m.source.clone());
        let superblock = source.and_then(|s| world.content_mut(&s).and_then(|c| c.superblock));
        let total = superblock.ok_or_else(|| not_found(path))?.size.get();
        let bytes = Usage { total, used: 0, available: total };
        Ok(FilesystemUsage { bytes, inodes: Usage { total: 1000, used: 11, available: 989 } })
    }

    fn block_size(&self, path: &Path) -> io::Result<((u32, u32), Bytes)> {
        let kind = self.path_kind(path)?;
        let world = self.world();
        let device = world.active.keys().filter_map(|name| world.device(name));
        let found = device.into_iter().find(|d| kind == PathKind::BlockDevice(d.number));
        found.map(|d| (d.number, d.size)).ok_or_else(|| not_found(path))
    }
}

fn mount(world: &mut World, call: &MountCall) -> io::Result<()> {
    let mount = match call {
        MountCall::Device { device, target, fs, options } => {
            let found = world.filesystem_at(device).ok_or_else(|| not_found(device))?;
            let uuid = world.content_mut(device).and_then(|c| c.superblock).map(|sb| sb.uuid);
            let twin = world.mounts.iter().map(|m| m.source.clone()).collect::<Vec<_>>();
            let twin = twin.iter().any(|source| {
                source != device
                    && world.content_mut(source).and_then(|c| c.superblock).map(|sb| sb.uuid)
                        == uuid
            });
            let nouuid = options.iter().any(|option| option == "nouuid");
            let log_cut = world.content_mut(device).is_some_and(|c| c.log_cut);
            // XFS and btrfs take no second filesystem of the same UUID.
            if log_cut || found != *fs || (twin && !nouuid && *fs != FsType::Ext4) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let name = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let number = world.device(&name).map_or((MAJOR, 0), |d| d.number);
            Mount {
                device: number,
                root: "/".into(),
                target: target.clone(),
                read_only: options.iter().any(|o| o == "ro"),
                fs_type: fs.to_string(),
                source: device.clone(),
                super_options: options.clone(),
            }
        }
        MountCall::Bind { source, target, options } => {
            let read_only = options.iter().any(|o| o == "ro");
            let of = world.mounts.iter().rev().find(|m| m.target == *source).cloned();
            match of {
                Some(of) => Mount { target: target.clone(), read_only, ..of },
                None => Mount {
                    device: (0, 5),
                    root: Path::new("/").join(source.strip_prefix("/dev").unwrap_or(source)),
                    target: target.clone(),
                    read_only,
                    fs_type: "devtmpfs".to_owned(),
                    source: "udev".into(),
                    super_options: vec![],
                },
            }
        }
    };
    // A device is bound over a file, and a filesystem is mounted over a directory.
    let is_device = mount.fs_type == "devtmpfs";
    match world.paths.get(&mount.target) {
        None => return Err(not_found(&mount.target)),
        Some(PathKind::Directory) if is_device => return Err(io::ErrorKind::IsADirectory.into()),
        Some(PathKind::File) if !is_device => return Err(io::ErrorKind::NotADirectory.into()),
        Some(_) => {}
    }
    world.mounts.push(mount);
    Ok(())
}
