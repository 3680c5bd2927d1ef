//! Restarts the embedded cluster after an unexpected exit, for example by the OOM killer or an
//! operator.
//!
//! It owns the cluster while the server runs and does not restart a cluster that the server stops.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::{Cluster, ClusterError};
use crate::clock::Clock;
use crate::lifecycle::Lifecycle;

/// The interval of checking the postmaster, and the first backoff after an exit.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The maximum backoff between two starts. A run that lasted longer resets the backoff.
const BACKOFF_MAX: Duration = Duration::from_mins(1);

/// The handle of the thread that owns the cluster until the server stops.
#[derive(Debug)]
pub struct ClusterSupervisor {
    stop: Sender<()>,
    cluster: Receiver<Cluster>,
}

impl ClusterSupervisor {
    /// Starts the thread. It increments `restarts` after each successful restart.
    pub fn start(
        cluster: Cluster,
        restarts: Arc<AtomicU64>,
        lifecycle: &Lifecycle,
        clock: &Clock,
    ) -> io::Result<Self> {
        let (stop, stopped) = bounded::<()>(0);
        let (sender, receiver) = bounded(1);
        let clock = clock.clone();
        lifecycle.spawn_task("cluster", move || {
            // If the receiver is gone, drop stops the cluster.
            sender.send(supervise(cluster, &stopped, &restarts, &clock)).unwrap_or_else(drop);
        })?;
        Ok(Self { stop, cluster: receiver })
    }

    /// Stops the thread and the cluster.
    pub fn stop(self) -> Result<(), ClusterError> {
        drop(self.stop);
        // If the thread returned no cluster, it has dropped and thereby stopped it.
        self.cluster.recv().map_or(Ok(()), Cluster::stop)
    }
}

fn supervise(mut cluster: Cluster, stopped: &Receiver<()>, restarts: &AtomicU64, clock: &Clock) -> Cluster {
    let mut backoff = POLL_INTERVAL;
    let mut started = clock.now();
    while stopped.recv_timeout(backoff) == Err(RecvTimeoutError::Timeout) {
        if cluster.is_running() {
            backoff = POLL_INTERVAL;
            continue;
        }
        let uptime = clock.now().since(started);
        log::error!(
            uptime_s = uptime.as_secs();
            "the embedded PostgreSQL exited unexpectedly; restarting it; see its log {}",
            cluster.log_path().display()
        );
        let is_stopped = || stopped.try_recv().is_err_and(|error| error.is_disconnected());
        let restarted = cluster.restart(clock, &is_stopped);
        if is_stopped() {
            return cluster;
        }
        match restarted {
            Ok(()) => {
                restarts.fetch_add(1, Ordering::Relaxed);
                log::info!("the embedded PostgreSQL was restarted");
            }
            Err(error) => log::error!("cannot restart the embedded PostgreSQL: {error}"),
        }
        backoff = if uptime > BACKOFF_MAX { POLL_INTERVAL } else { (backoff * 2).min(BACKOFF_MAX) };
        started = clock.now();
    }
    cluster
}
