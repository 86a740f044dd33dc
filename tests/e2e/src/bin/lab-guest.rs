//! Init of the lab's VMs; everything is in the library's `guest`, as host and guest share the protocol.

use std::process::ExitCode;

fn main() -> ExitCode {
    cinderblock_lab::guest::main()
}
