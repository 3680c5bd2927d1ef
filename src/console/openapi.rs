//! Declares the pages, for the `OpenAPI` document.

use crate::http::openapi::PROBLEMS;
use crate::openapi::schema::{object, text};
use crate::openapi::{Media, Operation, Response};

const PAGES: &str = "pages";
const HTML: Media = Media::new("text/html", text());

pub const PAGE: Operation =
    Operation::new(PAGES, "getPage", "The page", PROBLEMS).responses(&[Response::new(
        200,
        "The page for browsers; an index in plain text for other clients.",
        &[HTML, Media::new("text/plain", text())],
    )]);

pub const DOCS: Operation = Operation::new(PAGES, "getDocs", "Interactive API documentation", PROBLEMS)
    .responses(&[Response::new(200, "Swagger UI.", &[HTML])]);

pub const OPENAPI: Operation = Operation::new(PAGES, "getOpenapi", "OpenAPI document", PROBLEMS)
    .responses(&[Response::new(200, "OpenAPI 3.1.", &[Media::json(object(&[]))])]);
