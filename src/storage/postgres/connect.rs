//! Connections: a bounded pool of them, and transactions on one.
//!
//! r2d2 counts and hands out; the connecting itself is done by whoever takes a connection, on its own thread. That way
//! its failure is a typed answer at once (a wrong password has a SQLSTATE, a refused port takes no time), where r2d2's
//! own threads would only leave a text and let the caller wait. Everything is a transaction: settings are `SET LOCAL`
//! and no statement is named past its end, so that a transaction-pooling proxy may stand between.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use postgres::{Client, NoTls};
use r2d2::ManageConnection;
use r2d2_postgres::PostgresConnectionManager;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error;
use super::target::Target;
use super::tls::Tls;
use crate::storage::StoreError;

/// How long a caller waits for one of the pool's connections to come free.
const CHECKOUT_TIMEOUT: Duration = Duration::from_secs(5);

/// A bounded set of connections to one database.
#[derive(Debug)]
pub(super) struct Connections {
    pool: r2d2::Pool<Lazy>,
    connector: Arc<Connector>,
}

#[derive(Debug)]
enum Connector {
    Plain(Box<PostgresConnectionManager<NoTls>>),
    Tls(Box<PostgresConnectionManager<TlsConnector>>),
}

/// `MakeRustlsConnect` with a `Debug` of its own.
#[derive(Clone)]
struct TlsConnector(MakeRustlsConnect);

impl Connections {
    pub(super) fn new(target: &Target, connections_max: u32) -> Self {
        let pool = r2d2::Pool::builder()
            .max_size(connections_max.max(1))
            // A place without a connection in it costs nothing; one spares the first caller r2d2's own thread.
            .min_idle(Some(1))
            .test_on_check_out(false)
            .connection_timeout(CHECKOUT_TIMEOUT)
            .build_unchecked(Lazy);
        Self { pool, connector: Arc::new(Connector::new(target)) }
    }

    /// A connection outside the pool, for what needs two at once.
    pub(super) fn apart(&self) -> Result<Client, StoreError> {
        self.connector.connect()
    }

    /// Runs `work` between `begin` (which begins with BEGIN) and COMMIT. When it fails nothing of it remains.
    pub(super) fn transaction<T>(
        &self,
        begin: &str,
        work: impl FnOnce(&mut Client) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut link = self.pool.get().map_err(|_timeout| {
            StoreError::unreachable(format!(
                "no connection came free within {} s: {} are in use",
                CHECKOUT_TIMEOUT.as_secs(),
                self.pool.max_size()
            ))
        })?;
        let client = link.begin(&self.connector, begin)?;
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

impl Connector {
    fn new(target: &Target) -> Self {
        let config = target.config.clone();
        match &target.tls {
            Tls::Off => Self::Plain(Box::new(PostgresConnectionManager::new(config, NoTls))),
            Tls::On { config: tls, .. } => {
                let tls = TlsConnector(MakeRustlsConnect::new(rustls::ClientConfig::clone(tls)));
                Self::Tls(Box::new(PostgresConnectionManager::new(config, tls)))
            }
        }
    }

    fn connect(&self) -> Result<Client, StoreError> {
        match self {
            Self::Plain(manager) => manager.connect(),
            Self::Tls(manager) => manager.connect(),
        }
        .map_err(|error| error::of("connecting", &error))
    }
}

/// A place for a connection. A client that is `busy` has an open transaction.
#[derive(Default)]
struct Link {
    client: Option<Client>,
    busy: bool,
}

impl Link {
    /// Begins a transaction. A pooled connection may have died while it lay idle, which only shows when it is used:
    /// then nothing has happened yet, and a new one takes its place.
    fn begin(&mut self, connector: &Connector, begin: &str) -> Result<&mut Client, StoreError> {
        self.busy = true;
        let pooled = match self.client.take() {
            None => None,
            Some(mut client) => match client.batch_execute(begin) {
                Ok(()) => Some(client),
                Err(error) if error::is_answer(&error) => return Err(error::of("BEGIN", &error)),
                Err(_died_idle) => None,
            },
        };
        let client = if let Some(client) = pooled {
            client
        } else {
            let mut client = connector.connect()?;
            client.batch_execute(begin).map_err(|error| error::of("BEGIN", &error))?;
            client
        };
        Ok(self.client.insert(client))
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

mod glue {
    //! What the traits of the crates ask for, without a thought of our own.

    use std::fmt;

    use postgres::Socket;
    use postgres::tls::MakeTlsConnect;
    use tokio_postgres_rustls::MakeRustlsConnect;

    use super::TlsConnector;

    impl fmt::Debug for TlsConnector {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("TlsConnector")
        }
    }

    impl MakeTlsConnect<Socket> for TlsConnector {
        type Stream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;
        type TlsConnect = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;
        type Error = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Error;

        fn make_tls_connect(&mut self, domain: &str) -> Result<Self::TlsConnect, Self::Error> {
            MakeTlsConnect::<Socket>::make_tls_connect(&mut self.0, domain)
        }
    }
}
