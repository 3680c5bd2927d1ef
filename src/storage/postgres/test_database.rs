//! A private cluster for tests. Concurrent tests share it, and the last one stops it; each test
//! uses its own database.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use postgres::{Client, NoTls};
use tempfile::TempDir;

use super::embedded::{Cluster, ClusterLimits};
use super::{ConnectTarget, PostgresLimits, PostgresRepository};
use crate::clock::Clock;

/// A temporary directory that is removed on drop. Every user may traverse it: PostgreSQL runs as
/// another user when the tests run as root.
pub(super) fn temp_dir(name: &str) -> TempDir {
    tempfile::Builder::new()
        .prefix(&format!("aurore-{name}-"))
        .permissions(Permissions::from_mode(0o755))
        .tempdir()
        .expect("the system's directory for temporary files is writable")
}

#[derive(Debug)]
struct SharedCluster {
    // Drop order: the cluster stops before its directory is removed.
    cluster: Cluster,
    _directory: TempDir,
}

/// No fsync: the last checkpoint would sync the files of dozens of databases that are removed next.
const SETTINGS: &[&str] = &["listen_addresses=", "fsync=off"];

/// A database of one test in the shared cluster.
#[derive(Debug)]
pub(super) struct TestDatabase {
    name: String,
    shared: Arc<SharedCluster>,
}

impl TestDatabase {
    #[track_caller]
    pub(super) fn new() -> Self {
        static SHARED: Mutex<Weak<SharedCluster>> = Mutex::new(Weak::new());
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let shared = {
            let mut running = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
            running.upgrade().unwrap_or_else(|| {
                let directory = temp_dir("cluster");
                let (limits, clock) = (ClusterLimits::default(), Clock::system());
                let cluster = match Cluster::start_with(directory.path(), limits, &clock, SETTINGS) {
                    Ok(cluster) => cluster,
                    Err(error) => panic!("this test needs PostgreSQL: {error}"),
                };
                let shared = Arc::new(SharedCluster { cluster, _directory: directory });
                *running = Arc::downgrade(&shared);
                shared
            })
        };
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        shared
            .cluster
            .target()
            .to_blocking_config()
            .connect(NoTls)
            .unwrap()
            .batch_execute(&format!("CREATE DATABASE {name}"))
            .unwrap();
        Self { name, shared }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn target(&self) -> ConnectTarget {
        let mut target = self.shared.cluster.target();
        target.config.dbname(&self.name);
        target
    }

    pub(super) fn repository(&self) -> PostgresRepository {
        PostgresRepository::new(&self.target(), PostgresLimits::default())
    }

    pub(super) fn client(&self) -> Client {
        self.target().to_blocking_config().connect(NoTls).unwrap()
    }

    pub(super) fn execute(&self, sql: &str) {
        self.client().batch_execute(sql).unwrap();
    }

    pub(super) fn number(&self, sql: &str) -> i64 {
        self.client().query_one(sql, &[]).unwrap().get(0)
    }
}
