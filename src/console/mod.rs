//! The web console: the page at `/` with its files, and Swagger UI at `/docs`, which loads the `OpenAPI`
//! document of `api`.
//!
//! All files are embedded in the binary; the pages load nothing from other servers. The pages fetch
//! their data from the server's other routes, with the reader's token, so that access control
//! applies to them.

pub mod assets;
pub mod openapi;

use std::io::{Cursor, Read};
use std::sync::OnceLock;

use flate2::read::DeflateDecoder;
use zip::ZipArchive;

use crate::http::content_negotiation::negotiate;
use crate::http::{Headers, Response, gzip};

/// A page of the console, or a file that a page loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsolePage {
    /// The page for browsers; an index in plain text for other clients.
    Page,
    Docs,
    DocsStart,
    DocsStyle,
    DocsScript,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
/// Only this server's scripts and styles are loaded, whatever an event contains.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                           base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Swagger UI sets inline styles.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
                           img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
                           frame-ancestors 'none'";

/// Writes the page, or 304 if the client's copy is current.
pub fn answer(page: ConsolePage, headers: Headers<'_>, response: &mut Response) {
    let (content_type, body) = match page {
        ConsolePage::Page if !prefers_html(headers) => (TEXT, &include_bytes!("index.txt")[..]),
        ConsolePage::Page => (HTML, assets::page()),
        ConsolePage::Docs => (HTML, &include_bytes!("docs.html")[..]),
        ConsolePage::DocsStart => (SCRIPT, &include_bytes!("docs.js")[..]),
        ConsolePage::DocsStyle => return answer_swagger_file(CSS, swagger_ui().style, headers, response),
        ConsolePage::DocsScript => {
            return answer_swagger_file(SCRIPT, swagger_ui().script, headers, response);
        }
    };
    if page == ConsolePage::Page {
        response.vary("Accept");
    }
    // Compressed by the caller; a 304 has the header too (RFC 9110, 15.4.5).
    response.vary("Accept-Encoding");
    if content_type == HTML {
        let policy = if page == ConsolePage::Docs { DOCS_POLICY } else { PAGE_POLICY };
        response.header("Content-Security-Policy", policy);
        response.header("Referrer-Policy", "no-referrer");
    }
    if is_not_modified(content_type, crc32c::crc32c(body), headers, response) {
        return;
    }
    response.body.extend_from_slice(body);
}

/// Writes the `OpenAPI` document, or 304 if the client's copy is current.
pub fn answer_openapi(document: &[u8], headers: Headers<'_>, response: &mut Response) {
    response.vary("Accept-Encoding");
    if !is_not_modified("application/json", crc32c::crc32c(document), headers, response) {
        response.body.extend_from_slice(document);
    }
}

/// Whether `Accept` prefers HTML, as that of browsers does. `*/*` gets the index.
fn prefers_html(headers: Headers<'_>) -> bool {
    negotiate(headers, &["text/plain", "text/html"]) == Some(1)
}

/// Writes the caching headers and the content type. Returns whether the response is 304.
fn is_not_modified(
    content_type: &'static str,
    crc: u32,
    headers: Headers<'_>,
    response: &mut Response,
) -> bool {
    // A weak tag, since it is the same for the compressed and the uncompressed body.
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

/// A deflated file in Swagger UI's zip archive.
#[derive(Clone, Copy)]
struct DeflatedFile {
    bytes: &'static [u8],
    /// CRC-32 of the inflated content. `length` is the length of the inflated content.
    crc: u32,
    length: u32,
}

struct SwaggerUi {
    style: DeflatedFile,
    script: DeflatedFile,
}

fn swagger_ui() -> &'static SwaggerUi {
    static FILES: OnceLock<SwaggerUi> = OnceLock::new();
    FILES.get_or_init(|| {
        let archive = utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;
        let mut directory =
            ZipArchive::new(Cursor::new(archive)).expect("BUG: the embedded archive is corrupt");
        let mut find = |name: &str| {
            let place = directory.file_names().position(|path| path.is_ok_and(|path| path.ends_with(name)));
            let place = place.unwrap_or_else(|| panic!("BUG: {name} is missing in the archive"));
            let file = directory.by_index_raw(place).expect("BUG: the embedded archive is corrupt");
            let start = usize::try_from(file.data_start().expect("BUG: the file header is not read"))
                .expect("the archive is in memory");
            let end = start + usize::try_from(file.compressed_size()).expect("the archive is in memory");
            let length = u32::try_from(file.size()).expect("BUG: the file is larger than 4 GiB");
            DeflatedFile { bytes: &archive[start..end], crc: file.crc32(), length }
        };
        SwaggerUi { style: find("/dist/swagger-ui.css"), script: find("/dist/swagger-ui-bundle.js") }
    })
}

/// Answers with a file of the archive. Gzip is deflate with a header and a trailer (RFC 1952), so
/// the deflated bytes are sent as they are; they are inflated only for clients that do not accept
/// gzip.
fn answer_swagger_file(
    content_type: &'static str,
    file: DeflatedFile,
    headers: Headers<'_>,
    response: &mut Response,
) {
    response.vary("Accept-Encoding");
    if is_not_modified(content_type, file.crc, headers, response) {
        return;
    }
    let body = &mut response.body;
    if gzip::is_accepted(headers) {
        body.reserve(file.bytes.len() + 18);
        // Method deflate, no flags, no time, unknown operating system.
        body.extend_from_slice(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
        body.extend_from_slice(file.bytes);
        body.extend_from_slice(&file.crc.to_le_bytes());
        body.extend_from_slice(&file.length.to_le_bytes());
        response.header("Content-Encoding", "gzip");
    } else {
        DeflateDecoder::new(file.bytes).read_to_end(body).expect("BUG: the embedded archive is corrupt");
    }
}

#[cfg(test)]
mod tests {
    use flate2::read::GzDecoder;

    use super::*;
    use crate::api::router;
    use crate::http::Method;

    fn ask(page: ConsolePage, fields: &[(&'static str, &str)]) -> Response {
        let fields: Vec<_> =
            fields.iter().map(|(name, value)| httparse::Header { name, value: value.as_bytes() }).collect();
        let mut response = Response::default();
        answer(page, Headers(&fields), &mut response);
        response
    }

    #[test]
    fn page_is_html_for_browsers_and_text_otherwise() {
        let of = |accept| ask(ConsolePage::Page, &[("Accept", accept)]).content_type;
        assert_eq!(of("text/html,application/xhtml+xml,*/*;q=0.8"), HTML);
        assert_eq!([of("*/*"), of("application/json"), of("text/plain")], [TEXT; 3]);
        assert_eq!(ask(ConsolePage::Page, &[]).content_type, TEXT);
    }

    #[test]
    fn swagger_ui_is_identical_compressed_or_not() {
        for page in [ConsolePage::DocsStyle, ConsolePage::DocsScript] {
            let plain = ask(page, &[]).body;
            let packed = ask(page, &[("Accept-Encoding", "gzip, br")]).body;
            let mut unpacked = Vec::new();
            // The decoder checks the trailer.
            GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).unwrap();
            assert!(packed.len() * 3 < plain.len() && unpacked == plain, "{page:?}");
        }
    }

    #[test]
    fn matching_etag_gets_304() {
        for page in [ConsolePage::Page, ConsolePage::Docs, ConsolePage::DocsScript] {
            let first = String::from_utf8(ask(page, &[]).headers).unwrap();
            let tag = first.lines().find_map(|line| line.strip_prefix("ETag: ")).unwrap();
            let again = ask(page, &[("If-None-Match", &format!("\"other\", {tag}"))]);
            assert_eq!((again.status, again.body.len()), (304, 0), "{page:?}");
            assert_eq!(ask(page, &[("If-None-Match", "\"other\"")]).status, 200);
        }
    }

    #[test]
    fn pages_load_only_existing_routes() {
        for page in [str::from_utf8(assets::page()).unwrap(), include_str!("docs.html")] {
            for part in page.split(['"', '\'']).filter(|part| part.starts_with('/')) {
                let found = router::route(Method::Get, part);
                assert!(found.is_ok(), "{part}: {found:?}");
            }
        }
    }
}
