//! The Unix socket of the CSI services: private from its first moment, and nothing beside it.

use std::io;
use std::path::Path;

use rustix::fs::Mode;
use tokio::net::{UnixListener, UnixSocket};

use crate::error::{Error, Result};

/// Connections that wait to be accepted. Sidecars have one each.
const BACKLOG: u32 = 64;

/// Listens at a path. A socket that an earlier process left there is removed; anything else is not.
///
/// # Errors
/// When the path cannot be used.
pub fn listen(path: &Path) -> Result<UnixListener> {
    remove_stale(path).and_then(|()| bind(path)).map_err(|e| {
        Error::host(format!("cannot listen on the socket {}", path.display())).because(e)
    })
}

fn remove_stale(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()) => {
            std::fs::remove_file(path)
        }
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "something else is there")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    // Before it has a name: it is never open to everybody, not for a moment.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    socket.bind(path)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn private_and_in_place_of_a_stale_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/csi.sock");
        drop(listen(&path).unwrap());
        let listener = listen(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(listener);
        let file = dir.path().join("file.sock");
        std::fs::write(&file, "mine").unwrap();
        assert!(listen(&file).unwrap_err().chain().contains("something else is there"));
        assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    }
}
