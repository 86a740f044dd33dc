//! A lab per test, taken down at its end. No test lives here.

use std::fs;
use std::path::Path;

use anyhow::Result;
use cinderblock_lab::{Lab, NodeSpec, console, packages};

/// The program that the VMs start, as cargo built it for these tests.
pub(crate) const GUEST: &str = env!("CARGO_BIN_EXE_lab-guest");

pub(crate) const GIB: u64 = 1 << 30;

/// A lab in a folder of its own below `target/tmp`; down when dropped, with the consoles shown after
/// a panic. The console logs stay.
pub(crate) struct TestLab {
    pub(crate) lab: Lab,
}

/// An error when this machine cannot run VMs.
pub(crate) fn test_lab(name: &str) -> Result<TestLab> {
    anyhow::ensure!(rustix::process::geteuid().is_root(), "VMs need root");
    packages::check()?;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lab").join(name);
    let lab = Lab::at(name, &folder)?.with_guest(Path::new(GUEST));
    // What a run left behind that was killed.
    lab.down()?;
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    Ok(TestLab { lab })
}

/// A small node.
pub(crate) fn small(index: u8) -> NodeSpec {
    NodeSpec::new(index).memory_mib(320)
}

impl Drop for TestLab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in self.lab.nodes().unwrap_or_default() {
                println!("{}:\n{}", node.console().display(), console::tail(&node.console(), 30));
            }
        }
        if let Err(error) = self.lab.down() {
            println!("{error:#}");
        }
    }
}
