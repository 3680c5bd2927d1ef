//! A private cluster for tests, shared by those that run at the same time and ended with the last of them. Each test
//! gets a database of its own.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use postgres::{Client, NoTls};

use super::embedded::{Cluster, ClusterLimits};
use super::{Limits, PostgresRepository, Target};
use crate::clock::Clock;

/// A directory that goes away with its value.
#[derive(Debug)]
pub(super) struct TempDir(pub(super) PathBuf);

impl TempDir {
    pub(super) fn new(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("aurore-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

#[derive(Debug)]
struct Shared {
    // In this order: the cluster ends before its directory goes.
    cluster: Cluster,
    _directory: TempDir,
}

/// Without fsync: the last checkpoint would sync the files of dozens of databases that are about to be removed.
const SETTINGS: &[&str] = &["listen_addresses=", "fsync=off"];

/// A database in the shared cluster.
#[derive(Debug)]
pub(super) struct Database {
    name: String,
    shared: Arc<Shared>,
}

impl Database {
    #[track_caller]
    pub(super) fn new() -> Self {
        static SHARED: Mutex<Weak<Shared>> = Mutex::new(Weak::new());
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let shared = {
            let mut running = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
            running.upgrade().unwrap_or_else(|| {
                let directory = TempDir::new("cluster");
                let (limits, clock) = (ClusterLimits::default(), Clock::system());
                let cluster = match Cluster::start_with(&directory.0, limits, &clock, SETTINGS) {
                    Ok(cluster) => cluster,
                    Err(error) => panic!("this test needs PostgreSQL: {error}"),
                };
                let shared = Arc::new(Shared { cluster, _directory: directory });
                *running = Arc::downgrade(&shared);
                shared
            })
        };
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        shared
            .cluster
            .target()
            .blocking()
            .connect(NoTls)
            .unwrap()
            .batch_execute(&format!("CREATE DATABASE {name}"))
            .unwrap();
        Self { name, shared }
    }

    pub(super) fn target(&self) -> Target {
        let mut target = self.shared.cluster.target();
        target.config.dbname(&self.name);
        target
    }

    pub(super) fn repository(&self) -> PostgresRepository {
        PostgresRepository::new(&self.target(), Limits::default())
    }

    pub(super) fn client(&self) -> Client {
        self.target().blocking().connect(NoTls).unwrap()
    }

    pub(super) fn execute(&self, sql: &str) {
        self.client().batch_execute(sql).unwrap();
    }

    pub(super) fn number(&self, sql: &str) -> i64 {
        self.client().query_one(sql, &[]).unwrap().get(0)
    }
}
