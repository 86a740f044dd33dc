//! One layer of an image as an uncompressed tar file: sorted names, one time, one owner. It reads the files that go in and writes none beside the tar.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{major, minor};
use tar::{Builder, EntryType, Header};

/// What one name in a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Folder {
        mode: u32,
    },
    Bytes {
        bytes: Vec<u8>,
        mode: u32,
    },
    /// A file of this machine, read when the layer is written.
    Copy {
        from: PathBuf,
        mode: u32,
    },
    Link {
        to: PathBuf,
    },
    /// A second name of a file that sorts earlier.
    Same {
        name: PathBuf,
    },
    Device {
        block: bool,
        major: u32,
        minor: u32,
        mode: u32,
    },
    Pipe {
        mode: u32,
    },
}

/// The files that one layer adds. Names are absolute in the image; folders above a name come by
/// themselves with mode 755, and a later call replaces an earlier one's file.
///
/// All files belong to user and group 0, as an image built by a plain user should be the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layer {
    entries: BTreeMap<PathBuf, Entry>,
}

impl Layer {
    /// A layer without files.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty folder with this mode.
    ///
    /// # Errors
    /// The name has `..` in it.
    pub fn folder(self, name: &str, mode: u32) -> Result<Self> {
        self.with(name, Entry::Folder { mode })
    }

    /// A file with these bytes.
    ///
    /// # Errors
    /// The name has `..` in it, or is that of the root.
    pub fn bytes(self, name: &str, bytes: impl Into<Vec<u8>>, mode: u32) -> Result<Self> {
        self.with(name, Entry::Bytes { bytes: bytes.into(), mode })
    }

    /// A copy of one file of this machine.
    ///
    /// # Errors
    /// As [`Layer::bytes`].
    pub fn file(self, name: &str, from: &Path, mode: u32) -> Result<Self> {
        self.with(name, Entry::Copy { from: from.to_owned(), mode })
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// As [`Layer::bytes`].
    pub fn link(self, name: &str, to: &str) -> Result<Self> {
        self.with(name, Entry::Link { to: PathBuf::from(to) })
    }

    /// Everything below a folder of this machine, with its modes, hard links and devices. Sockets
    /// are left out.
    ///
    /// # Errors
    /// The folder cannot be read, or something in it is of an unknown kind.
    pub fn tree(mut self, from: &Path, name: &str) -> Result<Self> {
        let base = inside(name)?;
        let mut links = BTreeMap::new();
        let mut folders = vec![PathBuf::new()];
        let mut found = Vec::new();
        while let Some(folder) = folders.pop() {
            let path = from.join(&folder);
            let reading = || format!("reading {}", path.display());
            for entry in fs::read_dir(&path).with_context(reading)? {
                let entry = entry.with_context(reading)?;
                let name = folder.join(entry.file_name());
                if entry.file_type().with_context(reading)?.is_dir() {
                    folders.push(name.clone());
                }
                found.push(name);
            }
        }
        // In the order of the tar file, so that the first name of a file is the one with its bytes.
        found.sort();
        for name in found {
            let path = from.join(&name);
            let data = path
                .symlink_metadata()
                .with_context(|| format!("looking at {}", path.display()))?;
            let to = base.join(&name);
            let entry = match links.get(&(data.dev(), data.ino())) {
                Some(first) if !data.is_dir() => Some(Entry::Same { name: PathBuf::clone(first) }),
                _ => of_file(&path, &data)?,
            };
            if data.nlink() > 1 {
                links.entry((data.dev(), data.ino())).or_insert_with(|| to.clone());
            }
            if let Some(entry) = entry {
                self.entries.insert(to, entry);
            }
        }
        Ok(self)
    }

    fn with(mut self, name: &str, entry: Entry) -> Result<Self> {
        let name = inside(name)?;
        if name.as_os_str().is_empty() {
            bail!("an image's root is always there: name a file in it");
        }
        self.entries.insert(name, entry);
        Ok(self)
    }

    /// Writes the layer's tar file.
    pub(super) fn write(&self, to: impl Write) -> Result<()> {
        let mut folders = BTreeMap::new();
        for name in self.entries.keys() {
            let above = name.ancestors().skip(1).filter(|it| !it.as_os_str().is_empty());
            folders.extend(above.map(|folder| (folder, &Entry::Folder { mode: 0o755 })));
        }
        // Merged in one map, so that the order is that of the names alone.
        folders.extend(self.entries.iter().map(|(name, entry)| (name.as_path(), entry)));
        let mut tar = Builder::new(to);
        let time = super::epoch();
        for (name, entry) in folders {
            append(&mut tar, name, entry, time)
                .with_context(|| format!("adding /{} to a layer", name.display()))?;
        }
        tar.into_inner().and_then(|mut to| to.flush()).context("writing a layer")
    }
}

/// A name inside the image, without the slash in front.
fn inside(name: &str) -> Result<PathBuf> {
    let mut path = PathBuf::new();
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                bail!("{name} is no plain path inside an image");
            }
        }
    }
    Ok(path)
}

fn of_file(path: &Path, data: &Metadata) -> Result<Option<Entry>> {
    let (kind, mode) = (data.file_type(), data.permissions().mode() & 0o7777);
    let device =
        |block| Entry::Device { block, major: major(data.rdev()), minor: minor(data.rdev()), mode };
    Ok(Some(if kind.is_dir() {
        Entry::Folder { mode }
    } else if kind.is_file() {
        Entry::Copy { from: path.to_owned(), mode }
    } else if kind.is_symlink() {
        let to = fs::read_link(path).with_context(|| format!("reading {}", path.display()))?;
        Entry::Link { to }
    } else if kind.is_char_device() || kind.is_block_device() {
        device(kind.is_block_device())
    } else if kind.is_fifo() {
        Entry::Pipe { mode }
    } else if kind.is_socket() {
        return Ok(None);
    } else {
        bail!("{} is of an unknown kind", path.display());
    }))
}

fn append(
    tar: &mut Builder<impl Write>,
    name: &Path,
    entry: &Entry,
    time: u64,
) -> Result<(), io::Error> {
    let mut header = Header::new_gnu();
    header.set_mtime(time);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    let mut plain = |kind: EntryType, mode: u32| {
        header.set_entry_type(kind);
        header.set_mode(mode);
    };
    match entry {
        Entry::Folder { mode } => {
            plain(EntryType::Directory, *mode);
            tar.append_data(&mut header, folder_name(name), io::empty())
        }
        Entry::Bytes { bytes, mode } => {
            plain(EntryType::Regular, *mode);
            header.set_size(u64::try_from(bytes.len()).map_err(io::Error::other)?);
            tar.append_data(&mut header, name, bytes.as_slice())
        }
        Entry::Copy { from, mode } => {
            plain(EntryType::Regular, *mode);
            let open = || -> io::Result<_> {
                let file = File::open(from)?;
                let size = file.metadata()?.len();
                Ok((file, size))
            };
            let (file, size) =
                open().map_err(|error| io::Error::other(format!("{}: {error}", from.display())))?;
            header.set_size(size);
            // Exactly that many bytes, or the tar file would be broken.
            let mut bytes = file.take(size).chain(io::repeat(0)).take(size);
            tar.append_data(&mut header, name, &mut bytes)
        }
        Entry::Link { to } => {
            plain(EntryType::Symlink, 0o777);
            tar.append_link(&mut header, name, to)
        }
        Entry::Same { name: first } => {
            plain(EntryType::Link, 0o644);
            tar.append_link(&mut header, name, first)
        }
        Entry::Device { block, major, minor, mode } => {
            plain(if *block { EntryType::Block } else { EntryType::Char }, *mode);
            header.set_device_major(*major)?;
            header.set_device_minor(*minor)?;
            tar.append_data(&mut header, name, io::empty())
        }
        Entry::Pipe { mode } => {
            plain(EntryType::Fifo, *mode);
            tar.append_data(&mut header, name, io::empty())
        }
    }
}

/// A folder's name in a tar file ends with a slash.
fn folder_name(name: &Path) -> PathBuf {
    name.join("")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(layer: &Layer) -> Vec<String> {
        let mut bytes = Vec::new();
        layer.write(&mut bytes).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let line = |entry: tar::Entry<'_, _>| {
            let header = entry.header();
            let link = entry.link_name().unwrap().map(|to| format!(" > {}", to.display()));
            format!(
                "{} {:o} {} {}:{} {}{}",
                entry.path().unwrap().display(),
                header.mode().unwrap(),
                header.size().unwrap(),
                header.uid().unwrap(),
                header.gid().unwrap(),
                header.mtime().unwrap(),
                link.unwrap_or_default()
            )
        };
        archive.entries().unwrap().map(|entry| line(entry.unwrap())).collect()
    }

    #[test]
    fn folders_come_before_what_is_in_them() {
        let layer = Layer::new()
            .bytes("/usr/bin/tool", "x", 0o755)
            .and_then(|it| it.link("/bin", "usr/bin"))
            .and_then(|it| it.folder("tmp", 0o1777))
            .unwrap();
        let want = [
            "bin 777 0 0:0 0 > usr/bin",
            "tmp/ 1777 0 0:0 0",
            "usr/ 755 0 0:0 0",
            "usr/bin/ 755 0 0:0 0",
            "usr/bin/tool 755 1 0:0 0",
        ];
        assert_eq!(names(&layer), want);
    }

    #[test]
    fn a_tree_keeps_modes_and_links() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let long = format!("sub/{}", "n".repeat(150));
        fs::create_dir(file("sub")).unwrap();
        fs::set_permissions(file("sub"), fs::Permissions::from_mode(0o750)).unwrap();
        fs::write(file("sub/one"), "abc").unwrap();
        fs::set_permissions(file("sub/one"), fs::Permissions::from_mode(0o4711)).unwrap();
        fs::hard_link(file("sub/one"), file("two")).unwrap();
        symlink("sub/one", file("link")).unwrap();
        fs::write(file(&long), "").unwrap();
        fs::set_permissions(file(&long), fs::Permissions::from_mode(0o600)).unwrap();
        let layer = Layer::new().tree(folder.path(), "/opt").unwrap();
        let want = [
            "opt/ 755 0 0:0 0".to_owned(),
            "opt/link 777 0 0:0 0 > sub/one".to_owned(),
            "opt/sub/ 750 0 0:0 0".to_owned(),
            format!("opt/{long} 600 0 0:0 0"),
            "opt/sub/one 4711 3 0:0 0".to_owned(),
            "opt/two 644 0 0:0 0 > opt/sub/one".to_owned(),
        ];
        assert_eq!(names(&layer), want);
    }

    #[test]
    fn names_that_leave_the_image_are_refused() {
        for bad in ["../x", "/a/../../b"] {
            Layer::new().bytes(bad, "", 0o644).unwrap_err();
        }
        Layer::new().folder("/", 0o755).unwrap_err();
        assert_eq!(inside("//a/./b").unwrap(), Path::new("a/b"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let layer = Layer::new().file("/x", Path::new("/no/such/file"), 0o644).unwrap();
        let error = format!("{:#}", layer.write(Vec::new()).unwrap_err());
        assert!(error.contains("/x") && error.contains("/no/such/file"), "{error}");
    }
}
