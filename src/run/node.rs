//! The node: LVM and mounts of one machine, for the kubelet over its socket and for the
//! controllers over connections that it dials.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Ready, config_file};
use crate::admin::IsReady;
use crate::agent::Agent;
use crate::cli::{Common, Disks, Node as Options};
use crate::csi::{self, IdentityService, NodeService, Observer, Readiness, Services};
use crate::error::Result;
use crate::kubelet::Registrar;
use crate::link::{self, Dial};
use crate::metrics::Metrics;
use crate::names::topology_key;
use crate::net;
use crate::operator::serve_repair;

pub(super) async fn run(options: Options, stop: CancellationToken) -> Result<()> {
    let Options { common, disks, controller, token_file, ca_file, .. } = options;
    let Common { driver_name, config, csi_endpoint, http_address, log: _ } = common;
    let Disks { node_name, run_dir, operator } = disks;
    let metrics = Metrics::new(&driver_name);
    let config = config_file::follow(&config, Some(&node_name), &metrics, stop.clone())?;
    let host = super::host(&run_dir, metrics.programs()).await?;
    let labels = Arc::new(watch::Sender::new(None));
    let agent = Agent::new(host, config, labels.subscribe());
    metrics.show_inventory(agent.inventory());
    super::show_agent(&metrics, &agent);

    let observer = Observer::new(metrics.rpc());
    let key = topology_key(&driver_name);
    let ready = Ready(agent.inventory());
    let services = Services {
        identity: IdentityService::new(driver_name.clone(), ready, observer.clone()),
        controller: None,
        node: Some(NodeService::new(agent.clone(), node_name.clone(), key, observer)),
    };
    let listener = net::unix(&csi_endpoint)?;
    let operators = net::unix(&operator.operator_endpoint)?;
    tracing::info!(socket = %csi_endpoint.display(), node = %node_name, driver = driver_name, "serving");

    let registrar =
        options.registration_dir.zip(options.kubelet_endpoint).map(|(directory, endpoint)| {
            Registrar { directory, driver_name: driver_name.clone(), endpoint }
        });
    let registered = async {
        if let Some(registrar) = registrar {
            return registrar.run(stop.clone()).await;
        }
        stop.cancelled().await;
        Ok(())
    };
    let dial = Dial { controller, token_file, ca_file, driver_name };
    let ready = Ready(agent.inventory());
    let is_ready: IsReady = Arc::new(move || ready.is_ready());
    let http = async {
        tokio::select! {
            failed = super::http(http_address, metrics, is_ready, &stop) => failed,
            () = agent.run(stop.clone()) => Ok(()),
        }
    };
    let dialled = async {
        link::dial(dial, agent.clone(), labels, stop.clone()).await;
        Ok(())
    };
    // All of them end by `stop`, and the first that fails ends the others.
    let served = csi::serve(listener, services, stop.clone());
    let repairs = serve_repair(operators, agent.clone(), stop.clone());
    let result = tokio::try_join!(served, registered, http, dialled, repairs);
    stop.cancel();
    agent.finish().await;
    result.map(drop)
}
