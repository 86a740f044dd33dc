//! Standalone: the controller and the agent of this machine in one process, on one socket.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Ready, config_file};
use crate::admin::IsReady;
use crate::agent::{Agent, Labels};
use crate::cli::{Common, Disks, Standalone};
use crate::controller::{Controller, Registry};
use crate::csi::{self, ControllerService, IdentityService, NodeService, Observer, Services};
use crate::domain::VolumeAgent;
use crate::error::Result;
use crate::host::Host;
use crate::metrics::Metrics;
use crate::names::{NodeName, topology_key};
use crate::net;
use crate::operator::serve_repair;

pub(super) async fn run(options: Standalone, stop: CancellationToken) -> Result<()> {
    let Standalone { common, disks } = options;
    let Common { driver_name, config, csi_endpoint, http_address, log: _ } = common;
    let Disks { node_name, run_dir, operator } = disks;
    let metrics = Metrics::new(&driver_name);
    let config = config_file::follow(&config, Some(&node_name), &metrics, stop.clone())?;
    let host = super::host(&run_dir, metrics.programs()).await?;
    let listener = net::unix(&csi_endpoint)?;
    let operators = net::unix(&operator.operator_endpoint)?;
    tracing::info!(socket = %csi_endpoint.display(), node = %node_name, driver = driver_name, "serving");
    let labels = watch::Sender::new(Some(Labels::new()));
    let agent = Agent::new(host, config.clone(), labels.subscribe());
    let services = services(&driver_name, &agent, &node_name, config, &metrics);
    metrics.show_inventory(agent.inventory());
    super::show_agent(&metrics, &agent);
    let (ready, watched) = (agent.inventory(), agent.clone());
    let is_ready: IsReady = Arc::new(move || ready.borrow().revision > 0);
    let http = super::http(http_address, metrics, is_ready, &stop);
    let result = tokio::select! {
        served = csi::serve(listener, services, stop.clone()) => served,
        failed = http => failed,
        failed = serve_repair(operators, agent.clone(), stop.clone()) => failed,
        () = watched.run(stop.clone()) => Ok(()),
    };
    stop.cancel();
    agent.finish().await;
    result
}

/// All services over one agent.
#[must_use]
pub fn services<H: Host>(
    driver_name: &str,
    agent: &Agent<H>,
    node: &NodeName,
    config: watch::Receiver<Arc<crate::config::Config>>,
    metrics: &Metrics,
) -> Services<Ready, H> {
    let registry = Arc::new(Registry::default());
    let local: Arc<dyn VolumeAgent> = Arc::new(agent.clone());
    let session = registry.connect(node.clone(), local);
    let mut inventory = agent.inventory();
    tokio::spawn(async move {
        loop {
            let now = Arc::clone(&inventory.borrow_and_update());
            if now.revision > 0 {
                session.update(&now);
            }
            if inventory.changed().await.is_err() {
                return;
            }
        }
    });
    let controller = Arc::new(Controller::new(registry, config, None, false));
    let observer = Observer::new(metrics.rpc());
    let topology_key = topology_key(driver_name);
    let ready = Ready(agent.inventory());
    Services {
        identity: IdentityService::new(driver_name.to_owned(), ready, observer.clone()),
        controller: Some(ControllerService::new(
            controller,
            topology_key.clone(),
            observer.clone(),
        )),
        node: Some(NodeService::new(agent.clone(), node.clone(), topology_key, observer)),
    }
}
