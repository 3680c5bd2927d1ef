//! The directories of the embedded cluster, whose they are, and as whom its programs run.
//!
//! PostgreSQL refuses to run as root, and its directory must belong to the user it runs as. Knows nothing of SQL.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use super::ClusterError;

/// The longest path of a socket: `sun_path` less its NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;
const SOCKET_NAME: &str = ".s.PGSQL.5432";
/// How much of the log's end goes into an error.
const LOG_TAIL_BYTES: u64 = 600;

#[derive(Debug)]
pub(super) struct Home {
    data_dir: PathBuf,
    cluster: PathBuf,
    socket_dir: PathBuf,
    log: PathBuf,
    /// As whom the programs run, when that is not the user we are.
    user: Option<User>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct User {
    name: String,
    uid: u32,
    gid: u32,
}

impl Home {
    pub(super) fn prepare(data_dir: &Path) -> Result<Self, ClusterError> {
        fs::create_dir_all(data_dir).map_err(ClusterError::io("making", data_dir))?;
        let data_dir = fs::canonicalize(data_dir).map_err(ClusterError::io("finding", data_dir))?;
        let cluster = data_dir.join("postgres");
        // /proc/self belongs to whoever we are.
        let us =
            fs::metadata("/proc/self").map_err(ClusterError::io("reading", Path::new("/proc/self")))?.uid();
        let user = if us == 0 { Some(unprivileged(&cluster)?) } else { None };
        if let Some(user) = &user {
            let_pass(user, &data_dir)?;
        }
        let mut home =
            Self { socket_dir: cluster.clone(), log: data_dir.join("postgres.log"), data_dir, cluster, user };
        if home.cluster.join(SOCKET_NAME).as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            home.socket_dir = home.short_socket_dir(us)?;
        }
        Ok(home)
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

    /// The major version that made the cluster.
    pub(super) fn version(&self) -> Option<String> {
        Some(fs::read_to_string(self.cluster.join("PG_VERSION")).ok()?.trim().to_owned())
    }

    /// The living postmaster of this directory. Its file outlives a killed one, and the number may then be another's;
    /// PostgreSQL makes sure of that itself.
    pub(super) fn postmaster(&self) -> Option<u32> {
        let text = fs::read_to_string(self.cluster.join("postmaster.pid")).ok()?;
        let pid: u32 = text.lines().next()?.trim().parse().ok()?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let is_zombie = status.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'));
        (name.trim().starts_with("postgres") && !is_zombie).then_some(pid)
    }

    /// An empty directory to make a cluster in, beside its place.
    pub(super) fn begin_cluster(&self) -> Result<PathBuf, ClusterError> {
        let unfinished = self.data_dir.join("postgres.unfinished");
        match fs::remove_dir_all(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ClusterError::io("removing", &unfinished)(error));
            }
            Ok(()) | Err(_) => {}
        }
        self.private_dir(&unfinished)?;
        Ok(unfinished)
    }

    /// Makes a rename in the data directory last.
    pub(super) fn sync(&self) -> Result<(), ClusterError> {
        File::open(&self.data_dir)
            .and_then(|directory| directory.sync_all())
            .map_err(ClusterError::io("syncing", &self.data_dir))
    }

    /// `program`, run as the cluster's owner in a directory that it may be in.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        // Messages of the programs end up in our log: in the language of all others, and as UTF-8.
        command.current_dir("/").env("LC_ALL", "C");
        for name in ["PGDATA", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGOPTIONS", "PGSERVICE"] {
            command.env_remove(name);
        }
        if let Some(user) = &self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    /// The end of the log, on one line, for an error.
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
                format!("its log, {}, ends: {tail}", self.log.display())
            }
            Err(error) => format!("its log, {}: {error}", self.log.display()),
        }
    }

    fn private_dir(&self, path: &Path) -> Result<(), ClusterError> {
        DirBuilder::new().mode(0o700).create(path).map_err(ClusterError::io("making", path))?;
        if let Some(user) = &self.user {
            chown(path, Some(user.uid), Some(user.gid)).map_err(ClusterError::io("giving away", path))?;
        }
        Ok(())
    }

    /// A directory for the socket of a cluster whose own path is too long. Its name follows from that path, so that
    /// the next server finds the socket again.
    fn short_socket_dir(&self, us: u32) -> Result<PathBuf, ClusterError> {
        let hash = Sha256::digest(self.cluster.as_os_str().as_bytes());
        let hash = hash.iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        let path = std::env::temp_dir().join(format!("aurore-events-{hash}"));
        match self.private_dir(&path) {
            Ok(()) => {}
            Err(ClusterError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        // Anybody may make directories there: this one must be ours, no link, and shut to others.
        let metadata = fs::symlink_metadata(&path).map_err(ClusterError::io("reading", &path))?;
        let owner = self.user.as_ref().map_or(us, |user| user.uid);
        let ours = metadata.is_dir() && metadata.uid() == owner && metadata.mode() & 0o777 == 0o700;
        if ours { Ok(path) } else { Err(ClusterError::SocketDirectory(path)) }
    }
}

/// The owner of the cluster when there is one; else postgres, else nobody.
fn unprivileged(cluster: &Path) -> Result<User, ClusterError> {
    let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
    if let Some(metadata) = fs::metadata(cluster).ok().filter(|metadata| metadata.uid() != 0) {
        let known = users(&accounts).find(|user| user.uid == metadata.uid());
        return Ok(known.unwrap_or_else(|| User {
            name: metadata.uid().to_string(),
            uid: metadata.uid(),
            gid: metadata.gid(),
        }));
    }
    let named = |name: &str| users(&accounts).find(|user| user.name == name && user.uid != 0);
    named("postgres").or_else(|| named("nobody")).ok_or(ClusterError::NoUser)
}

fn users(accounts: &str) -> impl Iterator<Item = User> {
    accounts.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(User { name, uid, gid })
    })
}

/// Makes sure that `user` can reach the data directory. That one is ours to open; those above are not.
fn let_pass(user: &User, data_dir: &Path) -> Result<(), ClusterError> {
    for directory in data_dir.ancestors() {
        let metadata = fs::metadata(directory).map_err(ClusterError::io("reading", directory))?;
        if may_pass(user, metadata.uid(), metadata.gid(), metadata.mode()) {
            continue;
        }
        if directory != data_dir {
            return Err(ClusterError::Barred { user: user.name.clone(), directory: directory.to_owned() });
        }
        let mut permissions = metadata.permissions();
        permissions.set_mode(metadata.mode() | 0o001);
        fs::set_permissions(directory, permissions).map_err(ClusterError::io("opening", directory))?;
    }
    Ok(())
}

/// Whether one may go through a directory. The first class that one belongs to decides, as in the kernel.
fn may_pass(user: &User, owner: u32, group: u32, mode: u32) -> bool {
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
    fn accounts_are_read_and_broken_lines_passed_over() {
        let text =
            "root:x:0:0:root:/root:/bin/bash\n\nbroken\npostgres:x:101:104::/var/lib/postgresql:/bin/sh\n";
        let found: Vec<_> = users(text).map(|user| (user.name, user.uid, user.gid)).collect();
        assert_eq!(found, [("root".to_owned(), 0, 0), ("postgres".to_owned(), 101, 104)]);
    }

    #[test]
    fn the_first_class_one_belongs_to_decides() {
        let user = User { name: "u".to_owned(), uid: 5, gid: 6 };
        for (owner, group, mode, expected) in [
            (1, 1, 0o755, true),
            (1, 1, 0o750, false),
            (5, 1, 0o700, true),
            (5, 6, 0o077, false),
            (1, 6, 0o710, true),
            (1, 6, 0o701, false),
        ] {
            assert_eq!(may_pass(&user, owner, group, mode), expected, "{owner} {group} {mode:o}");
        }
    }
}
