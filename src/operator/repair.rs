//! `cinderblock repair`, both sides: a person says that lost disks do not come back.

use std::path::PathBuf;

use cinderblock_proto::operator::v1 as pb;
use pb::node_operator_client::NodeOperatorClient;
use pb::node_operator_server::{NodeOperator, NodeOperatorServer};
use pb::repair_response::Outcome;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{line, request};
use crate::agent::Agent;
use crate::domain::Repaired;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::names::BackendName;

/// What is asked.
#[derive(Clone, Debug)]
pub struct AskRepair {
    /// The agent's socket.
    pub socket: PathBuf,
    /// The backend whose volume group is meant. None: those of all.
    pub backend: Option<BackendName>,
}

/// Asks, and gives what is to be read.
///
/// # Errors
/// When there is no answer, or something is not repaired.
pub async fn ask_repair(ask: AskRepair) -> Result<String> {
    let channel = super::connect(&ask.socket).await.map_err(|e| {
        Error::unavailable(format!(
            "no agent answers at {}: run this in the node's pod, as in \
             kubectl exec POD -- cinderblock repair",
            ask.socket.display()
        ))
        .because(e)
    })?;
    let backend = ask.backend.map(|name| name.to_string()).unwrap_or_default();
    let mut client = NodeOperatorClient::new(channel);
    let answer = client.repair(request(pb::RepairRequest { backend })).await;
    let answer = answer.map_err(|status| {
        Error::unavailable(format!("nothing is told of a repair: {}", status.message()))
            .because(status)
    })?;
    said(answer.into_inner())
}

fn said(answer: pb::RepairResponse) -> Result<String> {
    if answer.outcomes.is_empty() {
        return Ok("nothing to repair: no volume group of this node misses a disk\n".to_owned());
    }
    let failed = answer.outcomes.iter().any(|outcome| outcome.failed);
    let mut out = String::new();
    for Outcome { what, said, failed: _ } in answer.outcomes {
        line(&mut out, format_args!("{what}: {said}"));
    }
    if failed { Err(Error::failed_precondition(out.trim_end())) } else { Ok(out) }
}

/// The agent's side. Serves until `stop`.
///
/// # Errors
/// When the listener fails.
pub async fn serve_repair<H: Host>(
    listener: UnixListener,
    agent: Agent<H>,
    stop: CancellationToken,
) -> Result<()> {
    let served = super::server().add_service(NodeOperatorServer::new(Service(agent)));
    super::serve_on(served, listener, stop).await
}

struct Service<H>(Agent<H>);

#[tonic::async_trait]
impl<H: Host> NodeOperator for Service<H> {
    async fn repair(
        &self,
        request: Request<pb::RepairRequest>,
    ) -> Result<Response<pb::RepairResponse>, Status> {
        let name = request.into_inner().backend;
        let backend = if name.is_empty() { None } else { Some(BackendName::parse(&name)) };
        let backend = backend.transpose().map_err(|e| super::invalid(&e))?;
        let done = self.0.repair(backend).await;
        let done = done.map_err(|error| Status::unavailable(error.chain()))?;
        let outcome = |it: Repaired| Outcome { what: it.what, said: it.said, failed: it.failed };
        let outcomes = done.into_iter().map(outcome).collect();
        Ok(Response::new(pb::RepairResponse { outcomes }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_still_broken_is_an_error() {
        let outcome = |what: &str, failed| Outcome {
            what: what.to_owned(),
            said: "is so".to_owned(),
            failed,
        };
        let answer = |outcomes| pb::RepairResponse { outcomes };
        assert!(said(answer(vec![])).unwrap().starts_with("nothing to repair"));
        assert_eq!(said(answer(vec![outcome("vg0", false)])).unwrap(), "vg0: is so\n");
        let error = said(answer(vec![outcome("vg0", false), outcome("vg0/x", true)])).unwrap_err();
        assert_eq!(error.to_string(), "vg0: is so\nvg0/x: is so");
    }
}
