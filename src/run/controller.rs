//! The controller: CSI for the sidecars, and a door for nodes.

use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{config_file, now};
use crate::admin::IsReady;
use crate::cli::{Certificate, Common, Controller as Options};
use crate::controller::{Controller, Orphans, Registry, tell_of_troubles};
use crate::csi::{self, ControllerService, IdentityService, Observer, Readiness, Services};
use crate::error::{Error, Result};
use crate::host::Linux;
use crate::kube::{
    Api, AuthorityStore, Claims, Events, NodeLabelsWatch, Objects, TokenReviews, keep_certificate,
};
use crate::link::{self, Accept};
use crate::metrics::Metrics;
use crate::names::topology_key;
use crate::net;
use crate::operator;
use crate::tls::{self, Identity};

/// How often it is looked whether there is a certificate.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(super) async fn run(options: Options, stop: CancellationToken) -> Result<()> {
    let Options { common, listen, namespace, node_service_account, certificate, .. } = options;
    let Common { driver_name, config, csi_endpoint, http_address, log: _ } = common;
    let metrics = Metrics::new(&driver_name);
    let config = config_file::follow(&config, None, &metrics, stop.clone())?;
    let api = Api::connect(metrics.api()).await?;
    let registry = Arc::new(Registry::default());
    let counted = Arc::clone(&registry);
    metrics.show("cinderblock_nodes_connected", "Nodes that are connected", move || {
        u64::try_from(counted.connected()).unwrap_or(u64::MAX)
    });

    let disputed = Arc::clone(&registry);
    metrics.show(
        "cinderblock_volume_groups_disputed",
        "Volume groups that more than one node says it has",
        move || u64::try_from(disputed.disputed()).unwrap_or(u64::MAX),
    );

    // These outlive the CSI service: its last calls need the nodes.
    let (tasks, end) = (TaskTracker::new(), CancellationToken::new());
    let identity = Identity::default();
    follow_certificate(certificate, &api, &namespace, &identity, &tasks, &end)?;
    let labels = Arc::new(NodeLabelsWatch::default());
    tasks.spawn(Arc::clone(&labels).run(api.clone(), config.clone(), end.clone()));
    let accept = Accept {
        registry: Arc::clone(&registry),
        driver_name: driver_name.clone(),
        tls: TlsAcceptor::from(Arc::new(tls::server_config(identity.clone())?)),
        authenticator: Arc::new(TokenReviews::new(api.clone(), &namespace, &node_service_account)),
        labels,
        identify_every: link::IDENTIFY_EVERY,
    };

    let identity_of_door = identity.clone();
    let key = topology_key(&driver_name);
    let events = Box::new(Events::new(api.clone(), driver_name.clone()));
    tasks.spawn(tell_of_troubles(Arc::clone(&registry), events, end.clone()));
    let claims = Box::new(Claims::new(api.clone(), key.clone()));
    let controller = Arc::new(Controller::new(Arc::clone(&registry), config, Some(claims), true));
    tasks.spawn(open_for_nodes(Arc::clone(&controller), identity_of_door, end.clone()));
    let objects = Box::new(Objects::new(api.clone()));
    let orphans =
        Arc::new(Orphans::new(registry, Arc::clone(&controller), objects, options.orphan_grace));
    let (watched, told) = (Arc::clone(&orphans), Events::new(api, driver_name.clone()));
    metrics.show_orphans(move || watched.seen());
    let looking = Arc::clone(&orphans);
    tasks.spawn(looking.run(options.orphan_interval, Box::new(told), end.clone()));
    let observer = Observer::new(metrics.rpc());
    let ready = Ready(identity);
    let is_ready: IsReady = {
        let ready = ready.clone();
        Arc::new(move || ready.is_ready())
    };
    let services = Services::<_, Linux> {
        identity: IdentityService::new(driver_name.clone(), ready, observer.clone()),
        controller: Some(ControllerService::new(controller, key, observer)),
        node: None,
    };
    let listener = net::unix(&csi_endpoint)?;
    let operators = net::unix(&options.operator.operator_endpoint)?;
    tracing::info!(socket = %csi_endpoint.display(), driver = driver_name, "serving");
    let result = tokio::select! {
        served = csi::serve(listener, services, stop.clone()) => served,
        failed = super::http(http_address, metrics, is_ready, &stop) => failed,
        failed = accept.run(listen, end.clone()) => failed,
        failed = operator::serve(operators, orphans, stop.clone()) => failed,
    };
    stop.cancel();
    end.cancel();
    tasks.close();
    tasks.wait().await;
    result
}

/// Sees to it that the controller has a certificate, and always a fresh one.
fn follow_certificate(
    options: Certificate,
    api: &Api,
    namespace: &str,
    identity: &Identity,
    tasks: &TaskTracker,
    end: &CancellationToken,
) -> Result<()> {
    match options {
        Certificate { tls_cert_file: Some(certificate), tls_key_file: Some(key), .. } => {
            tls::follow_files(identity, &certificate, &key, end.clone())
        }
        Certificate { ca_name: Some(name), server_name: Some(server_name), .. } => {
            let store = AuthorityStore::new(api.clone(), namespace.to_owned(), name);
            let identity = identity.clone();
            tasks.spawn(keep_certificate(store, identity, server_name, now, end.clone()));
            Ok(())
        }
        _ => Err(Error::invalid(
            "--ca-name and --server-name, or --tls-cert-file and --tls-key-file, are needed",
        )),
    }
}

/// Tells the controller when there is a certificate.
async fn open_for_nodes(controller: Arc<Controller>, identity: Identity, end: CancellationToken) {
    while !identity.is_set() {
        if end.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
            return;
        }
    }
    controller.nodes_can_come();
}

/// Ready when there is a certificate: then nodes can come.
#[derive(Clone, Debug)]
struct Ready(Identity);

impl Readiness for Ready {
    fn is_ready(&self) -> bool {
        self.0.is_set()
    }
}
