//! Our text of the protocols against the facts of the originals: `csi-1.13.wire` and
//! `pluginregistration-v1.wire` say what must be on the wire, nothing less and nothing more.
#![cfg(test)]

use std::collections::BTreeSet;

use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, FileDescriptor, Kind,
    MessageDescriptor, ServiceDescriptor, Value,
};

/// Facts, one a line. csi-1.13.wire explains the format.
#[derive(Default)]
struct Facts(BTreeSet<String>);

impl Facts {
    /// The facts of all files of a package.
    fn of_package(pool: &DescriptorPool, package: &str) -> Self {
        let mut facts = Self::default();
        for file in pool.files().filter(|file| file.package_name() == package) {
            facts.file(&file);
        }
        let in_package = |name: &str| name == package;
        pool.all_messages()
            .filter(|message| in_package(message.package_name()) && !message.is_map_entry())
            .for_each(|message| facts.message(&message));
        pool.all_enums()
            .filter(|item| in_package(item.package_name()))
            .for_each(|item| facts.enumeration(&item));
        pool.services()
            .filter(|service| in_package(service.package_name()))
            .for_each(|service| facts.service(&service));
        for extension in pool.all_extensions().filter(|item| in_package(item.package_name())) {
            let label = if extension.is_list() { "repeated" } else { "singular" };
            facts.add(format!(
                "extension {} {} {} {label} {}",
                extension.full_name(),
                extension.containing_message().full_name(),
                extension.number(),
                type_name(&extension.kind()),
            ));
        }
        facts
    }

    fn add(&mut self, fact: String) {
        self.0.insert(fact);
    }

    fn file(&mut self, file: &FileDescriptor) {
        // A file that names no syntax is proto2.
        let syntax = file.file_descriptor_proto().syntax.as_deref().unwrap_or("proto2");
        self.add(format!("syntax {} {syntax}", file.package_name()));
    }

    fn message(&mut self, message: &MessageDescriptor) {
        let name = message.full_name();
        self.add(format!("message {name}"));
        self.options(name, &message.options());
        for field in message.fields() {
            self.add(format!("field {} {}", field.full_name(), describe(&field)));
            self.options(field.full_name(), &field.options());
        }
        for oneof in message.oneofs().filter(|oneof| !oneof.is_synthetic()) {
            self.add(format!("oneof {}", oneof.full_name()));
            self.options(oneof.full_name(), &oneof.options());
        }
        for range in message.reserved_ranges() {
            // The end of a message's range is not part of it.
            self.reserved(name, range.start.into(), i64::from(range.end).saturating_sub(1));
        }
        for field in message.reserved_names() {
            self.add(format!("reserved {name} {field:?}"));
        }
    }

    fn enumeration(&mut self, item: &EnumDescriptor) {
        let name = item.full_name();
        self.add(format!("enum {name}"));
        self.options(name, &item.options());
        for value in item.values() {
            self.add(format!("value {name}.{} {}", value.name(), value.number()));
            self.options(&format!("{name}.{}", value.name()), &value.options());
        }
        for range in item.reserved_ranges() {
            self.reserved(name, (*range.start()).into(), (*range.end()).into());
        }
        for value in item.reserved_names() {
            self.add(format!("reserved {name} {value:?}"));
        }
    }

    fn service(&mut self, service: &ServiceDescriptor) {
        self.add(format!("service {}", service.full_name()));
        self.options(service.full_name(), &service.options());
        let kind = |streaming: bool| if streaming { "stream" } else { "unary" };
        for method in service.methods() {
            self.add(format!(
                "method {} {} {} {} {}",
                method.full_name(),
                kind(method.is_client_streaming()),
                method.input().full_name(),
                kind(method.is_server_streaming()),
                method.output().full_name(),
            ));
            self.options(method.full_name(), &method.options());
        }
    }

    fn reserved(&mut self, name: &str, first: i64, last: i64) {
        let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
        self.add(format!("reserved {name} {range}"));
    }

    /// All options that are set, the standard ones and those of CSI.
    fn options(&mut self, owner: &str, options: &DynamicMessage) {
        let text = |value: &Value| value.as_bool().map_or(format!("{value:?}"), |b| b.to_string());
        for (field, value) in options.fields() {
            self.add(format!("option {owner} {} {}", field.full_name(), text(value)));
        }
        for (extension, value) in options.extensions() {
            self.add(format!("option {owner} {} {}", extension.full_name(), text(value)));
        }
    }
}

/// Number, label, type and the rest of a field.
fn describe(field: &FieldDescriptor) -> String {
    let (label, kind) = if field.is_map() {
        let entry = field.kind();
        let entry = entry.as_message().expect("a map entry is a message");
        let key = type_name(&entry.map_entry_key_field().kind());
        ("map", format!("{key},{}", type_name(&entry.map_entry_value_field().kind())))
    } else if field.is_list() {
        ("repeated", type_name(&field.kind()))
    } else if field.field_descriptor_proto().proto3_optional() {
        ("optional", type_name(&field.kind()))
    } else {
        ("singular", type_name(&field.kind()))
    };
    let mut text = format!("{} {label} {kind}", field.number());
    if let Some(oneof) = field.containing_oneof().filter(|oneof| !oneof.is_synthetic()) {
        text = format!("{text} oneof={}", oneof.name());
    }
    if field.is_packed() { format!("{text} packed") } else { text }
}

/// Full name of a message or enum, else the name of the scalar type.
fn type_name(kind: &Kind) -> String {
    format!("{kind:?}")
}

#[track_caller]
fn assert_wire(package: &str, committed: &str) {
    let pool = DescriptorPool::decode(cinderblock_proto::FILE_DESCRIPTOR_SET).expect("descriptors");
    let ours = Facts::of_package(&pool, package).0;
    let facts: BTreeSet<String> =
        committed.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    let missing: Vec<_> = facts.difference(&ours).collect();
    let extra: Vec<_> = ours.difference(&facts).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "{package}: not in our text: {missing:#?}\nonly in our text: {extra:#?}"
    );
    assert!(!facts.is_empty(), "{package}: no facts");
}

#[test]
fn csi_is_the_original_on_the_wire() {
    assert_wire("csi.v1", include_str!("csi-1.13.wire"));
}

#[test]
fn plugin_registration_is_the_original_on_the_wire() {
    assert_wire("pluginregistration", include_str!("pluginregistration-v1.wire"));
}
