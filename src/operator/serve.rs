//! The controller's side.

use std::sync::Arc;

use cinderblock_proto::operator::v1 as pb;
use pb::operator_server::{Operator, OperatorServer};
use pb::remove_orphans_response::Outcome;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{HANDLES_MAX, ROWS_MAX};
use crate::controller::Orphans;
use crate::domain::{Orphan, What};
use crate::error::Result;
use crate::names::Handle;

/// Serves until `stop`.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: UnixListener,
    orphans: Arc<Orphans>,
    stop: CancellationToken,
) -> Result<()> {
    let served = super::server().add_service(OperatorServer::new(Service(orphans)));
    super::serve_on(served, listener, stop).await
}

struct Service(Arc<Orphans>);

#[tonic::async_trait]
impl Operator for Service {
    async fn list_orphans(
        &self,
        _: Request<pb::ListOrphansRequest>,
    ) -> Result<Response<pb::ListOrphansResponse>, Status> {
        let seen = self.0.seen();
        Ok(Response::new(pb::ListOrphansResponse {
            orphans: seen.orphans.iter().take(ROWS_MAX).map(orphan).collect(),
            total: u64::try_from(seen.orphans.len()).unwrap_or(u64::MAX),
            waiting: u64::try_from(seen.waiting).unwrap_or(u64::MAX),
            grace_seconds: self.0.grace().as_secs(),
            looked_seconds_ago: seen.looked.map(|ago| ago.as_secs()),
            failure: seen.failure.unwrap_or_default(),
            without_snapshots: seen.looked.is_some() && !seen.snapshots,
            nodes_away: seen.away.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn remove_orphans(
        &self,
        request: Request<pb::RemoveOrphansRequest>,
    ) -> Result<Response<pb::RemoveOrphansResponse>, Status> {
        let handles = request.into_inner().handles;
        if handles.len() > HANDLES_MAX {
            let sentence = format!("no more than {HANDLES_MAX} orphans can be removed at once");
            return Err(Status::invalid_argument(sentence));
        }
        let parsed = handles.iter().map(|text| Handle::parse(text));
        let parsed = parsed.collect::<Result<Vec<_>, _>>();
        let parsed = parsed.map_err(|e| super::invalid(&e))?;
        // To its end, also when nobody waits for it any more.
        let orphans = Arc::clone(&self.0);
        let task = tokio::spawn(async move { orphans.remove(&parsed).await });
        let removed = task.await.map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(match removed {
            Err(error) => pb::RemoveOrphansResponse { failure: error.chain(), outcomes: vec![] },
            Ok(removed) => {
                let outcomes = handles.into_iter().zip(removed).map(|(handle, removed)| {
                    let refusal = removed.err().map(|e| e.chain()).unwrap_or_default();
                    Outcome { handle, refusal }
                });
                pb::RemoveOrphansResponse { failure: String::new(), outcomes: outcomes.collect() }
            }
        }))
    }
}

fn orphan(orphan: &Orphan) -> pb::Orphan {
    let claim = orphan.claim.as_ref().map(|c| format!("{}/{}", c.namespace, c.name));
    pb::Orphan {
        node: orphan.node.to_string(),
        volume_group: orphan.volume_group.to_string(),
        handle: orphan.handle.to_string(),
        snapshot: orphan.what == What::Snapshot,
        unfinished: orphan.unfinished,
        size_bytes: orphan.size.get(),
        created_unix: orphan.created_unix,
        claim: claim.unwrap_or_default(),
    }
}
