//! The decrypted device of an encrypted volume: whether it is there, and taking it away. Both go by
//! the volume's id alone.

use super::Agent;
use super::blocking::{On, within};
use super::device::KERNEL_TIMEOUT;
use crate::error::{Error, Result};
use crate::host::dm::DmDevice;
use crate::host::invocation::Invocation;
use crate::host::runner::Completed;
use crate::host::{Host, luks};
use crate::lvm::state::{Lv, VgState};
use crate::names::Handle;
use crate::units::Bytes;

impl<H: Host> Agent<H> {
    /// The device that a volume's user gets, when it is there.
    pub(super) async fn user_device(&self, state: &VgState, lv: &Lv) -> Result<Option<DmDevice>> {
        if lv.tags.luks { self.mapping(state, lv).await } else { self.device(state, lv).await }
    }

    /// The decrypted device of an encrypted volume.
    pub(super) async fn mapping(&self, state: &VgState, lv: &Lv) -> Result<Option<DmDevice>> {
        let Some(device) = self.any_mapping(&state.handle(&lv.name)).await? else {
            return Ok(None);
        };
        if luks::is_mapping(&device, lv.uuid.luks_uuid()) {
            return Ok(Some(device));
        }
        Err(Error::failed_precondition(format!(
            "the decrypted device {} is not that of volume {}: its uuid is {}; if nobody uses it, close it with cryptsetup close {}",
            device.name, lv.name, device.uuid, device.name
        )))
    }

    /// Takes the decrypted device of a volume away, whatever became of the volume. None there is
    /// fine, and so it is for a volume that is not encrypted.
    pub(super) async fn close_mapping(&self, volume: &Handle) -> Result<()> {
        let Some(device) = self.any_mapping(volume).await? else {
            return self.clear_unfinished(&volume.crypt_name()).await;
        };
        let mounts = self.mounts().await?;
        if let Some(bound) = self.bound_node(&mounts, &device).await? {
            return Err(Error::failed_precondition(format!(
                "volume {} is still published at {}",
                volume.lv,
                bound.target.display()
            )));
        }
        let ran = self.cryptsetup(&luks::close(&device.name)).await;
        // Whatever it said: the kernel knows.
        if self.any_mapping(volume).await?.is_none() {
            return Ok(());
        }
        let done = ran?;
        Err(Error::failed_precondition(format!(
            "cannot close the decrypted device {} of volume {}: {}",
            device.name,
            volume.lv,
            done.complaint()
        )))
    }

    /// Closes what a call that was cut has left open, so that the volume can be removed.
    pub(super) async fn close_if_idle(&self, state: &VgState, volume: &Handle) -> Result<()> {
        let Some(lv) = state.lvs.get(&volume.lv).filter(|lv| lv.tags.luks) else { return Ok(()) };
        let Some(mapping) = self.mapping(state, lv).await? else { return Ok(()) };
        if self.users_of(mapping).await?.is_empty() {
            self.close_mapping(volume).await
        } else {
            Ok(())
        }
    }

    async fn any_mapping(&self, volume: &Handle) -> Result<Option<DmDevice>> {
        let name = volume.crypt_name();
        let what = format!("device {name}");
        let found = within(&self.0.store, On::Vg(&volume.vg), KERNEL_TIMEOUT, &what, move |host| {
            host.device(&name)
        })
        .await?
        .map_err(|e| Error::host(format!("cannot look up {what}")).because(e))?;
        // One without a size was never finished.
        Ok(found.filter(|device| device.size > Bytes::ZERO))
    }

    /// Takes away what a cryptsetup left that was killed while it made a device: it would be in the way
    /// for ever.
    pub(super) async fn clear_unfinished(&self, name: &str) -> Result<()> {
        let (asked, what) = (name.to_owned(), format!("device {name}"));
        let cleared = within(&self.0.store, On::Kernel(name), KERNEL_TIMEOUT, &what, move |host| {
            host.remove_unfinished_device(&asked)
        });
        if cleared.await?.map_err(|e| Error::host(format!("cannot remove {what}")).because(e))? {
            tracing::warn!(device = name, "removed a decrypted device that was never finished");
        }
        Ok(())
    }

    /// Resumes decrypted devices that a cryptsetup left suspended which was killed: whoever uses one would
    /// wait for ever. One that cannot be resumed is told, and keeps nobody else.
    pub(super) async fn resume_mappings(&self) {
        let what = "the decrypted devices";
        let found =
            match within(&self.0.store, On::Kernel(what), KERNEL_TIMEOUT, what, H::resume_mappings)
                .await
            {
                Ok(found) => {
                    found.map_err(|e| Error::host(format!("cannot look up {what}")).because(e))
                }
                Err(error) => Err(error),
            };
        match found {
            Ok(found) => found.iter().for_each(tell_resumed),
            Err(error) => {
                tracing::error!(
                    error = error.chain(),
                    "a decrypted device may be suspended: look with dmsetup info"
                );
            }
        }
    }

    /// Runs cryptsetup on a device that is in use, and suspended meanwhile.
    pub(super) async fn resize_mapping(&self, call: &Invocation) -> Result<Completed> {
        let ran = self.cryptsetup(call).await;
        let whole = matches!(&ran, Ok(done) if done.success());
        if !whole {
            self.resume_mappings().await;
        }
        ran
    }

    /// Runs cryptsetup to its end, whatever that is.
    pub(super) async fn cryptsetup(&self, call: &Invocation) -> Result<Completed> {
        self.0.store.host.run(call).await.map_err(|e| {
            Error::unavailable(format!("{} did not come to an end", call.label())).because(e)
        })
    }
}

fn tell_resumed((device, done): &(String, std::io::Result<()>)) {
    match done {
        Ok(()) => {
            tracing::error!(
                device,
                "cryptsetup was cut while it held this: whoever uses it waited; it is resumed"
            );
        }
        Err(error) => {
            tracing::error!(
                device,
                %error,
                "this is suspended and cannot be resumed: whoever uses it waits; try dmsetup resume, or cryptsetup luksResume after a luksSuspend"
            );
        }
    }
}
