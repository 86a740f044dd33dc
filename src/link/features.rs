//! What an agent understands beyond the first version of the protocol. A field that an older agent does
//! not know is dropped by it without a word: what depends on one is asked only of those that say that
//! they know it.

use crate::domain::{CowSize, CreateSnapshot, CreateVolume};
use crate::error::{Error, Result};
use crate::lvm::layout::ThickLayout;
use crate::names::NodeName;

/// What this agent says in its greeting.
pub(super) const OURS: [&str; 4] = [RAID, WIPE, COW_SIZE, ENCRYPTION];

const RAID: &str = "raid";
const WIPE: &str = "wipe";
const COW_SIZE: &str = "cow-size";
const ENCRYPTION: &str = "encryption";

/// What an agent has said.
#[derive(Clone, Debug, Default)]
pub(super) struct Features {
    said: Vec<String>,
    version: String,
}

impl Features {
    /// From its greeting.
    pub(super) const fn new(said: Vec<String>, version: String) -> Self {
        Self { said, version }
    }

    /// Whether it makes such a volume as it is asked for.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Unavailable`]: it will, after its update.
    pub(super) fn volume(&self, node: &NodeName, request: &CreateVolume) -> Result<()> {
        let class = &request.class;
        let raid = matches!(class.layout, ThickLayout::Raid { .. });
        self.expect(node, [(raid, RAID), (class.wipe.is_some(), WIPE), (class.luks, ENCRYPTION)])
    }

    /// Whether it takes such a snapshot as it is asked for.
    ///
    /// # Errors
    /// As [`Self::volume`].
    pub(super) fn snapshot(&self, node: &NodeName, request: &CreateSnapshot) -> Result<()> {
        self.expect(node, [(request.cow_size != CowSize::FULL, COW_SIZE)])
    }

    fn expect(
        &self,
        node: &NodeName,
        needed: impl IntoIterator<Item = (bool, &'static str)>,
    ) -> Result<()> {
        let missing = needed
            .into_iter()
            .find(|(needed, feature)| *needed && !self.said.iter().any(|said| said == feature));
        let Some((_, feature)) = missing else { return Ok(()) };
        Err(Error::unavailable(format!(
            "the agent of node {node} is of version {:?} and does not know {feature}: update it; nothing was \
             made, and this is tried again",
            self.version
        )))
    }
}
