//! What the host tells a VM about itself: a JSON file beside the VM's init. It never holds what only the host needs.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The file's name, in the folder of the VM's init.
pub const NAME: &str = "boot.json";

/// Where the guest mounts its system disk for all to see; a real ext4 file system.
pub const SYSTEM_DISK: &str = "/run/lab/system";

/// The guest's system disk.
pub const SYSTEM_DEVICE: &str = "/dev/ubdb";

/// Starts the console line after which the exec server answers.
pub const READY: &str = "lab-guest: ready";

/// Starts the console line of a boot step.
pub const STEP: &str = "lab-guest: step: ";

/// Starts the console line that says which step failed and why.
pub const FAILED: &str = "lab-guest: failed: ";

/// What a VM must know to boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFile {
    /// The node's name, also its host name.
    pub node: String,
    /// This boot's secret: calls without it are refused.
    pub token: String,
    /// The node's address.
    pub address: Ipv4Addr,
    /// Prefix length of the network.
    pub prefix: u8,
    /// The host's address, and default gateway.
    pub gateway: Ipv4Addr,
    /// Thirty-two hexadecimal digits for /etc/machine-id.
    pub machine_id: String,
    /// Host folders that appear live and writable at the same path.
    pub shares: Vec<PathBuf>,
}

impl BootFile {
    /// Reads it from the folder of the VM's init.
    ///
    /// # Errors
    /// The file is not there or does not parse.
    pub fn read(folder: &Path) -> Result<Self> {
        let file = folder.join(NAME);
        let json = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        serde_json::from_slice(&json).with_context(|| format!("parsing {}", file.display()))
    }
}
