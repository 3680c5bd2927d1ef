use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::super::embedded::{Cluster, ClusterError, ClusterLimits};
use super::super::testing::TempDir;
use super::super::{Limits, PostgresRepository};
use super::*;
use crate::clock::Clock;

fn start(directory: &Path) -> Result<Cluster, ClusterError> {
    Cluster::start(directory, ClusterLimits::default(), &Clock::system())
}

#[test]
fn a_cluster_is_made_stopped_started_again_and_taken_over_from_a_killed_server() {
    let directory = TempDir::new("embedded");
    // What is left of a server that was killed while it made its cluster.
    std::fs::create_dir(directory.0.join("postgres.unfinished")).unwrap();
    std::fs::write(directory.0.join("postgres.unfinished/PG_VERSION"), "15\n").unwrap();
    let cluster = start(&directory.0).unwrap();
    let repository = PostgresRepository::new(&cluster.target(), Limits::default());
    repository.prepare(now()).unwrap();
    store(&repository, &[&event(NOON * 1000, 1, "a", "m")], StorePath::Copy, (1, 0));
    assert!(directory.0.join("postgres/PG_VERSION").exists());
    assert!(!directory.0.join("postgres.unfinished").exists());
    cluster.stop().unwrap();
    assert!(!directory.0.join("postgres/postmaster.pid").exists());
    assert!(repository.ping().is_err());

    let first = start(&directory.0).unwrap();
    repository.prepare(now()).unwrap();
    // A killed server runs no destructors.
    let pid = std::fs::read_to_string(directory.0.join("postgres/postmaster.pid")).unwrap();
    let first = std::mem::ManuallyDrop::new(first);
    let second = start(&directory.0).unwrap();
    assert_eq!(
        std::fs::read_to_string(directory.0.join("postgres/postmaster.pid")).unwrap(),
        pid,
        "not started anew"
    );
    assert!(matches!(repository.find(id(NOON, 1)), Ok(Some(_))));
    drop(second);
    assert!(!directory.0.join("postgres/postmaster.pid").exists());
    // It was ours after all: take it out of the table of processes.
    drop(std::mem::ManuallyDrop::into_inner(first));
}

#[test]
fn a_data_directory_with_a_long_path_gets_its_socket_elsewhere() {
    let directory = TempDir::new("long");
    let long = directory.0.join("x".repeat(100));
    let cluster = start(&long).unwrap();
    PostgresRepository::new(&cluster.target(), Limits::default()).ping().unwrap();
    let socket_dir = cluster.target().describe().trim_end_matches("/aurore_events").to_owned();
    assert!(socket_dir.contains("aurore-events-") && socket_dir.len() < 90, "{socket_dir}");
    let mode = std::fs::metadata(&socket_dir).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    cluster.stop().unwrap();
    std::fs::remove_dir(&socket_dir).unwrap();
}

#[test]
fn only_the_owner_gets_at_the_cluster() {
    let directory = TempDir::new("private");
    let cluster = start(&directory.0).unwrap();
    let mut client = cluster.target().blocking().connect(postgres::NoTls).unwrap();
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
    let mode = std::fs::metadata(directory.0.join("postgres")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn another_major_version_is_refused_by_name() {
    let directory = TempDir::new("version");
    std::fs::create_dir(directory.0.join("postgres")).unwrap();
    std::fs::write(directory.0.join("postgres/PG_VERSION"), "9\n").unwrap();
    let error = start(&directory.0).unwrap_err();
    assert!(matches!(&error, ClusterError::Version { theirs, .. } if theirs == "9"), "{error}");
    assert!(error.to_string().contains("pg_upgrade"));
}

#[test]
fn a_directory_above_that_bars_the_way_is_named() {
    if !is_root() {
        // Without root there is no other user, and so nobody to bar.
        return;
    }
    let directory = TempDir::new("barred");
    let above = directory.0.join("above");
    std::fs::create_dir(&above).unwrap();
    std::fs::set_permissions(&above, std::fs::Permissions::from_mode(0o700)).unwrap();
    let error = start(&above.join("data")).unwrap_err();
    assert!(matches!(&error, ClusterError::Barred { directory, .. } if *directory == above), "{error}");
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}
