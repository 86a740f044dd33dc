//! Measures every call and logs its failure once, here: callers are programs that may not show it.

use std::time::Instant;

use tonic::{Code, Response, Status};

use super::status::{code, status};
use crate::error::{ErrorKind, Result};
use crate::metrics::RpcMetrics;

/// Watches calls.
#[derive(Clone, Debug)]
pub struct Observer {
    metrics: RpcMetrics,
}

impl Observer {
    /// Counts into these metrics.
    #[must_use]
    pub const fn new(metrics: RpcMetrics) -> Self {
        Self { metrics }
    }

    /// Runs a call. `about` names the object for the log.
    pub(super) async fn call<T>(
        &self,
        method: &'static str,
        about: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<Response<T>, Status> {
        let mut measured = Measured { observer: self, method, started: Instant::now(), code: None };
        let result = work.await;
        let elapsed = measured.started.elapsed();
        match &result {
            Ok(_) => {
                measured.code = Some(Code::Ok);
                tracing::debug!(method, about, ?elapsed, "done");
            }
            Err(error) => {
                let code = code(error.kind());
                measured.code = Some(code);
                let (code, error_chain) = (code_name(code), error.chain());
                match error.kind() {
                    ErrorKind::Damaged | ErrorKind::Host => {
                        tracing::error!(
                            method,
                            about,
                            code,
                            error = error_chain,
                            ?elapsed,
                            "failed"
                        );
                    }
                    ErrorKind::Pending => {
                        tracing::debug!(
                            method,
                            about,
                            code,
                            error = error_chain,
                            ?elapsed,
                            "pending"
                        );
                    }
                    ErrorKind::Invalid
                    | ErrorKind::NotFound
                    | ErrorKind::AlreadyExists
                    | ErrorKind::NoSpace
                    | ErrorKind::OutOfRange
                    | ErrorKind::FailedPrecondition
                    | ErrorKind::Unavailable
                    | ErrorKind::BadToken
                    | ErrorKind::Unimplemented => tracing::warn!(
                        method,
                        about,
                        code,
                        error = error_chain,
                        ?elapsed,
                        "refused"
                    ),
                }
            }
        }
        drop(measured);
        result.map(Response::new).map_err(|e| status(&e))
    }
}

/// Counts when it is dropped, also when the caller went away.
struct Measured<'a> {
    observer: &'a Observer,
    method: &'static str,
    started: Instant,
    code: Option<Code>,
}

impl Drop for Measured<'_> {
    fn drop(&mut self) {
        let code = code_name(self.code.unwrap_or(Code::Cancelled));
        self.observer.metrics.observe(self.method, code, self.started.elapsed());
    }
}

/// The code's name as gRPC and the sidecars' metrics spell it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
