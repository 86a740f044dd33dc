//! Fills each secret of each message with a marker and looks for it in what `Debug` prints. Nothing
//! here names a message or a field: the descriptors say what there is and what is secret.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use prost::{DecodeError, Message};
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value,
};

use crate::csi::v1::{CreateVolumeRequest, NodeStageVolumeRequest};
use crate::generated::MESSAGES;

/// Text that stands for a secret: never to be seen.
const SECRET: &str = "MARKER-SECRET";
/// Text in all other fields: always to be seen, or hiding everything would pass.
const SHOWN: &str = "MARKER-SHOWN";
/// How deep a message is filled: deep enough for any secret, and ends recursion.
const DEPTH: usize = 6;
/// At least the number of fields in any oneof, so that each one is filled once.
const ROUNDS: usize = 16;

/// A message's full name, and what `{:?}` and `{:#?}` print of it when decoded from bytes.
pub(crate) type Formatter = (&'static str, fn(&[u8]) -> Result<[String; 2], DecodeError>);

pub(crate) fn format_as<M: Message + Default + Debug>(
    bytes: &[u8],
) -> Result<[String; 2], DecodeError> {
    let message = M::decode(bytes)?;
    Ok([format!("{message:?}"), format!("{message:#?}")])
}

/// The shapes of secrets that the real messages do not have yet.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated code"
)]
mod fixtures {
    use super::{Formatter, format_as};

    include!(concat!(env!("OUT_DIR"), "/fixtures/modules.rs"));
    include!(concat!(env!("OUT_DIR"), "/fixtures/debug.rs"));

    pub(super) const DESCRIPTORS: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/fixtures/descriptors.bin"));
    pub(super) const MESSAGES: &[Formatter] =
        include!(concat!(env!("OUT_DIR"), "/fixtures/messages.rs"));
}

fn is_secret(field: &FieldDescriptor) -> bool {
    let option = field.parent_pool().get_extension_by_name("csi.v1.csi_secret").expect("option");
    field.options().get_extension(&option).as_bool() == Some(true)
}

/// A value of the field's type with `text` wherever text fits.
fn scalar(kind: &Kind, text: &str, round: usize, depth: usize) -> Value {
    if let Kind::Message(message) = kind {
        Value::Message(fill(message, text, round, depth))
    } else if *kind == Kind::String {
        Value::String(text.to_owned())
    } else if *kind == Kind::Bytes {
        Value::Bytes(text.as_bytes().to_vec().into())
    } else {
        kind.default_value()
    }
}

/// A message with all fields set; of each oneof, the field whose turn it is in this round.
fn fill(descriptor: &MessageDescriptor, text: &str, round: usize, depth: usize) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        let out_of_turn = field.containing_oneof().is_some_and(|oneof| {
            let place = oneof.fields().position(|other| other == field).expect("its own field");
            Some(place) != round.checked_rem(oneof.fields().len())
        });
        let nested = matches!(field.kind(), Kind::Message(_));
        if out_of_turn || (nested && !field.is_map() && depth == 0) {
            continue;
        }
        let text = if is_secret(&field) { SECRET } else { text };
        let below = depth.saturating_sub(1);
        let value = if field.is_map() {
            let entry = field.kind().as_message().expect("map entry").clone();
            let value = scalar(&entry.map_entry_value_field().kind(), text, round, below);
            Value::Map([(MapKey::String(text.to_owned()), value)].into())
        } else if field.is_list() {
            Value::List(vec![scalar(&field.kind(), text, round, below)])
        } else {
            scalar(&field.kind(), text, round, below)
        };
        message.set_field(&field, value);
    }
    message
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Checks every message of the pool; returns the names of those that held a secret themselves.
fn check_all(pool: &DescriptorPool, formatters: &[Formatter]) -> BTreeSet<String> {
    let formatters: BTreeMap<_, _> = formatters.iter().copied().collect();
    let mut with_secrets = BTreeSet::new();
    for descriptor in pool.all_messages() {
        let name = descriptor.full_name();
        if descriptor.is_map_entry() || name.starts_with("google.protobuf.") {
            continue;
        }
        let format = formatters.get(name).unwrap_or_else(|| panic!("{name} is not in the table"));
        for oneof in descriptor.oneofs() {
            assert!(oneof.fields().len() <= ROUNDS, "{name}: raise ROUNDS");
        }
        for round in 0..ROUNDS {
            let bytes = fill(&descriptor, SHOWN, round, DEPTH).encode_to_vec();
            for printed in format(&bytes).expect("the generated type reads the same bytes") {
                assert!(!printed.contains("MARKER-SECRET"), "{name} prints a secret: {printed}");
                assert!(!printed.contains("77, 65, 82, 75, 69, 82, 45, 83, 69"), "{name}: bytes");
                assert_eq!(
                    printed.contains("<redacted"),
                    contains(&bytes, SECRET),
                    "{name}: a secret is redacted, and nothing else: {printed}"
                );
                assert_eq!(printed.contains(SHOWN), contains(&bytes, SHOWN), "{name}: {printed}");
            }
        }
        if descriptor.fields().any(|field| is_secret(&field)) {
            with_secrets.insert(name.to_owned());
        }
    }
    with_secrets
}

#[test]
fn no_message_prints_a_secret() {
    let pool = DescriptorPool::decode(crate::FILE_DESCRIPTOR_SET).unwrap();
    let with_secrets = check_all(&pool, MESSAGES);
    // Guards the test itself: were the option lost, nothing would be secret and all would pass.
    assert!(with_secrets.len() >= 21, "{with_secrets:?}");
    assert!(with_secrets.contains("csi.v1.NodeStageVolumeRequest"));
}

#[test]
fn no_shape_of_field_prints_a_secret() {
    let pool = DescriptorPool::decode(fixtures::DESCRIPTORS).unwrap();
    let mut formatters = fixtures::MESSAGES.to_vec();
    formatters.extend(MESSAGES);
    let with_secrets = check_all(&pool, &formatters);
    let expected = ["fixture.v1.Everything", "fixture.v1.Everything.Inner"];
    assert_eq!(with_secrets, expected.map(str::to_owned).into());
}

#[test]
fn everything_but_the_secret_is_printed() {
    let request = NodeStageVolumeRequest {
        volume_id: "vg/lv".to_owned(),
        staging_target_path: "/stage".to_owned(),
        secrets: [("passphrase".to_owned(), "hunter2".to_owned())].into(),
        ..NodeStageVolumeRequest::default()
    };
    assert_eq!(
        format!("{request:?}"),
        "NodeStageVolumeRequest { volume_id: \"vg/lv\", publish_context: {}, \
         staging_target_path: \"/stage\", volume_capability: None, secrets: <redacted, 1 key>, \
         volume_context: {} }"
    );
}

#[test]
fn the_number_of_keys_is_printed() {
    let mut request = CreateVolumeRequest::default();
    assert!(format!("{request:?}").contains("secrets: <redacted, 0 keys>"));
    for key in ["a", "b"] {
        request.secrets.insert(key.to_owned(), "hunter2".to_owned());
    }
    assert!(format!("{request:?}").contains("secrets: <redacted, 2 keys>"));
}

#[test]
fn each_shape_of_secret_says_how_much_there_is() {
    use fixtures::fixture::v1::{Everything, everything};

    let text = || "hunter2".to_owned();
    let full = Everything {
        passphrase: text(),
        raw: text().into_bytes(),
        tokens: vec![text(), text()],
        pairs: [(text(), text())].into(),
        hint: Some(text()),
        whole: Some(everything::Plain { shown: text() }),
        kind: Some(everything::Kind::Private(text())),
        ..Everything::default()
    };
    assert_eq!(
        format!("{full:?}"),
        "Everything { name: \"\", passphrase: <redacted>, raw: <redacted>, \
         tokens: <redacted, 2 values>, pairs: <redacted, 1 key>, inners: {}, \
         hint: Some(<redacted>), whole: Some(<redacted>), inner: None, type: None, level: 0, \
         kind: Some(Private(<redacted>)) }"
    );
    assert_eq!(format!("{:?}", everything::Level::High), "LEVEL_HIGH");
}
