//! Registration with the kubelet: a socket in its plugin directory, by which it learns of the
//! driver's own (kubelet plugin registration v1). What the kubelet then asks is CSI, and not here.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cinderblock_proto::pluginregistration as pb;
use pb::registration_server::{Registration, RegistrationServer};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::error::Result;
use crate::net;

/// The kind of plugin, as the kubelet names it.
const KIND: &str = "CSIPlugin";
/// Versions of CSI that the kubelet may speak: it looks at the first number.
const VERSIONS: [&str; 1] = ["1.0.0"];
/// The end of the socket's name. The kubelet says the socket's whole path, percent-encoded, as the
/// HTTP/2 authority, and the server takes such a text only where a user's name may be: before an
/// `@`. With any other name every call ends as `PROTOCOL_ERROR`, unseen by us.
const SOCKET_SUFFIX: &str = "@reg.sock";
/// Connections at a time, and calls of each: the kubelet has one.
const CONNECTIONS_MAX: usize = 16;
const CALLS_MAX: usize = 4;
/// A connection on which nothing comes back within these is ended.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// After a refusal the socket is made anew, which lets the kubelet try again.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// What the kubelet has to know.
#[derive(Clone, Debug)]
pub struct Registrar {
    /// The kubelet's plugin directory (`<kubelet's>/plugins_registry`), as this process sees it.
    pub directory: PathBuf,
    /// Name of the driver.
    pub driver_name: String,
    /// The driver's CSI socket, as the kubelet sees it.
    pub endpoint: PathBuf,
}

impl Registrar {
    /// Keeps the driver registered until `stop`, and takes it back then. The CSI socket must be
    /// served before: the kubelet calls it at once.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub async fn run(self, stop: CancellationToken) -> Result<()> {
        let socket = self.socket();
        while !stop.is_cancelled() {
            let refused = Arc::new(Notify::new());
            let listener = net::unix(&socket)?;
            let serving = Server::builder()
                .http2_keepalive_interval(Some(KEEPALIVE))
                .http2_keepalive_timeout(Some(KEEPALIVE))
                .concurrency_limit_per_connection(CALLS_MAX)
                .add_service(RegistrationServer::new(Service {
                    registrar: self.clone(),
                    refused: Arc::clone(&refused),
                }))
                .serve_with_incoming(net::clients(listener, CONNECTIONS_MAX));
            let again = async {
                refused.notified().await;
                tokio::time::sleep(AGAIN_AFTER).await;
            };
            tokio::select! {
                ended = serving => {
                    if let Err(error) = ended {
                        tracing::warn!(%error, "the registration socket failed; making it anew");
                        stop.run_until_cancelled(tokio::time::sleep(AGAIN_AFTER)).await;
                    }
                }
                () = again => {}
                () = stop.cancelled() => {}
            }
        }
        take_back(&socket);
        Ok(())
    }

    fn socket(&self) -> PathBuf {
        self.directory.join(format!("{}{SOCKET_SUFFIX}", self.driver_name))
    }
}

/// The kubelet forgets a driver whose socket goes away.
fn take_back(socket: &Path) {
    if let Err(error) = std::fs::remove_file(socket) {
        tracing::warn!(socket = %socket.display(), %error, "cannot remove the registration socket");
    }
}

struct Service {
    registrar: Registrar,
    refused: Arc<Notify>,
}

#[tonic::async_trait]
impl Registration for Service {
    async fn get_info(
        &self,
        _: Request<pb::InfoRequest>,
    ) -> Result<Response<pb::PluginInfo>, Status> {
        Ok(Response::new(pb::PluginInfo {
            r#type: KIND.to_owned(),
            name: self.registrar.driver_name.clone(),
            endpoint: self.registrar.endpoint.to_string_lossy().into_owned(),
            supported_versions: VERSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<pb::RegistrationStatus>,
    ) -> Result<Response<pb::RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!("the kubelet knows the driver");
        } else {
            tracing::error!(error = status.error, "the kubelet refuses the driver; trying again");
            self.refused.notify_one();
        }
        Ok(Response::new(pb::RegistrationStatusResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As grpc-go makes an authority of what it dials (`encodeAuthority`).
    fn authority(path: &str) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.~!$&'()*+,;=:[]@".contains(c);
        path.chars()
            .map(|c| if plain(c) { c.to_string() } else { format!("%{:02X}", u32::from(c)) })
            .collect()
    }

    #[test]
    fn the_kubelets_way_to_the_socket_is_an_authority() {
        let registrar = Registrar {
            directory: "/var/lib/kubelet/plugins_registry".into(),
            driver_name: "lvm.cinderblock.dev".to_owned(),
            endpoint: "/csi/csi.sock".into(),
        };
        let socket = registrar.socket().to_string_lossy().into_owned();
        assert!(authority(&socket).parse::<http::uri::Authority>().is_ok(), "{socket}");
        let other = socket.replace('@', "-");
        assert!(authority(&other).parse::<http::uri::Authority>().is_err(), "{other}");
    }
}
