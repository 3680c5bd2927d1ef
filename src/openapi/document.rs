//! Writes the document. Components are those that the operations refer to, so none is missing and none
//! is unused.

use std::collections::BTreeMap;

use super::json::JsonWriter;
use super::{Example, Header, Media, Operation, Parameter, Place, Response, Schema};

/// What an operation's examples have instead of the present time, the longest name first: as
/// nanoseconds and as seconds since 1970, and in RFC 3339.
const NOW_NANOS: &str = "$NOW_NANOS";
const NOW_SECONDS: &str = "$NOW_SECONDS";
const NOW: &str = "$NOW";

/// What precedes the paths.
#[derive(Clone, Copy, Debug)]
pub struct Info {
    pub version: &'static str,
    pub description: &'static str,
    pub tags: &'static [&'static str],
    /// JSON: the schemes of authentication by name.
    pub security_schemes: &'static str,
    /// JSON: the alternatives that a request chooses from, unless its operation needs none.
    pub security: &'static str,
}

/// One operation with what its route declares.
#[derive(Clone, Debug)]
pub struct DescribedOperation {
    pub method: &'static str,
    pub operation: &'static Operation,
    /// The statuses of refusals that the route implies.
    pub implied_errors: Vec<u16>,
    pub is_public: bool,
}

/// The components that operations refer to, by name.
#[derive(Debug, Default)]
pub(super) struct Components {
    pub(super) schemas: BTreeMap<&'static str, &'static Schema>,
    parameters: BTreeMap<&'static str, &'static Parameter>,
    responses: BTreeMap<&'static str, &'static Response>,
}

/// The document, but for the times of its examples.
#[derive(Debug)]
pub struct Document {
    template: String,
}

impl Document {
    pub fn new(info: &Info, paths: &[(&'static str, Vec<DescribedOperation>)]) -> Self {
        let (mut out, mut components) = (JsonWriter::default(), Components::default());
        out.object(|out| {
            out.text_member("openapi", "3.1.0");
            write_info(info, out);
            out.key("paths");
            out.object(|out| {
                for (path, operations) in paths {
                    out.key(path);
                    out.object(|out| {
                        for described in operations {
                            described.write(out, &mut components);
                        }
                    });
                }
            });
            out.key("components");
            out.object(|out| {
                out.raw_member("securitySchemes", info.security_schemes);
                components.write(out);
            });
        });
        Self { template: out.finish() }
    }

    /// The document with examples that are valid at the time given: seconds since 1970, and the same in
    /// RFC 3339. A server refuses events that are too old, so an example cannot have a fixed time.
    pub fn at(&self, seconds: i64, rfc3339: &str) -> String {
        let nanos = format!("{seconds}000000000");
        let text = self.template.replace(NOW_NANOS, &nanos);
        text.replace(NOW_SECONDS, &seconds.to_string()).replace(NOW, rfc3339)
    }
}

fn write_info(info: &Info, out: &mut JsonWriter) {
    out.key("info");
    out.object(|out| {
        out.text_member("title", "aurore-events");
        out.text_member("version", info.version);
        out.text_member("description", info.description);
        out.raw_member("license", r#"{"name":"MIT","identifier":"MIT"}"#);
    });
    out.raw_member("servers", r#"[{"url":"/"}]"#);
    out.key("tags");
    out.array(|out| info.tags.iter().for_each(|tag| out.object(|out| out.text_member("name", tag))));
    out.raw_member("security", info.security);
}

impl DescribedOperation {
    fn write(&self, out: &mut JsonWriter, components: &mut Components) {
        let operation = self.operation;
        out.key(&self.method.to_ascii_lowercase());
        out.object(|out| {
            out.strings("tags", [operation.tag]);
            out.text_member("operationId", operation.id);
            out.text_member("summary", operation.summary);
            out.text_member("description", operation.description);
            if !operation.parameters.is_empty() {
                out.key("parameters");
                out.array(|out| {
                    for parameter in operation.parameters {
                        write_parameter(parameter, out, components);
                    }
                });
            }
            if !operation.body.is_empty() {
                out.key("requestBody");
                out.object(|out| {
                    out.raw_member("required", if operation.is_body_optional { "false" } else { "true" });
                    write_content(operation.body, out, components);
                });
            }
            out.key("responses");
            out.object(|out| self.write_responses(out, components));
            if self.is_public {
                out.raw_member("security", "[{}]");
            }
        });
    }

    /// The declared responses, and refusals of the statuses that have none yet.
    fn write_responses(&self, out: &mut JsonWriter, components: &mut Components) {
        let Operation { responses, errors, error_form, .. } = *self.operation;
        for response in responses {
            out.key(&response.status.to_string());
            write_response(response, out, components);
        }
        let mut refusals: Vec<u16> = self.implied_errors.iter().chain(errors).copied().collect();
        refusals.retain(|status| responses.iter().all(|response| response.status != *status));
        for error in error_form.iter().filter(|error| refusals.contains(&error.response.status)) {
            out.key(&error.response.status.to_string());
            let reference = format!("#/components/responses/{}", error.component);
            out.object(|out| out.text_member("$ref", &reference));
            components.responses.insert(error.component, &error.response);
        }
    }
}

fn write_response(response: &Response, out: &mut JsonWriter, components: &mut Components) {
    out.object(|out| {
        out.text_member("description", response.description);
        write_content(response.content, out, components);
        if !response.headers.is_empty() {
            out.key("headers");
            out.object(|out| response.headers.iter().for_each(|header| header.write(out, components)));
        }
    });
}

impl Header {
    fn write(&self, out: &mut JsonWriter, components: &mut Components) {
        out.key(self.name);
        out.object(|out| {
            out.text_member("description", self.description);
            out.key("schema");
            self.schema.write(out, components);
        });
    }
}

fn write_content(content: &[Media], out: &mut JsonWriter, components: &mut Components) {
    if content.is_empty() {
        return;
    }
    out.key("content");
    out.object(|out| {
        for media in content {
            out.key(media.content_type);
            out.object(|out| {
                out.key("schema");
                media.schema.write(out, components);
                match media.example {
                    Example::None => {}
                    Example::Json(example) => out.raw_member("example", example),
                    Example::Text(example) => out.text_member("example", example),
                }
            });
        }
    });
}

fn write_parameter(parameter: &'static Parameter, out: &mut JsonWriter, components: &mut Components) {
    if parameter.component.is_empty() {
        return parameter.write(out, components);
    }
    let reference = format!("#/components/parameters/{}", parameter.component);
    out.object(|out| out.text_member("$ref", &reference));
    components.parameters.insert(parameter.component, parameter);
}

impl Parameter {
    fn write(&self, out: &mut JsonWriter, components: &mut Components) {
        let place = match self.place {
            Place::Query => "query",
            Place::Header => "header",
            Place::Path => "path",
        };
        out.object(|out| {
            out.text_member("name", self.name);
            out.text_member("in", place);
            if self.is_required {
                out.raw_member("required", "true");
            }
            out.text_member("description", self.description);
            out.key("schema");
            self.schema.write(out, components);
        });
    }
}

impl Components {
    /// Parameters and responses refer to schemas, and schemas to others.
    fn write(&mut self, out: &mut JsonWriter) {
        out.key("parameters");
        out.object(|out| {
            for (name, parameter) in std::mem::take(&mut self.parameters) {
                out.key(name);
                parameter.write(out, self);
            }
        });
        out.key("responses");
        out.object(|out| {
            for (name, response) in std::mem::take(&mut self.responses) {
                out.key(name);
                write_response(response, out, self);
            }
        });
        out.key("schemas");
        out.object(|out| {
            let mut written = BTreeMap::new();
            while let Some((name, schema)) = self.schemas.pop_first() {
                if written.insert(name, schema).is_none() {
                    out.key(name);
                    schema.write(out, self);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openapi::schema::{Named, array, named, object, optional, text};
    use crate::openapi::{ErrorForm, ErrorResponse};

    const INFO: Info =
        Info { version: "1", description: "d", tags: &["t"], security_schemes: "{}", security: "[]" };
    const TREE: Schema = named(&Named {
        name: "Tree",
        schema: object(&[optional("leaf", named(&Named { name: "Leaf", schema: text().or_null() }))]),
    });
    const FORM: &ErrorForm =
        &[ErrorResponse { component: "PlainInvalid", response: Response::new(400, "Bad.", &[]) }];
    const OPERATION: Operation = Operation::new("t", "getTree", "Get", FORM)
        .responses(&[Response::new(200, "Trees.", &[Media::json(array(&TREE))])])
        .errors(&[400, 404]);

    fn document(operation: &'static Operation) -> Document {
        let described =
            DescribedOperation { method: "GET", operation, implied_errors: vec![400], is_public: false };
        Document::new(&INFO, &[("/tree", vec![described])])
    }

    #[test]
    fn components_are_those_that_are_referred_to_each_once() {
        let text = document(&OPERATION).at(1, "then");
        let from = text.find(r#","components""#).unwrap();
        assert_eq!(
            &text[from..],
            concat!(
                r##","components":{"securitySchemes":{},"parameters":{},"##,
                r##""responses":{"PlainInvalid":{"description":"Bad."}},"schemas":{"##,
                r##""Tree":{"type":"object","properties":{"leaf":{"$ref":"#/components/schemas/Leaf"}}},"##,
                r##""Leaf":{"type":["string","null"]}}}}"##
            )
        );
    }

    #[test]
    fn a_refusal_is_listed_once_and_only_if_its_form_has_it() {
        let text = document(&OPERATION).at(1, "then");
        assert_eq!(text.matches("#/components/responses/PlainInvalid").count(), 1);
        assert!(!text.contains("404"), "{text}");
    }

    #[test]
    fn examples_have_the_time_of_the_reader() {
        const TIMES: Operation = OPERATION.body(&[
            Media::json(text()).json_example(r#"["$NOW",$NOW_SECONDS.5,"$NOW_NANOS"]"#),
            Media::new("text/plain", text()).text_example("\"$NOW\""),
        ]);
        let text = document(&TIMES).at(12, "2026-01-01T00:00:00Z");
        assert!(text.contains(r#""example":["2026-01-01T00:00:00Z",12.5,"12000000000"]"#), "{text}");
        assert!(text.contains(r#""example":"\"2026-01-01T00:00:00Z\"""#), "{text}");
    }
}
