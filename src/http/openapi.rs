//! Declares, for the `OpenAPI` document, what all routes have in common: problem documents, and the
//! refusals that are problem documents.

use crate::openapi::schema::{Named, Schema, array, count, named, object, one_of, optional, required, text};
use crate::openapi::{ErrorForm, ErrorResponse, Header, Media, Parameter, Response};

use super::problem::CONTENT_TYPE;

/// One error of one field.
pub const FIELD_ERROR: Schema = named(&Named {
    name: "FieldError",
    schema: object(&[optional("index", count()), required("field", text()), required("detail", text())]),
});

pub const ERROR_LIST: Schema = array(&FIELD_ERROR);

const PROBLEM: Schema = named(&Named {
    name: "Problem",
    schema: object(&[
        required("type", text().description("urn:aurore-events:problem:…, identifies the kind of problem.")),
        required("title", text()),
        required("status", count()),
        required("detail", text()),
        optional("errors", ERROR_LIST),
        optional("errors_omitted", count().description("Errors that are not listed.")),
        optional(
            "services",
            array(&text()).description("Of a 403 for a query: the services that the token may read."),
        ),
    ]),
});

pub const PROBLEM_DOCUMENT: Media = Media::new(CONTENT_TYPE, PROBLEM);
const CONTENT: &[Media] = &[PROBLEM_DOCUMENT];

const RETRY_AFTER: &[Header] = &[Header {
    name: "Retry-After",
    description: "Seconds to wait, at least 1.",
    schema: count().between(1, u32::MAX as u64),
}];

const fn refusal(status: u16, component: &'static str, description: &'static str) -> ErrorResponse {
    ErrorResponse { component, response: Response::new(status, description, CONTENT) }
}

const fn refusal_with(
    status: u16,
    component: &'static str,
    description: &'static str,
    headers: &'static [Header],
) -> ErrorResponse {
    ErrorResponse { component, response: Response::new(status, description, CONTENT).headers(headers) }
}

pub const INVALID: ErrorResponse =
    refusal(400, "Invalid", "The request is not valid; `errors` lists the fields and the reasons.");
pub const UNAUTHORIZED: ErrorResponse = refusal_with(
    401,
    "Unauthorized",
    "A token is missing or not valid.",
    &[Header { name: "WWW-Authenticate", description: "", schema: text() }],
);
pub const FORBIDDEN: ErrorResponse = refusal(
    403,
    "Forbidden",
    "The token lacks the scope or the service; or a page whose origin is not in CORS_ORIGINS sent a POST, PUT or \
     DELETE (type urn:aurore-events:problem:foreign-origin).",
);
pub const NOT_FOUND: ErrorResponse = refusal(404, "NotFound", "Not found.");
pub const TOO_SLOW: ErrorResponse = refusal(408, "TooSlow", "The request took too long to arrive.");
pub const LENGTH_REQUIRED: ErrorResponse =
    refusal(411, "LengthRequired", "A POST needs Content-Length or Transfer-Encoding.");
pub const TOO_LARGE: ErrorResponse =
    refusal(413, "TooLarge", "The body or the batch is larger than the server accepts.");
pub const UNSUPPORTED: ErrorResponse = refusal_with(
    415,
    "Unsupported",
    "The content type or the content coding is not supported.",
    &[
        Header {
            name: "Accept",
            description: "The content types that are accepted, if the type is not.",
            schema: text(),
        },
        Header { name: "Accept-Post", description: "The same.", schema: text() },
        Header {
            name: "Accept-Encoding",
            description: "The content codings that are accepted, if the coding is not.",
            schema: text(),
        },
    ],
);
pub const TOO_MANY: ErrorResponse =
    refusal_with(429, "TooMany", "The buffer is full, or a rate limit is exceeded.", RETRY_AFTER);
pub const UNAVAILABLE: ErrorResponse = refusal_with(
    503,
    "Unavailable",
    "Unavailable: the server is shutting down, the journal or the database is not available, or the query queue is \
     full.",
    RETRY_AFTER,
);

/// Refusals that are problem documents.
pub const PROBLEMS: &ErrorForm = &[
    INVALID,
    UNAUTHORIZED,
    FORBIDDEN,
    NOT_FOUND,
    TOO_SLOW,
    LENGTH_REQUIRED,
    TOO_LARGE,
    UNSUPPORTED,
    TOO_MANY,
    UNAVAILABLE,
];

pub const CONTENT_ENCODING: Parameter = Parameter::header(
    "Content-Encoding",
    one_of(&["identity", "gzip", "zstd"]),
    "How the body is compressed.",
)
.shared("ContentEncoding");
