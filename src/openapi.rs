//! The declarations of which the `OpenAPI` document is made: operations, parameters, bodies, responses
//! and schemas. The module of a route declares them as constants beside its handlers; the route table
//! takes the operation with the route.
//!
//! They are plain data without a serializer's derives, since the handlers write their JSON by hand.

mod document;
mod json;
pub mod schema;

pub use document::{DescribedOperation, Document, Info};
pub use schema::Schema;

/// One operation: a method of a path.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    pub(crate) tag: &'static str,
    /// Names the function of a generated client.
    pub(crate) id: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) description: &'static str,
    pub(crate) parameters: &'static [Parameter],
    /// By content type; empty: none.
    pub(crate) body: &'static [Media],
    pub(crate) is_body_optional: bool,
    pub(crate) responses: &'static [Response],
    /// The statuses of refusals, but for those that the class of the route and the body imply.
    pub(crate) errors: &'static [u16],
    pub(crate) error_form: &'static ErrorForm,
}

impl Operation {
    pub const fn new(
        tag: &'static str,
        id: &'static str,
        summary: &'static str,
        error_form: &'static ErrorForm,
    ) -> Self {
        Self {
            tag,
            id,
            summary,
            description: "",
            parameters: &[],
            body: &[],
            is_body_optional: false,
            responses: &[],
            errors: &[],
            error_form,
        }
    }

    #[must_use]
    pub const fn description(self, description: &'static str) -> Self {
        Self { description, ..self }
    }

    #[must_use]
    pub const fn parameters(self, parameters: &'static [Parameter]) -> Self {
        Self { parameters, ..self }
    }

    #[must_use]
    pub const fn body(self, body: &'static [Media]) -> Self {
        Self { body, ..self }
    }

    /// A request may have no body.
    #[must_use]
    pub const fn optional_body(self, body: &'static [Media]) -> Self {
        Self { body, is_body_optional: true, ..self }
    }

    #[must_use]
    pub const fn responses(self, responses: &'static [Response]) -> Self {
        Self { responses, ..self }
    }

    #[must_use]
    pub const fn errors(self, errors: &'static [u16]) -> Self {
        Self { errors, ..self }
    }

    pub fn has_body(&self) -> bool {
        !self.body.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn has_example(&self) -> bool {
        self.body.iter().any(|media| !matches!(media.example, Example::None))
    }
}

/// Where a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Query,
    Header,
    Path,
}

#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its name among the components, if operations share it; otherwise empty.
    pub(crate) component: &'static str,
    pub(crate) place: Place,
    pub(crate) name: &'static str,
    pub(crate) description: &'static str,
    pub(crate) schema: Schema,
    pub(crate) is_required: bool,
}

impl Parameter {
    const fn new(place: Place, name: &'static str, schema: Schema, description: &'static str) -> Self {
        let is_required = matches!(place, Place::Path);
        Self { component: "", place, name, description, schema, is_required }
    }

    pub const fn query(name: &'static str, schema: Schema, description: &'static str) -> Self {
        Self::new(Place::Query, name, schema, description)
    }

    pub const fn header(name: &'static str, schema: Schema, description: &'static str) -> Self {
        Self::new(Place::Header, name, schema, description)
    }

    pub const fn path(name: &'static str, schema: Schema, description: &'static str) -> Self {
        Self::new(Place::Path, name, schema, description)
    }

    #[must_use]
    pub const fn required(self) -> Self {
        Self { is_required: true, ..self }
    }

    /// Written once, as the component of this name, and referred to by operations.
    #[must_use]
    pub const fn shared(self, component: &'static str) -> Self {
        Self { component, ..self }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Media {
    pub(crate) content_type: &'static str,
    pub(crate) schema: Schema,
    pub(crate) example: Example,
}

/// An example. The times that it names are those of the reader: see [`Document::at`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Example {
    None,
    Json(&'static str),
    Text(&'static str),
}

impl Media {
    pub const fn new(content_type: &'static str, schema: Schema) -> Self {
        Self { content_type, schema, example: Example::None }
    }

    pub const fn json(schema: Schema) -> Self {
        Self::new("application/json", schema)
    }

    #[must_use]
    pub const fn json_example(self, example: &'static str) -> Self {
        Self { example: Example::Json(example), ..self }
    }

    #[must_use]
    pub const fn text_example(self, example: &'static str) -> Self {
        Self { example: Example::Text(example), ..self }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Response {
    pub(crate) status: u16,
    pub(crate) description: &'static str,
    pub content: &'static [Media],
    pub(crate) headers: &'static [Header],
}

impl Response {
    pub const fn new(status: u16, description: &'static str, content: &'static [Media]) -> Self {
        Self { status, description, content, headers: &[] }
    }

    #[must_use]
    pub const fn headers(self, headers: &'static [Header]) -> Self {
        Self { headers, ..self }
    }
}

/// A header of a response.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub name: &'static str,
    pub description: &'static str,
    pub schema: Schema,
}

/// The refusals of an operation, at most one for a status.
pub type ErrorForm = [ErrorResponse];

/// A refusal. It is a component, which operations share.
#[derive(Clone, Copy, Debug)]
pub struct ErrorResponse {
    pub component: &'static str,
    pub response: Response,
}

impl ErrorResponse {
    /// The same refusal with a body in another form.
    #[must_use]
    pub const fn with_content(self, component: &'static str, content: &'static [Media]) -> Self {
        Self { component, response: Response { content, ..self.response } }
    }
}
