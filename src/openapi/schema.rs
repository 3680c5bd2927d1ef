//! Schemas: JSON Schema 2020-12, as far as this server needs it.

use super::document::Components;
use super::json::JsonWriter;

#[derive(Clone, Copy, Debug)]
pub struct Schema {
    kind: Kind,
    description: &'static str,
    /// JSON; empty: none.
    default: &'static str,
    is_nullable: bool,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Any,
    Text { format: &'static str, pattern: &'static str, length: Option<(usize, Option<usize>)> },
    Integer { least: Option<u64>, most: Option<u64> },
    Number,
    Boolean,
    Constant(&'static str),
    OneOf(&'static [&'static str]),
    AnyOf(&'static [Schema]),
    AllOf(&'static [Schema]),
    Array { items: &'static Schema, is_filled: bool },
    Object { members: &'static [Member], is_closed: bool },
    Map { names: &'static str, values: &'static Schema },
    Named(&'static Named),
}

/// A schema that is written once, as a component.
#[derive(Debug)]
pub struct Named {
    pub name: &'static str,
    pub schema: Schema,
}

#[derive(Clone, Copy, Debug)]
pub struct Member {
    name: &'static str,
    schema: Schema,
    is_required: bool,
}

pub const fn required(name: &'static str, schema: Schema) -> Member {
    Member { name, schema, is_required: true }
}

pub const fn optional(name: &'static str, schema: Schema) -> Member {
    Member { name, schema, is_required: false }
}

const fn of(kind: Kind) -> Schema {
    Schema { kind, description: "", default: "", is_nullable: false }
}

/// Any JSON, or any bytes.
pub const fn any() -> Schema {
    of(Kind::Any)
}

pub const fn text() -> Schema {
    of(Kind::Text { format: "", pattern: "", length: None })
}

/// Text in a format that JSON Schema or `OpenAPI` names.
pub const fn formatted(format: &'static str) -> Schema {
    of(Kind::Text { format, pattern: "", length: None })
}

pub const fn pattern(pattern: &'static str) -> Schema {
    of(Kind::Text { format: "", pattern, length: None })
}

pub const fn uuid() -> Schema {
    formatted("uuid")
}

pub const fn date_time() -> Schema {
    formatted("date-time")
}

/// An integer of any sign.
pub const fn integer() -> Schema {
    of(Kind::Integer { least: None, most: None })
}

/// An integer from 0.
pub const fn count() -> Schema {
    of(Kind::Integer { least: Some(0), most: None })
}

pub const fn number() -> Schema {
    of(Kind::Number)
}

pub const fn boolean() -> Schema {
    of(Kind::Boolean)
}

/// This string.
pub const fn constant(value: &'static str) -> Schema {
    of(Kind::Constant(value))
}

/// One of these strings.
pub const fn one_of(values: &'static [&'static str]) -> Schema {
    of(Kind::OneOf(values))
}

/// At least one of these schemas.
pub const fn any_of(schemas: &'static [Schema]) -> Schema {
    of(Kind::AnyOf(schemas))
}

pub const fn all_of(schemas: &'static [Schema]) -> Schema {
    of(Kind::AllOf(schemas))
}

pub const fn array(items: &'static Schema) -> Schema {
    of(Kind::Array { items, is_filled: false })
}

/// An array of one element or more.
pub const fn filled_array(items: &'static Schema) -> Schema {
    of(Kind::Array { items, is_filled: true })
}

/// An object with these members, and perhaps others.
pub const fn object(members: &'static [Member]) -> Schema {
    of(Kind::Object { members, is_closed: false })
}

/// An object with these members and no other.
pub const fn closed_object(members: &'static [Member]) -> Schema {
    of(Kind::Object { members, is_closed: true })
}

/// An object with any members that have these values.
pub const fn map(values: &'static Schema) -> Schema {
    of(Kind::Map { names: "", values })
}

/// An object whose members have names that match the pattern.
pub const fn map_of(names: &'static str, values: &'static Schema) -> Schema {
    of(Kind::Map { names, values })
}

pub const fn named(named: &'static Named) -> Schema {
    of(Kind::Named(named))
}

impl Schema {
    #[must_use]
    pub const fn description(self, description: &'static str) -> Self {
        Self { description, ..self }
    }

    /// `default` is JSON.
    #[must_use]
    pub const fn default(self, default: &'static str) -> Self {
        Self { default, ..self }
    }

    #[must_use]
    pub const fn or_null(self) -> Self {
        Self { is_nullable: true, ..self }
    }

    /// Text of `least` to `most` characters.
    #[must_use]
    pub const fn length(self, least: usize, most: usize) -> Self {
        self.of_length(least, Some(most))
    }

    #[must_use]
    pub const fn not_empty(self) -> Self {
        self.of_length(1, None)
    }

    const fn of_length(self, least: usize, most: Option<usize>) -> Self {
        let Kind::Text { format, pattern, .. } = self.kind else {
            panic!("BUG: only text has a length");
        };
        Self { kind: Kind::Text { format, pattern, length: Some((least, most)) }, ..self }
    }

    /// An integer from `least` to `most`.
    #[must_use]
    pub const fn between(self, least: u64, most: u64) -> Self {
        Self { kind: Kind::Integer { least: Some(least), most: Some(most) }, ..self }
    }

    /// Writes the schema, and notes the components that it refers to.
    pub(super) fn write(&self, out: &mut JsonWriter, components: &mut Components) {
        out.object(|out| {
            if self.is_nullable && !self.kind.has_type() {
                let schema = Self { is_nullable: false, description: "", ..*self };
                out.key("anyOf");
                out.array(|out| {
                    schema.write(out, components);
                    out.raw(r#"{"type":"null"}"#);
                });
            } else {
                self.write_kind(out, components);
            }
            out.text_member("description", self.description);
            if !self.default.is_empty() {
                out.raw_member("default", self.default);
            }
        });
    }

    fn write_type(&self, name: &str, out: &mut JsonWriter) {
        if self.is_nullable { out.strings("type", [name, "null"]) } else { out.text_member("type", name) }
    }

    fn write_kind(&self, out: &mut JsonWriter, components: &mut Components) {
        match self.kind {
            Kind::Any => {}
            Kind::Text { format, pattern, length } => {
                self.write_type("string", out);
                out.text_member("format", format);
                out.text_member("pattern", pattern);
                if let Some((least, most)) = length {
                    out.raw_member("minLength", &least.to_string());
                    if let Some(most) = most {
                        out.raw_member("maxLength", &most.to_string());
                    }
                }
            }
            Kind::Integer { least, most } => {
                self.write_type("integer", out);
                for (name, bound) in [("minimum", least), ("maximum", most)] {
                    if let Some(bound) = bound {
                        out.raw_member(name, &bound.to_string());
                    }
                }
            }
            Kind::Number => self.write_type("number", out),
            Kind::Boolean => self.write_type("boolean", out),
            Kind::Constant(value) => out.text_member("const", value),
            Kind::OneOf(values) => {
                out.text_member("type", "string");
                out.strings("enum", values.iter().copied());
            }
            Kind::AnyOf(schemas) => write_list("anyOf", schemas, out, components),
            Kind::AllOf(schemas) => write_list("allOf", schemas, out, components),
            Kind::Array { items, is_filled } => {
                self.write_type("array", out);
                if is_filled {
                    out.raw_member("minItems", "1");
                }
                out.key("items");
                items.write(out, components);
            }
            Kind::Object { members, is_closed } => self.write_object(members, is_closed, out, components),
            Kind::Map { names, values } => {
                self.write_type("object", out);
                if !names.is_empty() {
                    out.key("propertyNames");
                    out.object(|out| out.text_member("pattern", names));
                }
                out.key("additionalProperties");
                values.write(out, components);
            }
            Kind::Named(named) => {
                out.text_member("$ref", &format!("#/components/schemas/{}", named.name));
                components.schemas.insert(named.name, &named.schema);
            }
        }
    }

    fn write_object(
        &self,
        members: &[Member],
        is_closed: bool,
        out: &mut JsonWriter,
        components: &mut Components,
    ) {
        self.write_type("object", out);
        if members.iter().any(|member| member.is_required) {
            let required = members.iter().filter(|member| member.is_required);
            out.strings("required", required.map(|member| member.name));
        }
        if is_closed {
            out.raw_member("additionalProperties", "false");
        }
        if !members.is_empty() {
            out.key("properties");
            out.object(|out| {
                for member in members {
                    out.key(member.name);
                    member.schema.write(out, components);
                }
            });
        }
    }
}

impl Kind {
    /// Whether its JSON has a member `type`, which may name null too.
    fn has_type(self) -> bool {
        !matches!(self, Self::Constant(_) | Self::OneOf(_) | Self::AnyOf(_) | Self::AllOf(_) | Self::Named(_))
    }
}

fn write_list(name: &str, schemas: &[Schema], out: &mut JsonWriter, components: &mut Components) {
    out.key(name);
    out.array(|out| schemas.iter().for_each(|schema| schema.write(out, components)));
}
