//! What runs inside a VM: init, and its child that serves the host's calls. Nothing here runs on the host.

mod boot;
mod modules;
mod root;
mod server;
mod shutdown;
mod step;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::bootfile::BootFile;

/// First argument of the exec server.
const SERVE: &str = "serve";

/// The whole of the `lab-guest` program.
///
/// As process 1 it is the VM's init and never returns. As `lab-guest serve <folder>` it is the
/// exec server.
#[must_use]
pub fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let own = arguments.next().map(PathBuf::from).unwrap_or_default();
    if std::process::id() == 1 {
        boot::init(&own);
    }
    let mode = arguments.next().unwrap_or_default();
    if mode == SERVE {
        let folder = arguments.next().map(PathBuf::from).unwrap_or_default();
        let error = match BootFile::read(&folder) {
            Ok(boot) => match server::serve(&boot) {
                Ok(never) => match never {},
                Err(error) => error,
            },
            Err(error) => error,
        };
        eprintln!("lab-guest: the exec server ended: {error:#}");
        return ExitCode::FAILURE;
    }
    eprintln!("lab-guest is the init of the lab's VMs; there is nothing to run by hand");
    ExitCode::FAILURE
}
