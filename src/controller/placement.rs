//! Which nodes to try for a new volume, and in which order. Pure.

use std::collections::BTreeMap;

use crate::domain::Topology;
use crate::error::few;
use crate::names::NodeName;
use crate::units::Bytes;

/// A node that may get the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub node: NodeName,
    /// What is known of it.
    pub standing: Standing,
}

/// What is known of a node's backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has this much room in all, and can make a volume of this size at most.
    Room {
        /// In all.
        available: Bytes,
        /// The largest volume.
        largest: Bytes,
    },
    /// It cannot take volumes: why.
    Unusable(String),
    /// It does not have the backend.
    Without,
    /// Nothing is known of it now: why.
    Unknown(String),
}

/// What is to be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// These nodes, in this order.
    Try(Vec<NodeName>),
    /// Nothing: it is known that none of them can take it. Why, for each.
    NoRoom(String),
    /// Nothing now: a node of which nothing is known may be able to. Why.
    Wait(String),
}

/// Chooses among `known`, of the nodes that were ever seen at least those that the topology names.
///
/// One allowed node is always tried: it looks at its disks once more before it refuses. Of several,
/// the CO's order counts where it gives one: when it prefers some of those that it allows. When it
/// prefers all that it allows, as external-provisioner does for claims that are bound at once, it
/// has only shuffled them, and the node with most room comes first.
#[must_use]
pub fn choose(known: &[Candidate], topology: &Topology, size: Bytes) -> Choice {
    let allowed = allowed(known, topology);
    if let [only] = allowed.as_slice() {
        return match &only.standing {
            Standing::Room { .. } => Choice::Try(vec![only.node.clone()]),
            Standing::Unusable(why) => Choice::NoRoom(format!("node {}: {why}", only.node)),
            Standing::Without => {
                Choice::NoRoom(format!("node {} does not have the backend", only.node))
            }
            Standing::Unknown(why) => Choice::Wait(format!("node {}: {why}", only.node)),
        };
    }
    let mut fitting: Vec<(usize, Bytes, &NodeName)> = allowed
        .iter()
        .filter_map(|candidate| match candidate.standing {
            Standing::Room { available, largest } if largest >= size => {
                Some((rank(&candidate.node, topology), available, &candidate.node))
            }
            Standing::Room { .. }
            | Standing::Unusable(_)
            | Standing::Without
            | Standing::Unknown(_) => None,
        })
        .collect();
    fitting.sort_by(|a, b| {
        (a.0, std::cmp::Reverse(a.1), a.2).cmp(&(b.0, std::cmp::Reverse(b.1), b.2))
    });
    if !fitting.is_empty() {
        return Choice::Try(fitting.into_iter().map(|(_, _, node)| node.clone()).collect());
    }
    let unknown: Vec<&Candidate> = allowed.iter().filter(|c| is_unknown(c)).collect();
    if unknown.is_empty() && !allowed.is_empty() {
        return Choice::NoRoom(few(allowed.iter().map(|c| describe(c, size)), "; "));
    }
    if allowed.is_empty() {
        return Choice::Wait("no node is connected".to_owned());
    }
    Choice::Wait(format!(
        "no node that is connected has room for {size}, and nothing is known of {}",
        few(unknown.into_iter().map(|c| describe(c, size)), "; ")
    ))
}

/// The nodes that a topology names. None: all that there are.
#[must_use]
pub(super) fn named(topology: &Topology) -> &[NodeName] {
    if topology.requisite.is_empty() { &topology.preferred } else { &topology.requisite }
}

fn allowed(known: &[Candidate], topology: &Topology) -> Vec<Candidate> {
    let named = named(topology);
    if named.is_empty() {
        return known.to_vec();
    }
    // By name, as both may be thousands.
    let known: BTreeMap<&NodeName, &Candidate> = known.iter().map(|c| (&c.node, c)).collect();
    let candidate = |node: &NodeName| match known.get(node) {
        Some(known) => Candidate::clone(known),
        None => Candidate {
            node: node.clone(),
            standing: Standing::Unknown(
                "it is not connected: look at its cinderblock pod".to_owned(),
            ),
        },
    };
    named.iter().map(candidate).collect()
}

/// The place of a node in an order that means something, 0 for all when there is none.
fn rank(node: &NodeName, topology: &Topology) -> usize {
    let order = &topology.preferred;
    let means_something =
        order.len() < topology.requisite.len().max(1) || topology.requisite.is_empty();
    if !means_something {
        return 0;
    }
    order.iter().position(|preferred| preferred == node).unwrap_or(order.len())
}

const fn is_unknown(candidate: &Candidate) -> bool {
    matches!(candidate.standing, Standing::Unknown(_))
}

fn describe(candidate: &Candidate, size: Bytes) -> String {
    let node = &candidate.node;
    match &candidate.standing {
        Standing::Room { largest, .. } => {
            format!("node {node} has room for {largest}, not for {size}")
        }
        Standing::Unusable(why) | Standing::Unknown(why) => format!("node {node}: {why}"),
        Standing::Without => format!("node {node} does not have the backend"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeName {
        NodeName::parse(name).unwrap()
    }

    fn room(name: &str, gib: u64) -> Candidate {
        let standing = Standing::Room { available: Bytes::gib(gib), largest: Bytes::gib(gib) };
        Candidate { node: node(name), standing }
    }

    fn topology(requisite: &[&str], preferred: &[&str]) -> Topology {
        let nodes = |names: &[&str]| names.iter().map(|n| node(n)).collect();
        Topology { requisite: nodes(requisite), preferred: nodes(preferred) }
    }

    fn tried(choice: Choice) -> Vec<String> {
        match choice {
            Choice::Try(nodes) => nodes.iter().map(ToString::to_string).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn most_room_first_when_the_choice_is_ours() {
        let known = [room("a", 5), room("b", 9), room("c", 1)];
        let free = choose(&known, &Topology::default(), Bytes::gib(2));
        assert_eq!(tried(free), ["b", "a"]);
        // external-provisioner's shuffled list of the allowed nodes.
        let shuffled = topology(&["a", "b"], &["a", "b"]);
        assert_eq!(tried(choose(&known, &shuffled, Bytes::gib(2))), ["b", "a"]);
    }

    #[test]
    fn a_preference_counts() {
        let known = [room("a", 5), room("b", 9), room("c", 7)];
        let some = topology(&["a", "b", "c"], &["a"]);
        assert_eq!(tried(choose(&known, &some, Bytes::gib(2))), ["a", "b", "c"]);
        let only = topology(&[], &["c", "a"]);
        assert_eq!(tried(choose(&known, &only, Bytes::gib(2))), ["c", "a"]);
    }

    #[test]
    fn the_only_allowed_node_is_asked_whatever_we_think() {
        let known = [room("a", 1), room("b", 9)];
        let choice = choose(&known, &topology(&["a"], &["a"]), Bytes::gib(2));
        assert_eq!(tried(choice), ["a"]);
    }

    #[test]
    fn unknown_is_not_full() {
        let mut known = vec![room("a", 1)];
        let size = Bytes::gib(2);
        let both = topology(&["a", "b"], &["a", "b"]);
        assert!(matches!(choose(&known, &both, size), Choice::Wait(why) if why.contains("node b")));
        assert!(matches!(choose(&known, &topology(&["b"], &[]), size), Choice::Wait(_)));
        assert!(matches!(choose(&[], &Topology::default(), size), Choice::Wait(_)));
        known.push(Candidate { node: node("b"), standing: Standing::Without });
        let Choice::NoRoom(why) = choose(&known, &both, size) else { panic!() };
        assert_eq!(
            why,
            "node a has room for 1 GiB, not for 2 GiB; node b does not have the backend"
        );
    }
}
