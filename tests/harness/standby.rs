//! A primary with an asynchronous hot standby, which replicates through a proxy. A test may stall
//! the replication, kill or stop the primary, and promote the standby.

use super::postgres::Postgres;
use super::proxy::Proxy;
use super::wait::until;

/// What a standby misses during a stall is kept for it.
const SETTINGS: &[&str] = &[
    "wal_level=replica",
    "max_wal_senders=5",
    "hot_standby=on",
    "wal_keep_size=256MB",
    // A standby that lost its primary connects again at once.
    "wal_retrieve_retry_interval=100ms",
];

/// Fields drop in order: standby, proxy, primary.
pub(crate) struct ReplicatedPostgres {
    pub(crate) standby: Postgres,
    replication: Proxy,
    pub(crate) primary: Postgres,
}

impl ReplicatedPostgres {
    /// Starts both, and waits until the standby has caught up.
    pub(crate) fn start() -> Self {
        Self::start_with(Postgres::start_with(SETTINGS))
    }

    fn start_with(primary: Postgres) -> Self {
        let replication = Proxy::to(primary.port());
        let standby = Postgres::start_standby(replication.port(), SETTINGS);
        let this = Self { standby, replication, primary };
        this.wait_until_caught_up();
        this
    }

    /// A `DATABASE_URL` that names both and accepts only the one that is writable.
    pub(crate) fn url(&self) -> String {
        self.url_with("target_session_attrs=read-write")
    }

    /// A `DATABASE_URL` that names both, the primary first, with these parameters.
    pub(crate) fn url_with(&self, parameters: &str) -> String {
        let (primary, standby) = (self.primary.port(), self.standby.port());
        format!("postgresql://aurore@127.0.0.1:{primary},127.0.0.1:{standby}/aurore?{parameters}")
    }

    /// Waits until the standby has replayed everything that the primary has written until now.
    #[track_caller]
    pub(crate) fn wait_until_caught_up(&self) {
        let written: String = self.primary.value("SELECT pg_current_wal_lsn()::text");
        let sql = format!("SELECT coalesce(pg_last_wal_replay_lsn() >= '{written}', false)");
        until("the standby has caught up", || self.standby.value(&sql));
    }

    /// From now on the standby receives nothing, while its connection stays open.
    pub(crate) fn stall_replication(&self) {
        self.replication.stall();
    }

    pub(crate) fn resume_replication(&self) {
        self.replication.repair();
    }

    /// Kills the primary like a crash of its machine. Bytes that a stall held are dropped.
    pub(crate) fn kill_primary(&mut self) {
        self.replication.cut();
        self.primary.stop_immediate();
    }

    /// Stops the primary as a switchover does: it ends its sessions, sends the standby all it has
    /// written, and ends. The replication must not be stalled.
    pub(crate) fn stop_primary(&mut self) {
        self.primary.stop_fast();
    }

    /// Makes the standby a primary on a timeline of its own, and waits until it is writable.
    #[track_caller]
    pub(crate) fn promote_standby(&self) {
        assert!(self.standby.value::<bool>("SELECT pg_promote()"), "the standby is not promoted in 60 s");
    }

    /// Starts the standby as a primary on the timeline of the old one, as a restored backup does.
    pub(crate) fn restore_standby_as_primary(&mut self) {
        self.standby.stop_fast();
        self.standby.forget_primary();
        self.standby.restart();
    }

    /// Removes the old primary and starts a standby of the promoted one, which becomes `primary`.
    pub(crate) fn replace_primary(self) -> Self {
        let Self { standby: promoted, replication: _, primary: _ } = self;
        Self::start_with(promoted)
    }
}
