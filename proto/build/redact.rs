//! `Debug` without secrets. The option `csi.v1.csi_secret` on a field says what is secret; for a
//! message that has such a field prost leaves `Debug` out, and the impl written here prints the
//! other fields as they are, and of the secret only how much there is.
//!
//! prost leaves `Debug` out for everything declared inside such a message too (nested messages and
//! enums, oneofs), so those are written here as well. A message that merely contains one of them
//! keeps its derived `Debug`, which calls the impl from here. The one difference to a derived impl:
//! an enum field shows its number, not its name.

use std::fmt::Write;

use heck::{ToSnakeCase, ToUpperCamelCase};
use protox::prost_reflect::{
    DescriptorPool, EnumDescriptor, ExtensionDescriptor, FieldDescriptor, MessageDescriptor,
    OneofDescriptor,
};

use super::Result;

const SECRET_OPTION: &str = "csi.v1.csi_secret";

/// Rust keywords that may be the name of a field; prost makes them raw identifiers.
const KEYWORDS: [&str; 38] = [
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "do", "dyn",
    "else", "enum", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop",
    "macro", "match", "mod", "move", "mut", "override", "priv", "pub", "ref", "return", "static",
    "type", "use", "where", "yield",
];

/// Printed in place of a secret that has no count.
const REDACTED: &str = "::core::format_args!(\"<redacted>\")";

const HELPER: &str = r#"
fn redacted(count: usize, unit: &str) -> String {
    format!("<redacted, {count} {unit}{}>", if count == 1 { "" } else { "s" })
}
"#;

/// The messages of our own files, and which of their fields are secret.
pub(crate) struct Secrets {
    option: ExtensionDescriptor,
    messages: Vec<MessageDescriptor>,
    enums: Vec<EnumDescriptor>,
}

impl Secrets {
    pub(crate) fn find(pool: &DescriptorPool) -> Result<Self> {
        let ours = |package: &str| !package.starts_with("google.");
        Ok(Self {
            option: pool.get_extension_by_name(SECRET_OPTION).ok_or("no option csi_secret")?,
            messages: pool
                .all_messages()
                .filter(|message| ours(message.package_name()) && !message.is_map_entry())
                .collect(),
            enums: pool.all_enums().filter(|item| ours(item.package_name())).collect(),
        })
    }

    /// Paths for `skip_debug`.
    pub(crate) fn messages_with_secrets(&self) -> Vec<String> {
        let with_secret = self.messages.iter().filter(|message| self.has_secret(message));
        with_secret.map(|message| format!(".{}", message.full_name())).collect()
    }

    /// The impls for all types that prost leaves without `Debug`.
    pub(crate) fn debug_impls(&self) -> Result<String> {
        let mut out = HELPER.to_owned();
        for message in self.messages.iter().filter(|message| self.lacks_debug(message)) {
            self.message_impl(&mut out, message)?;
            for oneof in message.oneofs().filter(|oneof| !oneof.is_synthetic()) {
                self.oneof_impl(&mut out, message, &oneof)?;
            }
        }
        for item in &self.enums {
            let Some(parent) = item.parent_message().filter(|parent| self.lacks_debug(parent))
            else {
                continue;
            };
            let path = format!("{}::{}", module_of(&parent), type_name(item.name()));
            write_impl(&mut out, &path, "f.write_str(self.as_str_name())")?;
        }
        Ok(out)
    }

    /// An array of (full name, function that decodes bytes and formats the message), for each
    /// message there is. The test that includes it declares `format_as`.
    pub(crate) fn message_table(&self) -> Result<String> {
        let mut out = "&[\n".to_owned();
        for message in &self.messages {
            let path = path_of(message);
            writeln!(out, "    ({:?}, format_as::<{path}>),", message.full_name())?;
        }
        out.push_str("]\n");
        Ok(out)
    }

    fn is_secret(&self, field: &FieldDescriptor) -> bool {
        field.options().get_extension(&self.option).as_bool() == Some(true)
    }

    fn has_secret(&self, message: &MessageDescriptor) -> bool {
        message.fields().any(|field| self.is_secret(&field))
    }

    /// True for a message with a secret, and for all that is declared inside one.
    fn lacks_debug(&self, message: &MessageDescriptor) -> bool {
        self.has_secret(message)
            || message.parent_message().is_some_and(|parent| self.lacks_debug(&parent))
    }

    fn message_impl(&self, out: &mut String, message: &MessageDescriptor) -> Result<()> {
        let mut body = format!("f.debug_struct({:?})\n", type_name(message.name()));
        for field in message.fields().filter(|field| real_oneof(field).is_none()) {
            let member = field_name(field.name());
            let value = if !self.is_secret(&field) {
                format!("self.{member}")
            } else if field.is_map() || field.is_list() {
                let unit = if field.is_map() { "key" } else { "value" };
                let count = format!("redacted(self.{member}.len(), {unit:?})");
                format!("::core::format_args!(\"{{}}\", {count})")
            } else if field.supports_presence() {
                format!("self.{member}.as_ref().map(|_| {REDACTED})")
            } else {
                REDACTED.to_owned()
            };
            writeln!(body, "            .field({:?}, &{value})", field.name())?;
        }
        for oneof in message.oneofs().filter(|oneof| !oneof.is_synthetic()) {
            let member = field_name(oneof.name());
            writeln!(body, "            .field({:?}, &self.{member})", oneof.name())?;
        }
        body.push_str("            .finish()");
        write_impl(out, &path_of(message), &body)
    }

    fn oneof_impl(
        &self,
        out: &mut String,
        message: &MessageDescriptor,
        oneof: &OneofDescriptor,
    ) -> Result<()> {
        let mut body = "match self {\n".to_owned();
        for field in oneof.fields() {
            let name = type_name(field.name());
            let (bound, value) = if self.is_secret(&field) {
                ("_", format!("&{REDACTED}"))
            } else {
                ("value", "value".to_owned())
            };
            writeln!(
                body,
                "            Self::{name}({bound}) => f.debug_tuple({name:?}).field({value}).finish(),"
            )?;
        }
        body.push_str("        }");
        let path = format!("{}::{}", module_of(message), type_name(oneof.name()));
        write_impl(out, &path, &body)
    }
}

fn write_impl(out: &mut String, path: &str, body: &str) -> Result<()> {
    write!(
        out,
        r"
impl ::core::fmt::Debug for {path} {{
    fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{
        {body}
    }}
}}
"
    )?;
    Ok(())
}

/// The oneof of a field, unless it stands for the word `optional`.
fn real_oneof(field: &FieldDescriptor) -> Option<OneofDescriptor> {
    field.containing_oneof().filter(|oneof| !oneof.is_synthetic())
}

/// Path of the message's struct, as seen from where `modules.rs` is included.
fn path_of(message: &MessageDescriptor) -> String {
    let module = message.parent_message().map_or_else(
        || message.package_name().split('.').map(field_name).collect::<Vec<_>>().join("::"),
        |parent| module_of(&parent),
    );
    format!("{module}::{}", type_name(message.name()))
}

/// Path of the module that holds what is declared inside the message.
fn module_of(message: &MessageDescriptor) -> String {
    let path = path_of(message);
    let parent = path.rsplit_once("::").map_or("", |(parent, _)| parent);
    format!("{parent}::{}", field_name(message.name()))
}

/// Name of a struct, enum or variant, as prost spells it.
fn type_name(name: &str) -> String {
    name.to_upper_camel_case()
}

/// Name of a field or module, as prost spells it.
fn field_name(name: &str) -> String {
    let name = name.to_snake_case();
    if KEYWORDS.contains(&name.as_str()) { format!("r#{name}") } else { name }
}
