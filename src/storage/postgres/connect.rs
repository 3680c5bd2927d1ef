//! Connections: two bounded pools of them, one for transactions and one for questions, and transactions on one.
//!
//! r2d2 counts and hands out; the connecting itself is done by whoever takes a connection, on its own thread. That way
//! its failure is a typed answer at once (a wrong password has a SQLSTATE, a refused port takes no time), where r2d2's
//! own threads would only leave a text and let the caller wait. Everything is a transaction: settings are `SET LOCAL`
//! and no statement is named past its end, so that a transaction-pooling proxy may stand between.

use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use postgres::Client;
use r2d2::{ManageConnection, PooledConnection};
use r2d2_postgres::PostgresConnectionManager;
use tokio_postgres::config::{Host, SslMode, SslNegotiation};

use super::ask::Session;
use super::error;
use super::patience::{Pace, Patiently};
use super::target::Target;
use crate::storage::StoreError;

/// How long a caller waits for one of the pool's connections to come free.
const CHECKOUT_TIMEOUT: Duration = Duration::from_secs(5);
/// BEGIN waits for nothing: a database that is silent to it is known sooner than one that is at work.
pub(super) const BEGIN_PATIENCE: Duration = Duration::from_secs(5);

/// Connections that are not for questions: the writer's, the probe's, retention's, and one to spare.
const TRANSACTIONS_MAX: u32 = 4;

/// A bounded set of connections to one database.
#[derive(Debug)]
pub(super) struct Connections {
    transactions: r2d2::Pool<Places<Link>>,
    pub(super) questions: r2d2::Pool<Places<Session>>,
    pub(super) connector: Connector,
}

/// A connection for transactions.
type Link = (Client, Arc<Pace>);

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
        let transactions_max = TRANSACTIONS_MAX.min(connections_max.div_ceil(2));
        Self {
            transactions: pool(transactions_max),
            questions: pool(connections_max.saturating_sub(transactions_max)),
            connector: Connector(target.clone()),
        }
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
        let mut place = place(&self.transactions)?;
        let client = begin(&mut place, &self.connector, terms)?;
        match work(client) {
            Ok(value) => match client.batch_execute("COMMIT") {
                Ok(()) => {
                    place.busy = false;
                    Ok(value)
                }
                Err(error) => Err(error::of_commit(&error)),
            },
            Err(error) => {
                // A connection that cannot even roll back stays busy, and r2d2 throws it away.
                place.busy = client.batch_execute("ROLLBACK").is_err();
                Err(error)
            }
        }
    }
}

fn pool<C: Send + 'static>(connections_max: u32) -> r2d2::Pool<Places<C>> {
    r2d2::Pool::builder()
        .max_size(connections_max.max(1))
        // A place without a connection in it costs nothing; one spares the first caller r2d2's own thread.
        .min_idle(Some(1))
        .test_on_check_out(false)
        .connection_timeout(CHECKOUT_TIMEOUT)
        .build_unchecked(Places(PhantomData))
}

pub(super) fn place<C: Send + 'static>(
    pool: &r2d2::Pool<Places<C>>,
) -> Result<PooledConnection<Places<C>>, StoreError> {
    pool.get().map_err(|_timeout| {
        StoreError::unreachable(format!(
            "no connection came free within {} s: {} are in use",
            CHECKOUT_TIMEOUT.as_secs(),
            pool.max_size()
        ))
    })
}

/// Begins a transaction. A pooled connection may have died while it lay idle, which only shows when it is used: then
/// nothing has happened yet, and a new one takes its place.
fn begin<'a>(
    kept: &'a mut Place<Link>,
    connector: &Connector,
    terms: &Terms,
) -> Result<&'a mut Client, StoreError> {
    kept.busy = true;
    let begin = |client: &mut Client, pace: &Pace| {
        pace.begin(terms.patience.min(BEGIN_PATIENCE));
        let begun = client.batch_execute(&terms.begin);
        pace.begin(terms.patience);
        begun
    };
    let mut pooled = kept.connection.take();
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
    Ok(&mut kept.connection.insert(link).0)
}

#[derive(Debug)]
pub(super) struct Connector(Target);

impl Connector {
    /// Over TCP the crate hands the fresh socket to [`Patiently`], which negotiates encryption itself; that is what
    /// `Direct` and `Require` mean to the crate, whatever the URL says of encryption. Elsewhere the crate negotiates.
    fn way(&self) -> (Target, Patiently, Arc<Pace>) {
        let mut target = self.0.clone();
        let config = &mut target.config;
        let pace = Arc::new(Pace::new(config.get_connect_timeout().copied().unwrap_or(CHECKOUT_TIMEOUT)));
        let over_tcp = !config.get_hosts().is_empty()
            && config.get_hosts().iter().all(|host| matches!(host, Host::Tcp(_)));
        let negotiated = !over_tcp || config.get_ssl_negotiation() == SslNegotiation::Direct;
        if over_tcp {
            config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        }
        let patiently = Patiently::new(target.tls.clone(), negotiated, Arc::clone(&pace));
        (target, patiently, pace)
    }

    fn connect(&self) -> Result<Link, StoreError> {
        let (target, patiently, pace) = self.way();
        let connect = || PostgresConnectionManager::new(target.blocking(), patiently).connect();
        // The crate makes a runtime for each connection and unwraps it: out of file descriptors it panics, and that
        // must cost a try and not the writer.
        let Ok(client) = catch_unwind(AssertUnwindSafe(connect)) else {
            return Err(StoreError::unreachable(
                "connecting: no runtime could be made, file descriptors may be short",
            ));
        };
        client.map(|client| (client, pace)).map_err(|error| before_any_work("connecting", &error))
    }

    pub(super) fn session(&self) -> Result<Session, StoreError> {
        let (target, patiently, pace) = self.way();
        Session::connect(&target, patiently, pace)
    }
}

/// That this took too long says nothing of how much was asked.
pub(super) fn before_any_work(doing: &str, error: &postgres::Error) -> StoreError {
    StoreError { timed_out: false, ..error::of(doing, error) }
}

/// A place for a connection. One that is `busy` has an open transaction.
pub(super) struct Place<C> {
    pub(super) connection: Option<C>,
    pub(super) busy: bool,
}

/// The pools' manager: makes empty places, and so cannot fail.
pub(super) struct Places<C>(PhantomData<fn() -> C>);

impl<C> fmt::Debug for Places<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Places")
    }
}

impl<C: Send + 'static> ManageConnection for Places<C> {
    type Connection = Place<C>;
    type Error = Infallible;

    fn connect(&self) -> Result<Place<C>, Infallible> {
        Ok(Place { connection: None, busy: false })
    }

    fn is_valid(&self, _place: &mut Place<C>) -> Result<(), Infallible> {
        Ok(())
    }

    /// One in whose transaction something went wrong, or a panic passed through. An empty place is as good as new.
    fn has_broken(&self, place: &mut Place<C>) -> bool {
        place.busy
    }
}
