//! A call of an outside program as data: which program, which arguments, what it may do. Making
//! one runs nothing.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::secret::Secret;

/// The programs that the agent may run. Their paths are found and checked once, at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// `lvm`, with the command as its first argument.
    Lvm,
    /// `blkid`, only with `-p`: it reads the device and nobody's cache.
    Blkid,
    /// `mkfs.ext4`
    MkfsExt4,
    /// `mkfs.xfs`
    MkfsXfs,
    /// `mkfs.btrfs`
    MkfsBtrfs,
    /// `e2fsck`
    E2fsck,
    /// `resize2fs`
    Resize2fs,
    /// `tune2fs`
    Tune2fs,
    /// `xfs_growfs`
    XfsGrowfs,
    /// `xfs_admin`
    XfsAdmin,
    /// `xfs_repair`
    XfsRepair,
    /// `btrfs`
    Btrfs,
    /// `cryptsetup`, with the action as its first argument.
    Cryptsetup,
}

/// Whether a call may be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It only reads: after this time its process group is killed.
    Read(Duration),
    /// It changes something: it is never killed, only watched and reported when it is slow.
    Change,
}

/// What a program reads from its standard input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Nothing.
    Nothing,
    /// This, to its end.
    Secret(Secret),
    /// A file or device, opened for reading before the program begins. By the path [`STDIN`] the program
    /// opens just that one, though its name be taken away in between.
    File(PathBuf),
}

/// The path by which a program opens anew what its standard input is (proc(5)).
pub const STDIN: &str = "/proc/self/fd/0";

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// What to run.
    pub program: Program,
    /// Its arguments. Never a secret: anybody can read them.
    pub args: Vec<String>,
    /// Whether it may be given up.
    pub effect: Effect,
    /// What it reads from its standard input.
    pub input: Input,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Lvm,
        Self::Blkid,
        Self::MkfsExt4,
        Self::MkfsXfs,
        Self::MkfsBtrfs,
        Self::E2fsck,
        Self::Resize2fs,
        Self::Tune2fs,
        Self::XfsGrowfs,
        Self::XfsAdmin,
        Self::XfsRepair,
        Self::Btrfs,
        Self::Cryptsetup,
    ];

    /// The name of its file.
    #[must_use]
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Lvm => "lvm",
            Self::Blkid => "blkid",
            Self::MkfsExt4 => "mkfs.ext4",
            Self::MkfsXfs => "mkfs.xfs",
            Self::MkfsBtrfs => "mkfs.btrfs",
            Self::E2fsck => "e2fsck",
            Self::Resize2fs => "resize2fs",
            Self::Tune2fs => "tune2fs",
            Self::XfsGrowfs => "xfs_growfs",
            Self::XfsAdmin => "xfs_admin",
            Self::XfsRepair => "xfs_repair",
            Self::Btrfs => "btrfs",
            Self::Cryptsetup => "cryptsetup",
        }
    }

    /// The Debian package that has it, for the sentence that says what to install.
    #[must_use]
    pub const fn package(self) -> &'static str {
        match self {
            Self::Lvm => "lvm2",
            Self::Blkid => "util-linux",
            Self::MkfsExt4 | Self::E2fsck | Self::Resize2fs | Self::Tune2fs => "e2fsprogs",
            Self::MkfsXfs | Self::XfsGrowfs | Self::XfsAdmin | Self::XfsRepair => "xfsprogs",
            Self::MkfsBtrfs | Self::Btrfs => "btrfs-progs",
            Self::Cryptsetup => "cryptsetup-bin",
        }
    }
}

impl Invocation {
    /// What it does, in the words of its command line's beginning: `lvm lvcreate`, `mkfs.xfs`.
    #[must_use]
    pub fn label(&self) -> String {
        match (self.program, self.args.first()) {
            (Program::Lvm, Some(command)) => format!("lvm {command}"),
            (Program::Cryptsetup, Some(action)) => format!("cryptsetup {action}"),
            _ => self.program.file_name().to_owned(),
        }
    }
}

impl fmt::Display for Invocation {
    /// The command line as a person would type it, without the long `--config`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program.file_name())?;
        let mut args = self.args.iter();
        while let Some(arg) = args.next() {
            if arg == "--config" {
                args.next();
            } else if arg.chars().all(|c| c.is_ascii_alphanumeric() || "-_./=,:+@#".contains(c)) {
                write!(f, " {arg}")?;
            } else {
                write!(f, " '{arg}'")?;
            }
        }
        if let Input::File(path) = &self.input {
            write!(f, " < {}", path.display())?;
        }
        Ok(())
    }
}
