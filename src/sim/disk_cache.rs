//! What disks would lose with the power because it is in their own caches: what LVM has committed and nobody has flushed.

use std::io;
use std::path::Path;

use super::world::{SimVg, World};

impl World {
    /// Has a disk write what is in its cache.
    pub(super) fn flush(&mut self, device: &Path) -> io::Result<()> {
        if self.no_flush {
            return Err(io::Error::other("an injected error"));
        }
        let has =
            |vg: &&mut SimVg| vg.state.pvs.values().any(|pv| pv.device.as_deref() == Some(device));
        let vg = self.vgs.values_mut().find(has).ok_or(io::ErrorKind::NotFound)?;
        vg.flushed = vg.state.seqno;
        Ok(())
    }

    /// Whether what a VG holds would be there after a power cut, whatever its disks have in their caches.
    #[must_use]
    pub fn is_flushed(&self, vg: &str) -> bool {
        let vg = self.vgs.values().find(|it| it.state.name.as_str() == vg);
        vg.is_some_and(|vg| vg.flushed == vg.state.seqno)
    }
}
