//! A lab's network namespace: bridge, taps, routes, and connections into it. It never touches the host's own network.
//!
//! | what | where |
//! | --- | --- |
//! | host side (bridge `br0`) | 10.88.0.1/16 |
//! | node N (tap `tapN`) | 10.88.0.(10+N) |
//! | pods of node N | 10.89.N.0/24, routed to the node |

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::Deserialize;

use crate::process::{self, ProcessId};
use crate::programs;

/// The host's address in the namespace, on the bridge; the nodes' default gateway.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);

/// Prefix length of the nodes' network.
pub const PREFIX: u8 = 16;

/// Largest node index: its address ends in 10 + index.
pub const MAX_INDEX: u8 = 244;

/// The bridge's name. Names of links are local to the namespace, so all labs use the same ones.
pub const BRIDGE: &str = "br0";

const NAMED: &str = "/run/netns";
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Address of the node with this index (1 to [`MAX_INDEX`]).
#[must_use]
pub fn node_address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 0, 10_u8.saturating_add(index))
}

/// Pod subnet of the node with this index.
#[must_use]
pub fn pod_subnet(index: u8) -> String {
    format!("10.89.{index}.0/24")
}

/// Tap of the node with this index; at most six characters (the kernel takes 15).
#[must_use]
pub fn tap(index: u8) -> String {
    format!("tap{index}")
}

/// One named network namespace. The value is only the name: nothing happens before [`NetNs::up`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetNs {
    name: String,
}

#[derive(Deserialize)]
struct Link {
    ifname: String,
}

impl NetNs {
    /// The namespace of the lab `lab` in `dir`: two checkouts with labs of one name get two.
    #[must_use]
    pub fn of_lab(lab: &str, dir: &Path) -> Self {
        let hash = crate::fnv1a(dir.as_os_str().as_encoded_bytes());
        Self { name: format!("cb-{lab}-{:08x}", hash >> 32) }
    }

    /// The name that `ip netns` shows.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn file(&self) -> PathBuf {
        Path::new(NAMED).join(&self.name)
    }

    /// True when the namespace is there.
    #[must_use]
    pub fn exists(&self) -> bool {
        rustix::fs::statfs(self.file()).is_ok_and(|data| data.f_type == NSFS_MAGIC)
    }

    /// Makes the namespace with bridge, forwarding, and a tap and a route per node index. What is
    /// there already stays.
    ///
    /// # Errors
    /// An index out of range, no `/dev/net/tun`, or `ip` failed.
    pub fn up(&self, indices: &[u8]) -> Result<()> {
        if let Some(bad) = indices.iter().find(|index| !(1..=MAX_INDEX).contains(*index)) {
            bail!("node index {bad} is out of range: take 1 to {MAX_INDEX}");
        }
        ensure!(
            Path::new("/dev/net/tun").exists(),
            "/dev/net/tun is missing: run `modprobe tun` (in a container, pass the device in)"
        );
        if !self.exists() {
            // After a crash the file may be there without the namespace.
            if self.file().exists() {
                fs::remove_file(self.file())
                    .with_context(|| format!("removing the stale {}", self.file().display()))?;
            }
            programs::run("ip", &["netns", "add", &self.name], "")?;
        }
        self.batch(&up_lines(&self.links()?, indices))?;
        self.inside(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1"))?
            .with_context(|| format!("turning on ip_forward in the namespace {}", self.name))
    }

    /// Ends every process in the namespace and removes it; fine when it is not there.
    ///
    /// # Errors
    /// A process survives SIGKILL, or `ip` failed.
    pub fn down(&self) -> Result<()> {
        for process in self.processes() {
            process.kill()?;
            if !process.wait_gone(Duration::from_mins(1)) {
                bail!("process {} in the namespace {} survives SIGKILL", process.pid, self.name);
            }
        }
        if self.exists() {
            programs::run("ip", &["netns", "delete", &self.name], "")?;
        } else if self.file().exists() {
            fs::remove_file(self.file())
                .with_context(|| format!("removing the stale {}", self.file().display()))?;
        }
        Ok(())
    }

    /// Every process in the namespace: all VMs, and whatever else was started there.
    #[must_use]
    pub fn processes(&self) -> Vec<ProcessId> {
        let Some(own) = fs::metadata(self.file()).ok().filter(|_| self.exists()) else {
            return Vec::new();
        };
        let same = |pid: &i32| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|it| (it.dev(), it.ino()) == (own.dev(), own.ino()))
        };
        process::all().filter(same).filter_map(ProcessId::of).filter(|it| same(&it.pid)).collect()
    }

    /// Adds an address with its prefix length (`10.96.0.1/32`) to the bridge.
    ///
    /// # Errors
    /// `ip` failed.
    pub fn add_address(&self, address: &str) -> Result<()> {
        self.batch(&format!("addr replace {address} dev {BRIDGE}\n"))
    }

    /// The words to put before a command line so that it runs inside.
    #[must_use]
    pub fn exec_prefix(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(str::to_owned).to_vec()
    }

    /// Runs `work` on a thread that is inside; sockets it opens and processes it starts stay there.
    ///
    /// # Errors
    /// The namespace is not there, or may not be entered.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(self.file()).with_context(|| {
            format!("the network namespace {} is not there: the lab is not up", self.name)
        })?;
        let enter = || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("entering the network namespace {}", self.name))?;
            Ok(work())
        };
        std::thread::scope(|scope| {
            scope.spawn(enter).join().map_err(|_panic| anyhow!("work in {} panicked", self.name))?
        })
    }

    /// Connects to an address inside; the stream works on every thread.
    ///
    /// # Errors
    /// The namespace is not there, or nobody answers in time.
    pub fn connect(
        &self,
        address: impl Into<IpAddr>,
        port: u16,
        timeout: Duration,
    ) -> Result<TcpStream> {
        let address = SocketAddr::new(address.into(), port);
        self.inside(|| TcpStream::connect_timeout(&address, timeout))?
            .with_context(|| format!("connecting to {address} in the namespace {}", self.name))
    }

    fn links(&self) -> Result<BTreeSet<String>> {
        let json = programs::run("ip", &["-n", &self.name, "-j", "link", "show"], "")?;
        let links: Vec<Link> =
            serde_json::from_str(&json).context("output of `ip -j link show`")?;
        Ok(links.into_iter().map(|link| link.ifname).collect())
    }

    fn batch(&self, lines: &str) -> Result<()> {
        programs::run("ip", &["-n", &self.name, "-batch", "-"], lines)
            .map(drop)
            .with_context(|| format!("setting up the network namespace {}", self.name))
    }
}

/// The lines for `ip -batch` that bring up what is not `present`.
fn up_lines(present: &BTreeSet<String>, indices: &[u8]) -> String {
    let mut lines = String::new();
    let mut add = |line: std::fmt::Arguments<'_>| writeln!(lines, "{line}").unwrap_or_default();
    add(format_args!("link set lo up"));
    if !present.contains(BRIDGE) {
        add(format_args!("link add {BRIDGE} type bridge"));
    }
    add(format_args!("addr replace {HOST}/{PREFIX} dev {BRIDGE}"));
    add(format_args!("link set {BRIDGE} up"));
    for index in indices {
        let (tap, address) = (tap(*index), node_address(*index));
        if !present.contains(&tap) {
            add(format_args!("tuntap add dev {tap} mode tap"));
        }
        add(format_args!("link set {tap} master {BRIDGE} up"));
        add(format_args!("route replace {} via {address}", pod_subnet(*index)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_by_directory_and_are_stable() {
        let one = NetNs::of_lab("dev", Path::new("/a/.lab/dev"));
        assert_eq!(one.name(), NetNs::of_lab("dev", Path::new("/a/.lab/dev")).name());
        assert_ne!(one.name(), NetNs::of_lab("dev", Path::new("/b/.lab/dev")).name());
        assert!(one.name().starts_with("cb-dev-") && one.name().len() == "cb-dev-".len() + 8);
        assert_eq!(one.exec_prefix(), ["ip", "netns", "exec", one.name()]);
    }

    #[test]
    fn addresses_and_link_names() {
        assert_eq!(node_address(1), Ipv4Addr::new(10, 88, 0, 11));
        assert_eq!(node_address(MAX_INDEX), Ipv4Addr::new(10, 88, 0, 254));
        assert!(tap(MAX_INDEX).len() <= 15);
    }

    #[test]
    fn only_missing_links_are_added() {
        let fresh = up_lines(&BTreeSet::new(), &[1, 2]);
        assert!(fresh.contains("link add br0 type bridge\n"));
        assert!(fresh.contains("tuntap add dev tap2 mode tap\n"));
        assert!(fresh.contains("route replace 10.89.2.0/24 via 10.88.0.12\n"));
        let links = BTreeSet::from(["lo", "br0", "tap1"].map(str::to_owned));
        let again = up_lines(&links, &[1, 2]);
        assert!(!again.contains("link add") && !again.contains("add dev tap1 "), "{again}");
        assert!(
            again.contains("tuntap add dev tap2") && again.contains("link set tap1 master br0 up")
        );
    }

    #[test]
    fn a_missing_namespace_is_said_so() {
        let absent = NetNs { name: "cb-no-such-lab-00000000".to_owned() };
        let error = absent.connect(HOST, 1, Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().contains("the lab is not up"), "{error}");
        assert!(absent.processes().is_empty() && !absent.exists());
        absent.down().unwrap();
    }
}
