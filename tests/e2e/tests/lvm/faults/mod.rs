//! What happens to machines: the driver is killed and the power goes at random instants, for as long as it is told
//! (`cargo xtask test faults --for 2h`); and LVM, disks, filesystems and the node itself fail, each in its ways.

mod bad_disks;
mod bad_places;
mod broken_lvm;
mod cut_lvm;
mod cut_xfs;
mod damage;
mod disk_cache;
mod flaky;
mod held;
pub(crate) mod kills;
mod lookalikes;
mod moved;
mod poor_node;
mod power;
mod shaky;
mod watchdog;
