//! The files of the page: embedded, compressed once, and served under a path that has a hash of all
//! of them, so that a client may keep them for ever. The modules import each other by relative paths,
//! which lead to the same hash.
//!
//! It owns the list of files and must not depend on the routes.

use std::io::{Read, Write};
use std::sync::LazyLock;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use super::{CSS, SCRIPT, TEXT};
use crate::http::problem::{self, ProblemKind};
use crate::http::{Headers, Response, gzip};

/// In `index.html`, the hash of the files.
const HASH_PLACEHOLDER: &str = "{hash}";
macro_rules! files {
    ($($name:literal $content_type:expr,)*) => {
        &[$(($name, $content_type, include_bytes!(concat!("page/", $name)))),*]
    };
}

/// Path, content type and content of each file.
const FILES: &[(&str, &str, &[u8])] = files![
    "icon.svg" "image/svg+xml",
    "api.js" SCRIPT,
    "dead.js" SCRIPT,
    "dom.js" SCRIPT,
    "drawer.js" SCRIPT,
    "export.js" SCRIPT,
    "format.js" SCRIPT,
    "health.js" SCRIPT,
    "histogram.js" SCRIPT,
    "list.js" SCRIPT,
    "live.js" SCRIPT,
    "main.js" SCRIPT,
    "plots.js" SCRIPT,
    "pushed.js" SCRIPT,
    "query.js" SCRIPT,
    "search.js" SCRIPT,
    "searchbox.js" SCRIPT,
    "state.js" SCRIPT,
    "status.js" SCRIPT,
    "tail.js" SCRIPT,
    "token.js" SCRIPT,
    "style.css" CSS,
    "uplot/LICENSE.txt" TEXT,
    "uplot/uPlot.css" CSS,
    "uplot/uPlot.js" SCRIPT,
];

struct Asset {
    name: &'static str,
    content_type: &'static str,
    compressed: Vec<u8>,
}

struct Assets {
    hash: String,
    page: Vec<u8>,
    files: Vec<Asset>,
}

static ASSETS: LazyLock<Assets> = LazyLock::new(|| {
    let mut digest = Sha256::new();
    for &(name, _, content) in FILES {
        digest.update(name);
        digest.update([0]);
        digest.update(content);
        digest.update(content.len().to_be_bytes());
    }
    let mut head = [0; 8];
    head.copy_from_slice(&digest.finalize()[..8]);
    let hash = format!("{:016x}", u64::from_be_bytes(head));
    let files = FILES.iter().map(|&(name, content_type, content)| Asset {
        name,
        content_type,
        compressed: compress(content),
    });
    let page = include_str!("page/index.html").replace(HASH_PLACEHOLDER, &hash).into_bytes();
    Assets { files: files.collect(), hash, page }
});

fn compress(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(content.len() / 3), Compression::best());
    let written = encoder.write_all(content).and_then(|()| encoder.finish());
    written.expect("writing to a vector cannot fail")
}

/// Compresses the files, which takes some milliseconds: at the start, so that no acceptor does it.
pub fn prepare() {
    LazyLock::force(&ASSETS);
}

/// The HTML of the page.
pub(super) fn page() -> &'static [u8] {
    &ASSETS.page
}

/// Writes the file at `/console/{path}`, or 404: also for the hash of another release, whose files
/// would not fit together with these.
pub fn answer(path: &str, headers: Headers<'_>, response: &mut Response) {
    let name = path.strip_prefix(ASSETS.hash.as_str()).and_then(|rest| rest.strip_prefix('/'));
    let Some(asset) = ASSETS.files.iter().find(|file| name == Some(file.name)) else {
        let detail = "no file of this release is at this path; reload the page";
        return problem::write(response, ProblemKind::NotFound, detail);
    };
    response.vary("Accept-Encoding");
    response.header("Cache-Control", "public, max-age=31536000, immutable");
    response.header("X-Content-Type-Options", "nosniff");
    response.content_type = asset.content_type;
    if gzip::is_accepted(headers) {
        response.header("Content-Encoding", "gzip");
        response.body.extend_from_slice(&asset.compressed);
    } else {
        let read = GzDecoder::new(asset.compressed.as_slice()).read_to_end(&mut response.body);
        read.expect("BUG: the file was compressed at the start");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page with all of its files, compressed, is small enough for a slow line.
    const COMPRESSED_BYTES_MAX: usize = 150_000;

    fn ask(path: &str, encoding: &str) -> Response {
        let fields = [httparse::Header { name: "Accept-Encoding", value: encoding.as_bytes() }];
        let mut response = Response::default();
        answer(path, Headers(&fields), &mut response);
        response
    }

    #[test]
    fn files_are_immutable_and_identical_compressed_or_not() {
        for (name, content_type, content) in FILES {
            let path = format!("{}/{name}", ASSETS.hash);
            let (packed, plain) = (ask(&path, "gzip"), ask(&path, "identity"));
            let mut unpacked = Vec::new();
            GzDecoder::new(packed.body.as_slice()).read_to_end(&mut unpacked).unwrap();
            assert!(unpacked == *content && plain.body == *content, "{name}");
            for response in [&packed, &plain] {
                assert_eq!(response.content_type, *content_type);
                let headers = str::from_utf8(&response.headers).unwrap();
                assert!(
                    headers.contains("immutable") && headers.contains("Vary: Accept-Encoding"),
                    "{headers}"
                );
            }
        }
    }

    #[test]
    fn other_hashes_and_names_are_not_found() {
        let hash = ASSETS.hash.as_str();
        for path in ["main.js", "0000000000000000/main.js", &format!("{hash}/none.js"), hash] {
            assert_eq!(ask(path, "gzip").status, 404, "{path}");
        }
    }

    #[test]
    fn page_and_files_are_small() {
        let files: usize = ASSETS.files.iter().map(|file| file.compressed.len()).sum();
        let all = files + compress(page()).len();
        assert!(all < COMPRESSED_BYTES_MAX, "{all} bytes");
    }

    #[test]
    fn modules_import_existing_files_only_and_none_is_unused() {
        let mut used = vec!["uplot/LICENSE.txt".to_owned()];
        let page = str::from_utf8(page()).unwrap();
        let prefix = format!("\"/console/{}/", ASSETS.hash);
        used.extend(page.split(&prefix).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()));
        for (_, _, content) in FILES.iter().filter(|(_, kind, _)| *kind == SCRIPT) {
            let text = str::from_utf8(content).unwrap();
            for line in text.lines().filter(|line| line.starts_with("import ") || line.starts_with("} from "))
            {
                used.extend(
                    line.split("\"./").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()),
                );
            }
        }
        used.sort();
        used.dedup();
        let mut names: Vec<_> = FILES.iter().map(|(name, ..)| (*name).to_owned()).collect();
        names.sort();
        assert_eq!(used, names);
    }
}
