//! What LVM wrote, brought from the caches of its disks to the medium: LVM writes past every cache of the host, and
//! asks no disk to empty its own. Nothing is written here.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::Turn;
use crate::agent::blocking::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::lvm::state::VgState;

impl<H: Host> Turn<'_, H> {
    /// Makes what a VG holds last through a power cut, before anybody is told of it. Done once for each of its commits,
    /// whoever made it: an agent that was killed may have been about to.
    ///
    /// One disk that holds metadata is enough: LVM goes by the latest commit that it finds on any.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when no disk did so.
    pub(in crate::agent) async fn flush(&self, state: &VgState) -> Result<()> {
        if self.vg.flushed.load(Ordering::Relaxed) == state.seqno {
            return Ok(());
        }
        let devices: Vec<PathBuf> = state.pvs.values().filter_map(|pv| pv.device.clone()).collect();
        let asked = devices.clone();
        let flushing = blocking(&self.store.host, move |host| host.flush(&asked));
        let flushed = self.wait_for("emptying the caches of its disks", flushing).await;
        // Never a final code: what was asked for has happened, and whoever asked must not forget it.
        let flushed = flushed.map_err(|error| error.with_kind(ErrorKind::Unavailable))?;
        let mut done = false;
        for (device, flushed) in devices.iter().zip(flushed) {
            if let Err(error) = flushed {
                tracing::warn!(vg = %state.name, device = %device.display(), %error, "the disk does not empty its cache");
            } else {
                done |= self.disks.may_hold_metadata(device);
            }
        }
        if !done {
            return Err(Error::unavailable(format!(
                "no disk with the metadata of volume group {} empties its cache, so that what LVM wrote could go with the power: look at dmesg",
                state.name
            )));
        }
        self.vg.flushed.store(state.seqno, Ordering::Relaxed);
        Ok(())
    }
}
