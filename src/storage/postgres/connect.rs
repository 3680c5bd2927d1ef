//! Connections: a bounded pool of them, and transactions on one.
//!
//! r2d2 counts and hands out; the connecting itself is done by whoever takes a connection, on its own thread. That way
//! its failure is a typed answer at once (a wrong password has a SQLSTATE, a refused port takes no time), where r2d2's
//! own threads would only leave a text and let the caller wait. Everything is a transaction: settings are `SET LOCAL`
//! and no statement is named past its end, so that a transaction-pooling proxy may stand between.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use postgres::config::{Host, SslMode, SslNegotiation};
use postgres::{Client, NoTls};
use r2d2::ManageConnection;
use r2d2_postgres::PostgresConnectionManager;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error;
use super::patience::{Pace, Patiently};
use super::target::Target;
use super::tls::Tls;
use crate::storage::StoreError;

/// How long a caller waits for one of the pool's connections to come free.
const CHECKOUT_TIMEOUT: Duration = Duration::from_secs(5);
/// BEGIN waits for nothing: a database that is silent to it is known sooner than one that is at work.
const BEGIN_PATIENCE: Duration = Duration::from_secs(5);

/// A bounded set of connections to one database.
#[derive(Debug)]
pub(super) struct Connections {
    pool: r2d2::Pool<Lazy>,
    connector: Connector,
}

/// What a transaction begins with and how long it may be kept waiting.
#[derive(Debug)]
pub(super) struct Terms {
    /// BEGIN and settings that are `SET LOCAL`, in one message.
    pub(super) begin: String,
    /// The longest silence of the database: more than its own timeouts in `begin`, which it normally keeps.
    pub(super) patience: Duration,
}

/// A connection outside the pool.
pub(super) struct Apart {
    pub(super) client: Client,
    pace: Arc<Pace>,
}

impl Apart {
    /// From now on the database may be silent for so long.
    pub(super) fn wait_for(&self, patience: Duration) {
        self.pace.begin(patience);
    }
}

impl Connections {
    pub(super) fn new(target: &Target, connections_max: u32) -> Self {
        let pool = r2d2::Pool::builder()
            .max_size(connections_max.max(1))
            // A place without a connection in it costs nothing; one spares the first caller r2d2's own thread.
            .min_idle(Some(1))
            .test_on_check_out(false)
            .connection_timeout(CHECKOUT_TIMEOUT)
            .build_unchecked(Lazy);
        Self { pool, connector: Connector(target.clone()) }
    }

    /// A connection outside the pool, for what needs two at once. It waits for answers that take no work.
    pub(super) fn apart(&self) -> Result<Apart, StoreError> {
        let (client, pace) = self.connector.connect()?;
        pace.begin(BEGIN_PATIENCE);
        Ok(Apart { client, pace })
    }

    /// Runs `work` between BEGIN and COMMIT. When it fails nothing of it remains.
    pub(super) fn transaction<T>(
        &self,
        terms: &Terms,
        work: impl FnOnce(&mut Client) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut link = self.pool.get().map_err(|_timeout| {
            StoreError::unreachable(format!(
                "no connection came free within {} s: {} are in use",
                CHECKOUT_TIMEOUT.as_secs(),
                self.pool.max_size()
            ))
        })?;
        let client = link.begin(&self.connector, terms)?;
        match work(client) {
            Ok(value) => match client.batch_execute("COMMIT") {
                Ok(()) => {
                    link.busy = false;
                    Ok(value)
                }
                Err(error) => Err(error::of_commit(&error)),
            },
            Err(error) => {
                // A connection that cannot even roll back stays busy, and r2d2 throws it away.
                link.busy = client.batch_execute("ROLLBACK").is_err();
                Err(error)
            }
        }
    }
}

#[derive(Debug)]
struct Connector(Target);

impl Connector {
    /// Over TCP the crate hands the fresh socket to [`Patiently`], which negotiates encryption itself; that is what
    /// `Direct` and `Require` mean to the crate, whatever the URL says of encryption.
    fn connect(&self) -> Result<(Client, Arc<Pace>), StoreError> {
        let Target { config, tls } = &self.0;
        let pace = Arc::new(Pace::new(config.get_connect_timeout().copied().unwrap_or(CHECKOUT_TIMEOUT)));
        let over_tcp = !config.get_hosts().is_empty()
            && config.get_hosts().iter().all(|host| matches!(host, Host::Tcp(_)));
        let connect = || {
            if over_tcp {
                let direct_tls = config.get_ssl_negotiation() == SslNegotiation::Direct;
                let mut config = config.clone();
                config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
                let patiently = Patiently::new(tls.clone(), direct_tls, Arc::clone(&pace));
                PostgresConnectionManager::new(config, patiently).connect()
            } else {
                match tls {
                    Tls::On { config: tls, .. } => {
                        let tls = MakeRustlsConnect::new(rustls::ClientConfig::clone(tls));
                        PostgresConnectionManager::new(config.clone(), tls).connect()
                    }
                    Tls::Off => PostgresConnectionManager::new(config.clone(), NoTls).connect(),
                }
            }
        };
        // The crate makes a runtime for each connection and unwraps it: out of file descriptors it panics, and that
        // must cost a try and not the writer.
        let Ok(client) = catch_unwind(AssertUnwindSafe(connect)) else {
            return Err(StoreError::unreachable(
                "connecting: no runtime could be made, file descriptors may be short",
            ));
        };
        client.map(|client| (client, pace)).map_err(|error| before_any_work("connecting", &error))
    }
}

/// That this took too long says nothing of how much was asked.
fn before_any_work(doing: &str, error: &postgres::Error) -> StoreError {
    StoreError { timed_out: false, ..error::of(doing, error) }
}

/// A place for a connection. A client that is `busy` has an open transaction.
#[derive(Default)]
struct Link {
    client: Option<(Client, Arc<Pace>)>,
    busy: bool,
}

impl Link {
    /// Begins a transaction. A pooled connection may have died while it lay idle, which only shows when it is used:
    /// then nothing has happened yet, and a new one takes its place.
    fn begin(&mut self, connector: &Connector, terms: &Terms) -> Result<&mut Client, StoreError> {
        self.busy = true;
        let begin = |client: &mut Client, pace: &Pace| {
            pace.begin(terms.patience.min(BEGIN_PATIENCE));
            let begun = client.batch_execute(&terms.begin);
            pace.begin(terms.patience);
            begun
        };
        let mut pooled = self.client.take();
        if let Some((client, pace)) = &mut pooled {
            match begin(client, pace) {
                Ok(()) => {}
                Err(error) if error::is_answer(&error) => return Err(before_any_work("BEGIN", &error)),
                Err(_died_idle) => pooled = None,
            }
        }
        let link = if let Some(link) = pooled {
            link
        } else {
            let (mut client, pace) = connector.connect()?;
            begin(&mut client, &pace).map_err(|error| before_any_work("BEGIN", &error))?;
            (client, pace)
        };
        Ok(&mut self.client.insert(link).0)
    }
}

/// The pool's manager: makes empty places, and so cannot fail.
#[derive(Debug)]
struct Lazy;

impl ManageConnection for Lazy {
    type Connection = Link;
    type Error = Infallible;

    fn connect(&self) -> Result<Link, Infallible> {
        Ok(Link::default())
    }

    fn is_valid(&self, _link: &mut Link) -> Result<(), Infallible> {
        Ok(())
    }

    /// One in whose transaction something went wrong, or a panic passed through. An empty place is as good as new.
    fn has_broken(&self, link: &mut Link) -> bool {
        link.busy
    }
}
