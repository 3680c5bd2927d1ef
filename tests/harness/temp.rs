//! Temporary directories of test servers.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

/// A directory that is removed on drop. Every user may traverse it: PostgreSQL runs as another user
/// when the tests run as root. The path is short, since that of a Unix socket is bounded at 107
/// bytes.
pub(crate) fn temp_dir() -> TempDir {
    tempfile::Builder::new()
        .prefix("aurore-it-")
        .permissions(Permissions::from_mode(0o755))
        .tempdir()
        .expect("the system's directory for temporary files is writable")
}
