//! The command line's side: asks the controller of its own pod, and writes for people.

use std::path::{Path, PathBuf};

use cinderblock_proto::operator::v1 as pb;
use pb::operator_client::OperatorClient;
use tonic::Status;
use tonic::transport::Channel;

use super::{HANDLES_MAX, line, request};
use crate::error::{Error, Result, few};
use crate::names::Handle;
use crate::units::Bytes;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The controller's socket.
    pub socket: PathBuf,
    /// Orphans to remove. None: list them all.
    pub remove: Vec<Handle>,
}

/// Asks, and gives what is to be read. `now` in seconds since 1970.
///
/// # Errors
/// When there is no answer, or something that was to be removed stays.
pub async fn ask(ask: Ask, now: i64) -> Result<String> {
    let mut client = connect(&ask.socket).await?;
    if ask.remove.is_empty() {
        let listed = client.list_orphans(request(pb::ListOrphansRequest {})).await;
        return Ok(table(&listed.map_err(failed)?.into_inner(), now));
    }
    let mut out = String::new();
    for handles in ask.remove.chunks(HANDLES_MAX) {
        let handles = handles.iter().map(ToString::to_string).collect();
        let removed = client.remove_orphans(request(pb::RemoveOrphansRequest { handles })).await;
        said(&mut out, removed.map_err(failed)?.into_inner())?;
    }
    Ok(out)
}

async fn connect(socket: &Path) -> Result<OperatorClient<Channel>> {
    let channel = super::connect(socket).await.map_err(|e| {
        Error::unavailable(format!(
            "no controller answers at {}: run this in a controller's pod, as in \
             kubectl exec deploy/cinderblock-controller -- cinderblock orphans",
            socket.display()
        ))
        .because(e)
    })?;
    Ok(OperatorClient::new(channel))
}

fn failed(status: Status) -> Error {
    Error::unavailable(format!("the controller gave no answer: {}", status.message()))
        .because(status)
}

/// What became of each.
fn said(out: &mut String, answer: pb::RemoveOrphansResponse) -> Result<()> {
    if !answer.failure.is_empty() {
        return Err(Error::unavailable(format!("nothing was removed: {}", answer.failure)));
    }
    let mut refusals = Vec::new();
    for outcome in answer.outcomes {
        if outcome.refusal.is_empty() {
            line(out, format_args!("removed {}", outcome.handle));
        } else {
            refusals.push(outcome.refusal);
        }
    }
    if refusals.is_empty() {
        return Ok(());
    }
    Err(Error::failed_precondition(format!("{out}{}", refusals.join("\n"))))
}

/// All orphans in columns, and below what is not known.
fn table(answer: &pb::ListOrphansResponse, now: i64) -> String {
    let mut out = String::new();
    if !answer.orphans.is_empty() {
        let head = ["NODE", "VG", "KIND", "SIZE", "AGE", "CLAIM", "HANDLE"].map(str::to_owned);
        let rows = answer.orphans.iter().map(|orphan| row(orphan, now));
        columns(&mut out, &std::iter::once(head).chain(rows).collect::<Vec<_>>());
    }
    let Some(ago) = answer.looked_seconds_ago else {
        let why = if answer.failure.is_empty() { "not yet" } else { &answer.failure };
        line(&mut out, format_args!("nothing is known: the cluster was not asked: {why}"));
        return out;
    };
    line(&mut out, format_args!("{} orphans, looked {} ago", answer.total, span(ago)));
    let left_out =
        u64::try_from(answer.orphans.len()).map_or(0, |n| answer.total.saturating_sub(n));
    if left_out > 0 {
        line(&mut out, format_args!("{left_out} of them are not listed"));
    }
    if answer.waiting > 0 {
        let grace = span(answer.grace_seconds);
        line(
            &mut out,
            format_args!(
                "{} more that no object of the cluster knows, for less than {grace}",
                answer.waiting
            ),
        );
    }
    if !answer.failure.is_empty() {
        line(
            &mut out,
            format_args!("since then the cluster could not be asked: {}", answer.failure),
        );
    }
    if answer.without_snapshots {
        line(
            &mut out,
            format_args!("the cluster has no snapshot API: snapshots were not looked for"),
        );
    }
    if !answer.nodes_away.is_empty() {
        let nodes = few(answer.nodes_away.iter().cloned(), ", ");
        line(&mut out, format_args!("not connected, so not known: {nodes}"));
    }
    out
}

fn row(orphan: &pb::Orphan, now: i64) -> [String; 7] {
    let kind = if orphan.snapshot { "snapshot" } else { "volume" };
    let kind = if orphan.unfinished { format!("{kind}, unfinished") } else { kind.to_owned() };
    let age = now.checked_sub(orphan.created_unix).and_then(|age| u64::try_from(age).ok());
    let size = Bytes::new(orphan.size_bytes).to_string();
    [
        orphan.node.clone(),
        orphan.volume_group.clone(),
        kind,
        // Without the bytes behind it.
        size.split_once(" (").map_or(size.as_str(), |(short, _)| short).to_owned(),
        age.filter(|_| orphan.created_unix > 0).map_or_else(|| "?".to_owned(), span),
        if orphan.claim.is_empty() { "?".to_owned() } else { harmless(&orphan.claim) },
        orphan.handle.clone(),
    ]
}

/// It stands in a tag that anybody on the node may have written.
fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn columns<const N: usize>(out: &mut String, rows: &[[String; N]]) {
    let width = |i: usize| rows.iter().filter_map(|row| row.get(i)).map(String::len).max();
    let widths: Vec<usize> = (0..N).map(|i| width(i).unwrap_or_default()).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        line(out, format_args!("{}", cells.collect::<Vec<_>>().join("  ").trim_end()));
    }
}

/// A time in its largest unit, as kubectl writes ages.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orphan(node: &str, claim: &str) -> pb::Orphan {
        pb::Orphan {
            node: node.to_owned(),
            volume_group: "vg0".to_owned(),
            handle: "vg/pvc-1".to_owned(),
            size_bytes: (5 << 30) / 2,
            created_unix: 1_000,
            claim: claim.to_owned(),
            ..pb::Orphan::default()
        }
    }

    #[test]
    fn a_list_says_what_is_there_and_what_is_not_known() {
        let mut answer = pb::ListOrphansResponse {
            orphans: vec![
                orphan("n1", "db/\u{1b}data"),
                pb::Orphan { snapshot: true, unfinished: true, ..orphan("node-2", "") },
            ],
            total: 9,
            waiting: 3,
            grace_seconds: 3_600,
            looked_seconds_ago: Some(61),
            nodes_away: vec!["n3".to_owned(), "n4".to_owned()],
            ..pb::ListOrphansResponse::default()
        };
        let text = "\
NODE    VG   KIND                  SIZE     AGE  CLAIM     HANDLE
n1      vg0  volume                2.5 GiB  2h   db/?data  vg/pvc-1
node-2  vg0  snapshot, unfinished  2.5 GiB  2h   ?         vg/pvc-1
9 orphans, looked 61s ago
7 of them are not listed
3 more that no object of the cluster knows, for less than 60m
not connected, so not known: n3, n4
";
        assert_eq!(table(&answer, 8_200), text);
        answer.failure = "the API is away".to_owned();
        answer.without_snapshots = true;
        let text = table(&answer, 8_200);
        assert!(
            text.contains("could not be asked: the API is away") && text.contains("snapshot API")
        );
        answer.looked_seconds_ago = None;
        answer.orphans.clear();
        assert!(table(&answer, 8_200).starts_with("nothing is known"));
    }

    #[test]
    fn what_stays_is_an_error_and_what_went_is_told() {
        let outcome = |handle: &str, refusal: &str| pb::remove_orphans_response::Outcome {
            handle: handle.to_owned(),
            refusal: refusal.to_owned(),
        };
        let answer = |outcomes| pb::RemoveOrphansResponse { failure: String::new(), outcomes };
        let mut out = String::new();
        said(&mut out, answer(vec![outcome("vg/a", "")])).unwrap();
        assert_eq!(out, "removed vg/a\n");
        let error = said(&mut out, answer(vec![outcome("vg/b", ""), outcome("vg/c", "no")]));
        assert_eq!(error.unwrap_err().to_string(), "removed vg/a\nremoved vg/b\nno");
        let failed = pb::RemoveOrphansResponse { failure: "away".to_owned(), outcomes: vec![] };
        assert!(said(&mut out, failed).unwrap_err().to_string().contains("nothing was removed"));
    }
}
