use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::super::embedded::{Cluster, ClusterError, ClusterLimits};
use super::super::test_database::temp_dir;
use super::super::{PostgresLimits, PostgresRepository};
use super::*;
use crate::clock::Clock;

fn start(directory: &Path) -> Result<Cluster, ClusterError> {
    Cluster::start(directory, ClusterLimits::default(), &Clock::system())
}

#[test]
fn cluster_initializes_stops_restarts_and_is_adopted_after_a_crash() {
    let directory = temp_dir("embedded");
    // The remains of a server that was killed during initialization.
    std::fs::create_dir(directory.path().join("postgres.unfinished")).unwrap();
    std::fs::write(directory.path().join("postgres.unfinished/PG_VERSION"), "15\n").unwrap();
    let cluster = start(directory.path()).unwrap();
    let repository = PostgresRepository::new(&cluster.target(), PostgresLimits::default());
    repository.prepare().unwrap();
    store(&repository, &[&event(NOON * 1000, 1, "a", "m")], StorePath::Copy, (1, 0));
    assert!(directory.path().join("postgres/PG_VERSION").exists());
    assert!(!directory.path().join("postgres.unfinished").exists());
    cluster.stop().unwrap();
    assert!(!directory.path().join("postgres/postmaster.pid").exists());
    assert!(repository.ping().is_err());

    let first = start(directory.path()).unwrap();
    repository.prepare().unwrap();
    // ManuallyDrop simulates a killed server, which runs no destructors.
    let pid = std::fs::read_to_string(directory.path().join("postgres/postmaster.pid")).unwrap();
    let first = std::mem::ManuallyDrop::new(first);
    let second = start(directory.path()).unwrap();
    assert_eq!(
        std::fs::read_to_string(directory.path().join("postgres/postmaster.pid")).unwrap(),
        pid,
        "the postmaster was adopted, not restarted"
    );
    assert!(matches!(repository.find(id(NOON, 1)), Ok(Some(_))));
    drop(second);
    assert!(!directory.path().join("postgres/postmaster.pid").exists());
    // Reap the postmaster, which is a child of this process.
    drop(std::mem::ManuallyDrop::into_inner(first));
}

/// After a crash and a reboot, another cluster's postmaster may have the pid in the lock files.
#[test]
fn cluster_with_stale_lock_files_starts_and_leaves_the_postmaster_they_name_running() {
    let (own, foreign) = (temp_dir("stale"), temp_dir("foreign"));
    let read = |directory: &TempDir, name: &str| {
        std::fs::read_to_string(directory.path().join("postgres").join(name)).unwrap()
    };
    let limits = ClusterLimits { start_timeout: Duration::from_secs(20), ..ClusterLimits::default() };
    let start = |directory: &Path| Cluster::start(directory, limits, &Clock::system());
    let other = start(foreign.path()).unwrap();
    let foreign_file = read(&foreign, "postmaster.pid");
    let foreign_pid = foreign_file.lines().next().unwrap();
    let cluster = start(own.path()).unwrap();
    let own_files = ["postmaster.pid", ".s.PGSQL.5432.lock"].map(|name| (name, read(&own, name)));
    cluster.stop().unwrap();

    // The files of this cluster with the other's pid; then the other's file, as in a copy of its
    // directory.
    let renumbered = own_files.map(|(name, text)| {
        let rest = text.split_once('\n').unwrap().1;
        (name, format!("{foreign_pid}\n{rest}"))
    });
    for files in [renumbered.to_vec(), vec![("postmaster.pid", foreign_file.clone())]] {
        for (name, text) in files {
            std::fs::write(own.path().join("postgres").join(name), text).unwrap();
        }
        let cluster = start(own.path()).unwrap();
        PostgresRepository::new(&cluster.target(), PostgresLimits::default()).ping().unwrap();
        cluster.stop().unwrap();
        assert!(!own.path().join("postgres/postmaster.pid").exists());
        PostgresRepository::new(&other.target(), PostgresLimits::default()).ping().unwrap();
        assert_eq!(read(&foreign, "postmaster.pid"), foreign_file, "the other postmaster runs on");
    }
    other.stop().unwrap();
}

#[test]
fn cluster_with_a_long_path_uses_a_short_socket_directory() {
    let directory = temp_dir("long");
    let long = directory.path().join("x".repeat(100));
    let cluster = start(&long).unwrap();
    PostgresRepository::new(&cluster.target(), PostgresLimits::default()).ping().unwrap();
    let socket_dir = cluster.target().describe().trim_end_matches("/aurore_events").to_owned();
    assert!(socket_dir.contains("aurore-events-") && socket_dir.len() < 90, "{socket_dir}");
    let mode = std::fs::metadata(&socket_dir).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    cluster.stop().unwrap();
    std::fs::remove_dir(&socket_dir).unwrap();
}

#[test]
fn cluster_is_accessible_to_its_owner_only() {
    let directory = temp_dir("private");
    let cluster = start(directory.path()).unwrap();
    let mut client = cluster.target().to_blocking_config().connect(postgres::NoTls).unwrap();
    for (setting, expected) in [
        ("listen_addresses", ""),
        ("unix_socket_permissions", "0700"),
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("full_page_writes", "on"),
        ("server_encoding", "UTF8"),
    ] {
        let row = client.query_one("SELECT current_setting($1)", &[&setting]).unwrap();
        assert_eq!(row.get::<_, &str>(0), expected, "{setting}");
    }
    let mode = std::fs::metadata(directory.path().join("postgres")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn cluster_compresses_large_events_with_lz4_where_postgresql_has_it() {
    let directory = temp_dir("compression");
    let cluster = start(directory.path()).unwrap();
    let mut client = cluster.target().to_blocking_config().connect(postgres::NoTls).unwrap();
    let row = client
        .query_one(
            "SELECT setting, 'lz4' = ANY (enumvals) FROM pg_settings WHERE name = 'default_toast_compression'",
            &[],
        )
        .unwrap();
    assert_eq!(row.get::<_, &str>(0), if row.get(1) { "lz4" } else { "pglz" });
}

#[test]
fn cluster_of_another_major_version_is_rejected() {
    let directory = temp_dir("version");
    std::fs::create_dir(directory.path().join("postgres")).unwrap();
    std::fs::write(directory.path().join("postgres/PG_VERSION"), "9\n").unwrap();
    let error = start(directory.path()).unwrap_err();
    assert!(
        matches!(&error, ClusterError::VersionMismatch { cluster_version, .. } if cluster_version == "9"),
        "{error}"
    );
    assert!(error.to_string().contains("pg_upgrade"));
}

#[test]
fn cluster_start_reports_a_directory_without_search_permission() {
    if !is_root() {
        // Only root runs the programs as another user.
        return;
    }
    let directory = temp_dir("barred");
    let above = directory.path().join("above");
    std::fs::create_dir(&above).unwrap();
    std::fs::set_permissions(&above, std::fs::Permissions::from_mode(0o700)).unwrap();
    let error = start(&above.join("data")).unwrap_err();
    assert!(
        matches!(&error, ClusterError::NotTraversable { directory, .. } if *directory == above),
        "{error}"
    );
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}
