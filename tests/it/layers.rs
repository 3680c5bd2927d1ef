//! A module imports only modules of lower layers (ARCHITECTURE.md, "Layers").

use std::fs;
use std::path::{Path, PathBuf};

/// The layers, top to bottom. Modules of one layer do not import each other.
const LAYERS: &[&[&str]] = &[
    &["server"],
    &["api"],
    &["settings"],
    &["health", "commands", "console"],
    &["gateway"],
    &["failover", "dead_letters"],
    &["ingest", "writer", "query", "retention", "partitions"],
    &["journal"],
    &["buffer", "access"],
    &["metrics"],
    &["http", "storage"],
    &["openapi"],
    &["logging", "json", "protobuf", "recordlog", "service_manager"],
    &["allocator", "clock", "lifecycle"],
    &["event"],
];

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The modules that `source` names by `crate::MODULE`, outside comments and its `#[cfg(test)] mod`.
fn imports(source: &str) -> Vec<String> {
    let shipped = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or(source);
    let code: String =
        shipped.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for after in code.split("crate::").skip(1) {
        let names = match after.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or(list),
            None => after.split([',', ';']).next().unwrap_or(after),
        };
        for name in names.split(',') {
            let end = |c: char| !(c.is_ascii_lowercase() || c == '_');
            let name = name.trim_start().split(end).next().unwrap_or_default();
            if !name.is_empty() {
                found.push(name.to_owned());
            }
        }
    }
    found
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("src is a directory") {
        let path = entry.expect("src is readable").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn modules_import_only_lower_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let (mut upward, mut checked) = (Vec::new(), 0);
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let text = relative.to_string_lossy().into_owned();
        let is_test_code = text.contains("tests") || text.contains("testing") || text.contains("harness");
        let module = text.split(['/', '.']).next().unwrap_or_default().to_owned();
        if is_test_code || ["main", "lib"].contains(&module.as_str()) {
            continue;
        }
        let layer = layer_of(&module).unwrap_or_else(|| panic!("src/{text} is in no layer"));
        for import in imports(&fs::read_to_string(&file).unwrap()) {
            let Some(imported) = layer_of(&import) else { continue };
            checked += 1;
            if import != module && imported <= layer {
                upward.push(format!("src/{text} imports crate::{import}"));
            }
        }
    }
    assert!(checked > 300, "only {checked} imports were found: the parser of this test is broken");
    assert_eq!(upward, Vec::<String>::new());
}
