//! How many programs ran in a VM, told by its kernel's process accounting: outside the driver, and with nothing put between it and LVM. Who started them is not known here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::vm::Node;

/// On a tmpfs of the VM: small, and gone with the boot that it tells about.
const FILE: &str = "/run/process-accounting";

/// There is no program for acct(2) on a plain machine; its number is that of x86-64.
const SWITCH_ON: &str = r#"open my $file, ">", $ARGV[0] or die "$!\n"; syscall(163, $ARGV[0]) == 0 or die "acct: $!\n""#;

/// A record of version 2, as `acct(5)` has it, and where in it the program's name is.
const RECORD: usize = 64;
const VERSION: u8 = 2;
const NAME: std::ops::Range<usize> = 36..53;

/// Programs that ended, by the names of their files (15 bytes at most), and how many of each.
pub type Programs = BTreeMap<String, usize>;

/// Counts the programs that end in one boot of a VM.
///
/// The driver starts LVM as `lvm`, and a person's `lvs` is counted as `lvs`: so the two are apart, as
/// long as nobody else runs `lvm`. A program that is waited for is counted before its parent knows that
/// it ended. Programs in containers count as well.
#[derive(Debug)]
pub struct LvmCount {
    node: Node,
    file: PathBuf,
}

impl LvmCount {
    /// Begins to count; what was counted before is gone. After a boot of the VM take a new one.
    ///
    /// # Errors
    /// The VM does not answer, or its kernel has no process accounting.
    pub fn start(node: &Node) -> Result<Self> {
        node.exec(["perl", "-e", SWITCH_ON, FILE])
            .text()
            .with_context(|| format!("switching on process accounting on {}", node.name()))?;
        Ok(Self { node: node.clone(), file: FILE.into() })
    }

    /// All programs that ended since the start.
    ///
    /// # Errors
    /// The VM does not answer, or the kernel's records are not understood.
    pub fn programs(&self) -> Result<Programs> {
        parse(&records(&self.node, &self.file)?)
    }

    /// Does something, and tells which programs ended meanwhile, without those that look.
    ///
    /// # Errors
    /// As [`LvmCount::programs`].
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> Result<(T, Programs)> {
        let before = records(&self.node, &self.file)?.len();
        let done = work();
        let after = records(&self.node, &self.file)?;
        let since = after.get(before..).context("the kernel began its records anew")?;
        let mut programs = parse(since)?;
        // The look before ended after it had read.
        programs.remove("cat");
        Ok((done, programs))
    }

    /// Does something, and tells how many LVM processes of the driver ended meanwhile.
    ///
    /// # Errors
    /// As [`LvmCount::programs`].
    pub fn lvm_during<T>(&self, work: impl FnOnce() -> T) -> Result<(T, usize)> {
        let (done, programs) = self.during(work)?;
        Ok((done, programs.get("lvm").copied().unwrap_or_default()))
    }
}

fn records(node: &Node, file: &Path) -> Result<Vec<u8>> {
    let output = node.exec(["cat", &file.display().to_string()]).run()?;
    ensure!(
        output.status.success(),
        "node {} counts no programs in this boot: {}",
        node.name(),
        output.stderr_text()
    );
    Ok(output.stdout)
}

fn parse(bytes: &[u8]) -> Result<Programs> {
    let (records, rest) = bytes.as_chunks::<RECORD>();
    ensure!(rest.is_empty(), "the kernel's records of programs are not of {RECORD} bytes");
    let mut programs = Programs::new();
    for record in records {
        ensure!(
            record[1] == VERSION,
            "the kernel's records of programs are of version {}, not {VERSION}",
            record[1]
        );
        let name = record[NAME].split(|byte| *byte == 0).next().unwrap_or_default();
        *programs.entry(String::from_utf8_lossy(name).into_owned()).or_default() += 1;
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_the_kernel() {
        let record = |name: &str| {
            let mut record = [0; RECORD];
            record[1] = VERSION;
            record[36..36 + name.len()].copy_from_slice(name.as_bytes());
            record
        };
        let bytes = [record("lvm"), record("mkfs.ext4"), record("lvm")].concat();
        let programs = parse(&bytes).unwrap();
        assert_eq!((programs["lvm"], programs["mkfs.ext4"], programs.len()), (2, 1, 2));
        parse(&bytes[1..]).unwrap_err();
        assert!(parse(&[0; RECORD]).unwrap_err().to_string().contains("version 0"));
    }
}
