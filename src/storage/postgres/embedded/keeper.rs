//! Starts the embedded cluster again when somebody else has ended it: the kernel, for want of memory, or an operator.
//!
//! Only for as long as the server runs: what it stops itself stays stopped.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::{Cluster, ClusterError};
use crate::clock::Clock;
use crate::lifecycle::Lifecycle;

/// How soon an end is noticed, and the first wait after one.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The longest wait between two starts. One that ran for longer has not failed.
const WAIT_MAX: Duration = Duration::from_mins(1);

/// A thread that has the cluster until the server stops.
#[derive(Debug)]
pub struct Keeper {
    stop: Sender<()>,
    cluster: Receiver<Cluster>,
}

impl Keeper {
    /// Counts in `restarts` how often it was started again.
    pub fn start(
        cluster: Cluster,
        restarts: Arc<AtomicU64>,
        lifecycle: &Lifecycle,
        clock: &Clock,
    ) -> io::Result<Self> {
        let (stop, stopped) = bounded::<()>(0);
        let (kept, end) = bounded(1);
        let clock = clock.clone();
        lifecycle.spawn_task("cluster", move || {
            // With nobody left to take it, it is dropped, which ends it.
            kept.send(keep(cluster, &stopped, &restarts, &clock)).unwrap_or_else(drop);
        })?;
        Ok(Self { stop, cluster: end })
    }

    /// Ends the cluster.
    pub fn stop(self) -> Result<(), ClusterError> {
        drop(self.stop);
        // Not given back, it was dropped, which ends it too.
        self.cluster.recv().map_or(Ok(()), Cluster::stop)
    }
}

fn keep(mut cluster: Cluster, stopped: &Receiver<()>, restarts: &AtomicU64, clock: &Clock) -> Cluster {
    let mut wait = LOOK_EVERY;
    let mut started = clock.now();
    while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
        if cluster.is_running() {
            wait = LOOK_EVERY;
            continue;
        }
        let lasted = clock.now().since(started);
        log::error!(
            lasted_s = lasted.as_secs();
            "the embedded PostgreSQL has ended, and not by this server: it is started again; why is in {}",
            cluster.log_path().display()
        );
        let is_stopped = || stopped.try_recv().is_err_and(|error| error.is_disconnected());
        let revived = cluster.revive(clock, &is_stopped);
        if is_stopped() {
            return cluster;
        }
        match revived {
            Ok(()) => {
                restarts.fetch_add(1, Ordering::Relaxed);
                log::info!("the embedded PostgreSQL is up again");
            }
            Err(error) => log::error!("the embedded PostgreSQL does not start again: {error}"),
        }
        wait = if lasted > WAIT_MAX { LOOK_EVERY } else { (wait * 2).min(WAIT_MAX) };
        started = clock.now();
    }
    cluster
}
