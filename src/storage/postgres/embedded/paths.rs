//! The directories of the embedded cluster, their owner, and the user that runs its programs.
//!
//! PostgreSQL refuses to run as root, and its directory must belong to the user that runs it. This
//! module does not depend on SQL.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use super::ClusterError;
use super::postmaster::{ClusterIdentity, SOCKET_NAME};

/// The maximum length of a socket path: `sun_path` without its NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// The number of bytes from the end of the log that an error quotes.
const LOG_TAIL_BYTES: u64 = 600;

#[derive(Debug)]
pub(super) struct ClusterPaths {
    data_dir: PathBuf,
    cluster: PathBuf,
    socket_dir: PathBuf,
    log: PathBuf,
    /// The user that runs the programs; None for the user of this process.
    user: Option<OsUser>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct OsUser {
    name: String,
    uid: u32,
    gid: u32,
}

impl ClusterPaths {
    pub(super) fn prepare(data_dir: &Path) -> Result<Self, ClusterError> {
        fs::create_dir_all(data_dir).map_err(ClusterError::io("creating", data_dir))?;
        let data_dir = fs::canonicalize(data_dir).map_err(ClusterError::io("resolving", data_dir))?;
        let cluster = data_dir.join("postgres");
        // /proc/self belongs to the user of this process.
        let own_uid =
            fs::metadata("/proc/self").map_err(ClusterError::io("reading", Path::new("/proc/self")))?.uid();
        let user = if own_uid == 0 { Some(find_unprivileged_user(&cluster)?) } else { None };
        if let Some(user) = &user {
            ensure_traversable(user, &data_dir)?;
        }
        let mut paths =
            Self { socket_dir: cluster.clone(), log: data_dir.join("postgres.log"), data_dir, cluster, user };
        if paths.cluster.join(SOCKET_NAME).as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            paths.socket_dir = paths.short_socket_dir(own_uid)?;
        }
        Ok(paths)
    }

    pub(super) fn cluster(&self) -> &Path {
        &self.cluster
    }

    pub(super) fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    pub(super) fn exists(&self) -> bool {
        self.version().is_some()
    }

    /// The major version that created the cluster; None when there is no cluster.
    pub(super) fn version(&self) -> Option<String> {
        Some(fs::read_to_string(self.cluster.join("PG_VERSION")).ok()?.trim().to_owned())
    }

    pub(super) fn identity(&self) -> ClusterIdentity<'_> {
        ClusterIdentity { cluster: &self.cluster, socket_dir: &self.socket_dir }
    }

    /// Creates the empty directory in which a cluster is initialized before its rename.
    pub(super) fn create_unfinished_dir(&self) -> Result<PathBuf, ClusterError> {
        let unfinished = self.data_dir.join("postgres.unfinished");
        match fs::remove_dir_all(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ClusterError::io("removing", &unfinished)(error));
            }
            Ok(()) | Err(_) => {}
        }
        self.create_private_dir(&unfinished)?;
        Ok(unfinished)
    }

    /// Makes a rename in the data directory durable.
    pub(super) fn sync_data_dir(&self) -> Result<(), ClusterError> {
        File::open(&self.data_dir)
            .and_then(|directory| directory.sync_all())
            .map_err(ClusterError::io("syncing", &self.data_dir))
    }

    /// Builds a command that runs `program` as the cluster's owner, in a directory accessible to
    /// it.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        // The programs' messages are written to the server's log: in English, as UTF-8.
        command.current_dir("/").env("LC_ALL", "C");
        for name in ["PGDATA", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGOPTIONS", "PGSERVICE"] {
            command.env_remove(name);
        }
        // PostgreSQL would report its own start and stop as those of the server.
        command.env_remove("NOTIFY_SOCKET");
        if let Some(user) = &self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    /// Returns the end of the log on one line, for an error.
    pub(super) fn log_tail(&self) -> String {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => {
                let tail = String::from_utf8_lossy(&bytes).trim().replace('\n', "; ");
                format!("end of its log {}: {tail}", self.log.display())
            }
            Err(error) => format!("cannot read its log {}: {error}", self.log.display()),
        }
    }

    fn create_private_dir(&self, path: &Path) -> Result<(), ClusterError> {
        DirBuilder::new().mode(0o700).create(path).map_err(ClusterError::io("creating", path))?;
        if let Some(user) = &self.user {
            chown(path, Some(user.uid), Some(user.gid))
                .map_err(ClusterError::io("changing the owner of", path))?;
        }
        Ok(())
    }

    /// Creates a directory for the socket when the cluster's path is too long. Its name is a hash
    /// of that path, so that the next server finds the socket.
    fn short_socket_dir(&self, own_uid: u32) -> Result<PathBuf, ClusterError> {
        let hash = Sha256::digest(self.cluster.as_os_str().as_bytes());
        let hash = hash.iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        let path = std::env::temp_dir().join(format!("aurore-events-{hash}"));
        match self.create_private_dir(&path) {
            Ok(()) => {}
            Err(ClusterError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        // Any user may create directories there: this one must belong to the owner, be no link, and
        // have mode 0700.
        let metadata = fs::symlink_metadata(&path).map_err(ClusterError::io("reading", &path))?;
        let owner = self.user.as_ref().map_or(own_uid, |user| user.uid);
        let is_private = metadata.is_dir() && metadata.uid() == owner && metadata.mode() & 0o777 == 0o700;
        if is_private { Ok(path) } else { Err(ClusterError::UnsafeSocketDirectory(path)) }
    }
}

/// Returns the owner of an existing cluster, else postgres, else nobody.
fn find_unprivileged_user(cluster: &Path) -> Result<OsUser, ClusterError> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    if let Some(metadata) = fs::metadata(cluster).ok().filter(|metadata| metadata.uid() != 0) {
        let account = parse_passwd(&passwd).find(|user| user.uid == metadata.uid());
        return Ok(account.unwrap_or_else(|| OsUser {
            name: metadata.uid().to_string(),
            uid: metadata.uid(),
            gid: metadata.gid(),
        }));
    }
    let by_name = |name: &str| parse_passwd(&passwd).find(|user| user.name == name && user.uid != 0);
    by_name("postgres").or_else(|| by_name("nobody")).ok_or(ClusterError::NoUnprivilegedUser)
}

fn parse_passwd(passwd: &str) -> impl Iterator<Item = OsUser> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(OsUser { name, uid, gid })
    })
}

/// Ensures that `user` can traverse the path to the data directory. Adds the permission to the data
/// directory itself, and fails for a directory above it.
fn ensure_traversable(user: &OsUser, data_dir: &Path) -> Result<(), ClusterError> {
    for directory in data_dir.ancestors() {
        let metadata = fs::metadata(directory).map_err(ClusterError::io("reading", directory))?;
        if can_traverse(user, metadata.uid(), metadata.gid(), metadata.mode()) {
            continue;
        }
        if directory != data_dir {
            return Err(ClusterError::NotTraversable {
                user: user.name.clone(),
                directory: directory.to_owned(),
            });
        }
        let mut permissions = metadata.permissions();
        permissions.set_mode(metadata.mode() | 0o001);
        fs::set_permissions(directory, permissions)
            .map_err(ClusterError::io("changing the mode of", directory))?;
    }
    Ok(())
}

/// Returns true when the user may traverse a directory. The first matching class of owner, group
/// and others decides, as in the kernel.
fn can_traverse(user: &OsUser, owner: u32, group: u32, mode: u32) -> bool {
    let bit = if user.uid == owner {
        0o100
    } else if user.gid == group {
        0o010
    } else {
        0o001
    };
    mode & bit != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_passwd_skips_invalid_lines() {
        let text =
            "root:x:0:0:root:/root:/bin/bash\n\nbroken\npostgres:x:101:104::/var/lib/postgresql:/bin/sh\n";
        let found: Vec<_> = parse_passwd(text).map(|user| (user.name, user.uid, user.gid)).collect();
        assert_eq!(found, [("root".to_owned(), 0, 0), ("postgres".to_owned(), 101, 104)]);
    }

    #[test]
    fn can_traverse_uses_the_first_matching_class() {
        let user = OsUser { name: "u".to_owned(), uid: 5, gid: 6 };
        for (owner, group, mode, expected) in [
            (1, 1, 0o755, true),
            (1, 1, 0o750, false),
            (5, 1, 0o700, true),
            (5, 6, 0o077, false),
            (1, 6, 0o710, true),
            (1, 6, 0o701, false),
        ] {
            assert_eq!(can_traverse(&user, owner, group, mode), expected, "{owner} {group} {mode:o}");
        }
    }
}
