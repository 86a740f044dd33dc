//! The command line. Every option is a flag and an environment variable; what they mean together
//! is decided in `run`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::names::{BackendName, Handle, NodeName};

/// The longest driver name (CSI spec, `GetPluginInfo`).
const DRIVER_NAME_MAX: usize = 63;

/// LVM storage driver for Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "cinderblock", version, about, long_about = None)]
pub struct Cli {
    /// What to run.
    #[command(subcommand)]
    pub mode: Mode,
}

/// The ways to run.
#[derive(Debug, Subcommand)]
pub enum Mode {
    /// The CSI Controller service, beside the sidecars. Nodes connect to it.
    Controller(Controller),
    /// The CSI Node service, and the process that runs LVM on its node.
    Node(Node),
    /// All CSI services in one process on one socket: this machine is the only node. For csi-sanity,
    /// for other orchestrators, and for a first look.
    Standalone(Standalone),
    /// Beside `node`, in a container of its own: resumes what LVM or cryptsetup held when they were killed, where
    /// the agent that would do so was killed with them and waits for it itself.
    Watchdog(Watchdog),
    /// Lists volumes and snapshots that no object of the cluster knows, or removes those that are named.
    /// To be run in a controller's pod.
    Orphans(Orphans),
    /// Replaces what was lost with disks of this node that do not come back: adds listed disks, gives RAID
    /// new legs, and forgets the disks. To be run in the node's pod.
    Repair(Repair),
}

/// Options of every mode that serves.
#[derive(Debug, Args)]
pub struct Common {
    /// Name of the CSI driver, as StorageClasses name it.
    #[arg(long, env = "CINDERBLOCK_DRIVER_NAME", default_value = "lvm.cinderblock.dev", value_parser = driver_name)]
    pub driver_name: String,

    /// File with the backends.
    #[arg(long, env = "CINDERBLOCK_CONFIG", default_value = "/etc/cinderblock/backends.yaml")]
    pub config: PathBuf,

    /// Socket of the CSI services.
    #[arg(long, env = "CSI_ENDPOINT", default_value = "unix:///run/cinderblock/csi.sock", value_parser = unix_endpoint)]
    pub csi_endpoint: PathBuf,

    /// Address of /metrics, /healthz and /readyz. None: they are not served.
    #[arg(long, env = "CINDERBLOCK_HTTP_ADDRESS")]
    pub http_address: Option<SocketAddr>,

    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at the type")]
    pub log: Log,
}

/// Options of the log.
#[derive(Debug, Args)]
pub struct Log {
    /// What to log: error, warn, info, debug, trace, or a filter as in `info,cinderblock=debug`.
    #[arg(long, env = "CINDERBLOCK_LOG", default_value = "info")]
    pub log: String,

    /// How to log.
    #[arg(long, env = "CINDERBLOCK_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Options of a process that works on disks.
#[derive(Debug, Args)]
pub struct Disks {
    /// Name of this node.
    #[arg(long, env = "CINDERBLOCK_NODE_NAME", value_parser = node_name)]
    pub node_name: NodeName,

    /// Directory for the agent's own files. Nothing in it is needed after a restart.
    #[arg(long, env = "CINDERBLOCK_RUN_DIR", default_value = "/run/cinderblock")]
    pub run_dir: PathBuf,

    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at the type")]
    pub operator: Operator,
}

/// Options of `controller`.
#[derive(Debug, Args)]
pub struct Controller {
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at the type")]
    pub common: Common,

    /// Address on which nodes connect. Without IPv6, `[::]` is all of IPv4.
    #[arg(long, env = "CINDERBLOCK_LISTEN", default_value = "[::]:9807")]
    pub listen: SocketAddr,

    /// Namespace of the pods, and of what is kept about certificates.
    #[arg(long, env = "CINDERBLOCK_NAMESPACE")]
    pub namespace: String,

    /// Service account of the nodes' pods, in that namespace.
    #[arg(long, env = "CINDERBLOCK_NODE_SERVICE_ACCOUNT")]
    pub node_service_account: String,

    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at the type")]
    pub certificate: Certificate,

    /// How long no object of the cluster may know a volume or snapshot before it counts as an orphan,
    /// as in 1h or 30m.
    #[arg(long, env = "CINDERBLOCK_ORPHAN_GRACE", default_value = "1h", value_parser = duration)]
    pub orphan_grace: Duration,

    /// How often orphans are looked for, which lists all `PersistentVolume` and snapshot objects.
    #[arg(long, env = "CINDERBLOCK_ORPHAN_INTERVAL", default_value = "10m", value_parser = duration)]
    pub orphan_interval: Duration,

    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at the type")]
    pub operator: Operator,
}

/// Where the command line finds the controller or agent of its own pod.
#[derive(Debug, Args)]
pub struct Operator {
    /// Socket for `cinderblock orphans` and `cinderblock repair`.
    #[arg(long, env = "CINDERBLOCK_OPERATOR_ENDPOINT", default_value = "unix:///run/cinderblock/operator.sock", value_parser = unix_endpoint)]
    pub operator_endpoint: PathBuf,
}

/// Options of `orphans`.
#[derive(Debug, Args)]
pub struct Orphans {
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at the type")]
    pub operator: Operator,

    /// Remove this orphan, by the handle that the list shows, and all data in it. May be given several
    /// times. What is not an orphan right then, or is in use, stays.
    #[arg(long, value_name = "HANDLE", value_parser = handle)]
    pub remove: Vec<Handle>,
}

/// Options of `repair`.
#[derive(Debug, Args)]
pub struct Repair {
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at the type")]
    pub operator: Operator,

    /// The backend whose volume group is to be repaired. None: those of all backends of the node.
    #[arg(long, value_parser = backend)]
    pub backend: Option<BackendName>,
}

/// Where the controller's certificate comes from.
#[derive(Debug, Args)]
pub struct Certificate {
    /// Be a certificate authority: name of the Secret for its key and of the `ConfigMap` for what
    /// nodes have to trust. Both must exist, and may be empty.
    #[arg(long, env = "CINDERBLOCK_CA_NAME", requires = "server_name", conflicts_with_all = ["tls_cert_file", "tls_key_file"], required_unless_present = "tls_cert_file")]
    pub ca_name: Option<String>,

    /// Host name by which nodes reach the controller, for its certificate.
    #[arg(long, env = "CINDERBLOCK_SERVER_NAME")]
    pub server_name: Option<String>,

    /// File with a certificate of your own, PEM. It is read again when it changes.
    #[arg(long, env = "CINDERBLOCK_TLS_CERT_FILE", requires = "tls_key_file")]
    pub tls_cert_file: Option<PathBuf>,

    /// File with its key, PEM.
    #[arg(long, env = "CINDERBLOCK_TLS_KEY_FILE", requires = "tls_cert_file")]
    pub tls_key_file: Option<PathBuf>,
}

/// Options of `node`.
#[derive(Debug, Args)]
pub struct Node {
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at the type")]
    pub common: Common,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at the type")]
    pub disks: Disks,

    /// Host and port of the controllers; every address of the host is connected to.
    #[arg(long, env = "CINDERBLOCK_CONTROLLER", value_parser = host_and_port)]
    pub controller: String,

    /// File with the token by which controllers know this node, made for the audience
    /// "cinderblock".
    #[arg(
        long,
        env = "CINDERBLOCK_TOKEN_FILE",
        default_value = "/var/run/cinderblock/token/token"
    )]
    pub token_file: PathBuf,

    /// File with the certificates of those who may sign the controllers', PEM.
    #[arg(long, env = "CINDERBLOCK_CA_FILE", default_value = "/var/run/cinderblock/ca/ca.crt")]
    pub ca_file: PathBuf,

    /// The kubelet's directory of plugins (`plugins_registry`), as this process sees it.
    #[arg(long, env = "CINDERBLOCK_REGISTRATION_DIR", requires = "kubelet_endpoint")]
    pub registration_dir: Option<PathBuf>,

    /// The CSI socket, as the kubelet sees it.
    #[arg(long, env = "CINDERBLOCK_KUBELET_ENDPOINT", value_parser = unix_endpoint, requires = "registration_dir")]
    pub kubelet_endpoint: Option<PathBuf>,
}

/// Options of `standalone`.
#[derive(Debug, Args)]
pub struct Standalone {
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at the type")]
    pub common: Common,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at the type")]
    pub disks: Disks,
}

/// Options of `watchdog`.
#[derive(Debug, Args)]
pub struct Watchdog {
    /// Directory for its own files, not the agent's. Nothing in it is needed after a restart.
    #[arg(long, env = "CINDERBLOCK_RUN_DIR", default_value = "/run/cinderblock-watchdog")]
    pub run_dir: PathBuf,

    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at the type")]
    pub log: Log,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

fn driver_name(text: &str) -> Result<String, String> {
    let fits = text.len() <= DRIVER_NAME_MAX
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'.')
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric());
    if fits {
        return Ok(text.to_owned());
    }
    Err("expected 1 to 63 letters, digits, '-' and '.', as in lvm.cinderblock.dev".to_owned())
}

fn unix_endpoint(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").unwrap_or(text);
    if path.starts_with('/') && Path::new(path).extension().is_some_and(|e| e == "sock") {
        return Ok(PathBuf::from(path));
    }
    Err("expected a Unix socket, as in unix:///csi/csi.sock".to_owned())
}

fn host_and_port(text: &str) -> Result<String, String> {
    let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match parts.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(_)) => Ok(text.to_owned()),
        _ => Err("expected a host and a port, as in cinderblock-controller.cinderblock.svc:9807"
            .to_owned()),
    }
}

fn handle(text: &str) -> Result<Handle, String> {
    Handle::parse(text).map_err(|e| e.to_string())
}

fn backend(text: &str) -> Result<BackendName, String> {
    BackendName::parse(text).map_err(|e| e.to_string())
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<jiff::SignedDuration>().ok();
    let parsed = parsed.and_then(|duration| Duration::try_from(duration).ok());
    // A timer that never waits would keep the processor busy.
    let fits = parsed.filter(|duration| *duration >= Duration::from_secs(1));
    fits.ok_or_else(|| "expected a time of at least 1s, as in 90s, 10m or 1h 30m".to_owned())
}

fn node_name(text: &str) -> Result<NodeName, String> {
    NodeName::parse(text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_values_are_refused() {
        let run = |args: &[&str]| {
            let all = ["cinderblock", "standalone", "--node-name", "n1"].iter().chain(args);
            Cli::try_parse_from(all).map(drop).map_err(|e| e.to_string())
        };
        assert_eq!(run(&[]), Ok(()));
        assert_eq!(run(&["--csi-endpoint", "/run/x.sock"]), Ok(()));
        for (args, what) in [
            (["--csi-endpoint", "tcp://1.2.3.4:5"], "Unix socket"),
            (["--driver-name", "lvm_driver"], "expected 1 to 63"),
            (["--http-address", "localhost"], "http-address"),
            (["--log-format", "xml"], "log-format"),
        ] {
            assert!(run(&args).unwrap_err().contains(what), "{args:?}");
        }
    }

    #[test]
    fn a_controller_has_one_certificate() {
        let run = |args: &str| {
            let base = "cinderblock controller --namespace ns --node-service-account node";
            let all = base.split(' ').chain(args.split_terminator(' '));
            Cli::try_parse_from(all).map(drop).map_err(|e| e.to_string())
        };
        assert_eq!(run("--ca-name ca --server-name c.ns.svc"), Ok(()));
        assert_eq!(run("--tls-cert-file /a --tls-key-file /b"), Ok(()));
        for (args, what) in [
            ("", "--ca-name"),
            ("--ca-name ca", "--server-name"),
            ("--tls-cert-file /a", "--tls-key-file"),
            ("--ca-name ca --server-name c --tls-cert-file /a --tls-key-file /b", "cannot be used"),
        ] {
            assert!(run(args).unwrap_err().contains(what), "{args:?}");
        }
    }

    #[test]
    fn times_and_handles_are_read() {
        let base = "cinderblock controller --namespace ns --node-service-account n --ca-name c --server-name s";
        let grace = |text: &str| {
            let all = base.split(' ').chain(["--orphan-grace", text]);
            match Cli::try_parse_from(all).map(|cli| cli.mode) {
                Ok(Mode::Controller(options)) => Some(options.orphan_grace.as_secs()),
                _ => None,
            }
        };
        assert_eq!(grace("90s"), Some(90));
        assert_eq!((grace("1h 30m"), grace("1h30m")), (Some(5_400), Some(5_400)));
        assert_eq!(grace("72h"), Some(259_200));
        for bad in ["0s", "10", "-1h", "soon", ""] {
            assert_eq!(grace(bad), None, "{bad:?}");
        }
        let remove = |text: &str| Cli::try_parse_from(["cinderblock", "orphans", "--remove", text]);
        remove("9xijuU-B1GC-B7Fu-PXHq-P1oQ-unvP-b4f6Ov/pvc-1").unwrap();
        assert!(remove("pvc-1").is_err());
    }

    #[test]
    fn a_node_dials_a_host_and_a_port() {
        for (controller, fits) in [
            ("c.ns.svc:9807", true),
            ("[::1]:9807", true),
            ("c.ns.svc", false),
            (":9807", false),
            ("c:99999", false),
        ] {
            let args = ["cinderblock", "node", "--node-name", "n", "--controller", controller];
            assert_eq!(Cli::try_parse_from(args).is_ok(), fits, "{controller}");
        }
    }
}
