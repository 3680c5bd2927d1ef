//! The file of `--env-file`.

use std::collections::HashMap;
use std::path::Path;

use super::reader::Setting;

/// Reads `NAME=value` lines. An unknown name is an error, since it is most likely a typing error.
pub(super) fn read(path: &Path, settings: &[Setting], errors: &mut Vec<String>) -> HashMap<String, String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            errors.push(format!("--env-file {}: {error}", path.display()));
            return HashMap::new();
        }
    };
    let mut values = HashMap::new();
    for (number, line) in (1..).zip(text.lines().map(str::trim)) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at = || format!("{}:{number}", path.display());
        let Some((name, value)) = line.strip_prefix("export ").unwrap_or(line).split_once('=') else {
            errors.push(format!("{}: not of the form NAME=value", at()));
            continue;
        };
        let (name, value) = (name.trim(), unquoted(value.trim()));
        if !settings.iter().any(|setting| setting.name == name) {
            errors.push(format!("{}: there is no setting {name}", at()));
        } else if values.insert(name.to_owned(), value.to_owned()).is_some() {
            errors.push(format!("{}: {name} is set twice", at()));
        }
    }
    values
}

fn unquoted(value: &str) -> &str {
    ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote)).unwrap_or(value)
}
