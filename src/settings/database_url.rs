//! `DATABASE_URL`, given in full or by a file.

use std::path::Path;

use super::reader::{Setting, SettingsReader};

/// Reads `DATABASE_URL` and `DATABASE_URL_FILE`, of which one may be set.
pub(super) fn read(from: &mut SettingsReader<'_>) -> Option<String> {
    let url = from.optional(
        Setting::optional(
            "DATABASE_URL",
            "PostgreSQL database, as postgres://user@host/database?sslmode=… \
             Unset: a private cluster in DATA_DIR/postgres, started and stopped with the server",
        )
        .secret(),
    );
    let file = from.optional(Setting::optional(
        "DATABASE_URL_FILE",
        "File with the DATABASE_URL, such as a credential of systemd or a secret of a container",
    ));
    match (url, file) {
        (url, None) => url,
        (None, Some(file)) => read_file(Path::new(&file)).map_or_else(
            |reason| {
                from.errors.push(format!("DATABASE_URL_FILE {file}: {reason}"));
                None
            },
            Some,
        ),
        (Some(_), Some(_)) => {
            from.errors.push("DATABASE_URL and DATABASE_URL_FILE are both set: set one of them".into());
            None
        }
    }
}

/// The only line of a file. An error must not contain the text, which may be a password.
fn read_file(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    match text.trim() {
        "" => Err("the file is empty".to_owned()),
        line if line.contains('\n') => Err("the file has more than one line".to_owned()),
        line => Ok(line.to_owned()),
    }
}
