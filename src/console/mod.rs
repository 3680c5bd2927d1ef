//! The pages for people: the live page at `/`, Swagger UI at `/docs`, and what it shows at `/openapi.json`. All of it lies
//! in the binary and asks nothing of anybody else's server. What the pages show they fetch from the other routes, so
//! that they see no more than their reader may.

use std::io::{Cursor, Read};
use std::sync::OnceLock;

use flate2::read::DeflateDecoder;
use zip::ZipArchive;

use crate::http::accept::preferred;
use crate::http::{Headers, Response, gzip};

/// One of them, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// For browsers the live page, for all others an index in plain text.
    Live,
    LiveStyle,
    LiveScript,
    Docs,
    DocsStart,
    DocsStyle,
    DocsScript,
    OpenApi,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
/// Only what comes from here is loaded and run, whatever an event may hold.
const LIVE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; \
                           base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Swagger UI sets styles of its own as it runs.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
                           img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
                           frame-ancestors 'none'";

/// Writes the page, or 304 for who has it already.
pub fn answer(page: Page, headers: Headers<'_>, response: &mut Response) {
    let (content_type, body) = match page {
        Page::Live if !wants_html(headers) => (TEXT, &include_bytes!("index.txt")[..]),
        Page::Live => (HTML, &include_bytes!("page.html")[..]),
        Page::LiveStyle => (CSS, &include_bytes!("page.css")[..]),
        Page::LiveScript => (SCRIPT, &include_bytes!("page.js")[..]),
        Page::Docs => (HTML, &include_bytes!("docs.html")[..]),
        Page::DocsStart => (SCRIPT, &include_bytes!("docs.js")[..]),
        Page::OpenApi => ("application/json", &include_bytes!("openapi.json")[..]),
        Page::DocsStyle => return swagger(CSS, swagger_ui().style, headers, response),
        Page::DocsScript => return swagger(SCRIPT, swagger_ui().script, headers, response),
    };
    if page == Page::Live {
        response.header("Vary", "Accept");
    }
    if content_type == HTML {
        let policy = if page == Page::Docs { DOCS_POLICY } else { LIVE_POLICY };
        response.header("Content-Security-Policy", policy);
        response.header("Referrer-Policy", "no-referrer");
    }
    if is_fresh(content_type, crc32c::crc32c(body), headers, response) {
        return;
    }
    response.body.extend_from_slice(body);
}

/// Browsers name HTML; whoever takes anything gets the index.
fn wants_html(headers: Headers<'_>) -> bool {
    let accept = headers.get("Accept").and_then(|accept| str::from_utf8(accept).ok());
    accept.and_then(|accept| preferred(accept, &["text/plain", "text/html"])) == Some(1)
}

/// Says what the content is; whether the reader has it already.
fn is_fresh(content_type: &'static str, crc: u32, headers: Headers<'_>, response: &mut Response) -> bool {
    // Weak, since it is the same whether compressed or not.
    let tag = format!("W/\"{crc:08x}\"");
    response.header("ETag", &tag);
    response.header("Cache-Control", "no-cache");
    response.header("X-Content-Type-Options", "nosniff");
    let fresh = headers.all("If-None-Match").any(|known| {
        known
            .split(|byte| *byte == b',')
            .any(|known| matches!(known.trim_ascii(), b"*") || known.trim_ascii() == tag.as_bytes())
    });
    if fresh {
        response.status = 304;
    } else {
        response.content_type = content_type;
    }
    fresh
}

/// A file as it lies in the archive of Swagger UI: deflated.
#[derive(Clone, Copy)]
struct Deflated {
    bytes: &'static [u8],
    /// CRC-32 and length of what it inflates to.
    crc: u32,
    length: u32,
}

struct SwaggerUi {
    style: Deflated,
    script: Deflated,
}

fn swagger_ui() -> &'static SwaggerUi {
    static FOUND: OnceLock<SwaggerUi> = OnceLock::new();
    FOUND.get_or_init(|| {
        let archive = utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;
        let mut directory =
            ZipArchive::new(Cursor::new(archive)).expect("BUG: the archive in the binary is whole");
        let mut find = |name: &str| {
            let place = directory.file_names().position(|path| path.is_ok_and(|path| path.ends_with(name)));
            let place = place.unwrap_or_else(|| panic!("BUG: there is no {name} in the archive"));
            let file = directory.by_index_raw(place).expect("BUG: the archive in the binary is whole");
            let start = usize::try_from(file.data_start().expect("BUG: its header was read"))
                .expect("it lies in memory");
            let end = start + usize::try_from(file.compressed_size()).expect("it lies in memory");
            let length = u32::try_from(file.size()).expect("BUG: it is far below 4 GiB");
            Deflated { bytes: &archive[start..end], crc: file.crc32(), length }
        };
        SwaggerUi { style: find("/dist/swagger-ui.css"), script: find("/dist/swagger-ui-bundle.js") }
    })
}

/// A file of the archive. Gzip is deflate between a header and a trailer (RFC 1952), so nothing is compressed here, nor
/// inflated but for the rare reader who cannot do it.
fn swagger(content_type: &'static str, file: Deflated, headers: Headers<'_>, response: &mut Response) {
    response.header("Vary", "Accept-Encoding");
    if is_fresh(content_type, file.crc, headers, response) {
        return;
    }
    let body = &mut response.body;
    if gzip::is_accepted(headers) {
        body.reserve(file.bytes.len() + 18);
        // Deflate, no name, no time, of no system in particular.
        body.extend_from_slice(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
        body.extend_from_slice(file.bytes);
        body.extend_from_slice(&file.crc.to_le_bytes());
        body.extend_from_slice(&file.length.to_le_bytes());
        response.header("Content-Encoding", "gzip");
    } else {
        DeflateDecoder::new(file.bytes).read_to_end(body).expect("BUG: the archive in the binary is whole");
    }
}

#[cfg(test)]
mod tests {
    use flate2::read::GzDecoder;
    use sonic_rs::{JsonContainerTrait, JsonValueTrait, Value};

    use super::*;
    use crate::api::router::{self, Route};
    use crate::http::Method;

    fn ask(page: Page, fields: &[(&'static str, &str)]) -> Response {
        let fields: Vec<_> =
            fields.iter().map(|(name, value)| httparse::Header { name, value: value.as_bytes() }).collect();
        let mut response = Response::default();
        answer(page, Headers(&fields), &mut response);
        response
    }

    #[test]
    fn a_browser_gets_the_page_and_all_others_the_index() {
        let of = |accept| ask(Page::Live, &[("Accept", accept)]).content_type;
        assert_eq!(of("text/html,application/xhtml+xml,*/*;q=0.8"), HTML);
        assert_eq!([of("*/*"), of("application/json"), of("text/plain")], [TEXT; 3]);
        assert_eq!(ask(Page::Live, &[]).content_type, TEXT);
    }

    #[test]
    fn swagger_ui_is_the_same_compressed_or_not() {
        for page in [Page::DocsStyle, Page::DocsScript] {
            let plain = ask(page, &[]).body;
            let packed = ask(page, &[("Accept-Encoding", "gzip, br")]).body;
            let mut unpacked = Vec::new();
            // The decoder checks the trailer.
            GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).unwrap();
            assert!(packed.len() * 3 < plain.len() && unpacked == plain, "{page:?}");
        }
    }

    #[test]
    fn who_has_a_page_is_told_so() {
        for page in [Page::Live, Page::OpenApi, Page::DocsScript] {
            let first = String::from_utf8(ask(page, &[]).headers).unwrap();
            let tag = first.lines().find_map(|line| line.strip_prefix("ETag: ")).unwrap();
            let again = ask(page, &[("If-None-Match", &format!("\"other\", {tag}"))]);
            assert_eq!((again.status, again.body.len()), (304, 0), "{page:?}");
            assert_eq!(ask(page, &[("If-None-Match", "\"other\"")]).status, 200);
        }
    }

    /// The paths of the document, with a value for each parameter.
    fn described() -> Vec<(String, Vec<String>)> {
        let document: Value = sonic_rs::from_slice(include_bytes!("openapi.json")).unwrap();
        assert_eq!(document["info"]["version"].as_str(), Some(env!("CARGO_PKG_VERSION")));
        let paths = document["paths"].as_object().unwrap();
        let methods = |path: &Value| {
            path.as_object().unwrap().iter().map(|(method, _)| method.to_uppercase()).collect::<Vec<_>>()
        };
        paths.iter().map(|(path, operations)| (path.to_owned(), methods(operations))).collect()
    }

    #[test]
    fn the_document_has_every_route_and_no_other() {
        let described = described();
        for (path, methods) in &described {
            for method in methods {
                let method = Method::parse(method);
                let path = path.replace("{event_id}", "x");
                let found = router::route(method, &path);
                assert!(found.is_ok(), "{method:?} {path}: {found:?}");
            }
        }
        for label in router::LABELS.iter().filter(|label| label.starts_with('/')) {
            assert!(described.iter().any(|(path, _)| path == label), "{label} is not described");
        }
        assert_eq!(router::route(Method::Get, "/"), Ok(Route::Console(Page::Live)));
    }

    #[test]
    fn what_the_pages_load_is_there() {
        for page in [include_str!("page.html"), include_str!("docs.html")] {
            for part in page.split(['"', '\'']).filter(|part| part.starts_with('/')) {
                let found = router::route(Method::Get, part);
                assert!(found.is_ok(), "{part}: {found:?}");
            }
        }
    }
}
