//! Listening: on Unix sockets that are private from their first moment, and on TCP. How many may
//! come.

mod clients;
mod guests;

pub use clients::{Client, clients};
pub use guests::{Guest, Guests};

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use rustix::fs::Mode;
use tokio::net::{TcpListener, UnixListener, UnixSocket};

use crate::error::{Error, Result};

/// Connections that wait to be accepted. Sidecars have one each.
const BACKLOG: u32 = 64;
/// A pause when the system gives no connection (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Listens at a path. A socket that an earlier process left there is removed; anything else is not.
///
/// # Errors
/// When the path cannot be used.
pub fn unix(path: &Path) -> Result<UnixListener> {
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

/// Listens on TCP. The address of all interfaces means those of IPv4 alone where the kernel has no
/// IPv6.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && has_no_ipv6(&error) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        other => other,
    }
}

fn has_no_ipv6(error: &io::Error) -> bool {
    let code = rustix::io::Errno::from_io_error(error);
    matches!(code, Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn all_interfaces_are_those_that_there_are() {
        let listener = tcp("[::]:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        assert!(tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await.is_err());
    }

    #[tokio::test]
    async fn private_and_in_place_of_a_stale_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/csi.sock");
        drop(unix(&path).unwrap());
        let listener = unix(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(listener);
        let file = dir.path().join("file.sock");
        std::fs::write(&file, "mine").unwrap();
        assert!(unix(&file).unwrap_err().chain().contains("something else is there"));
        assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    }
}
