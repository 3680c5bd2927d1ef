//! Read-only statements: one transaction each, in one network round trip.
//!
//! BEGIN with its settings, the statement and COMMIT are pipelined. The `postgres` crate would wait
//! for each response; on a busy machine each wait costs two context switches, and over a network a
//! round trip. So this module drives `tokio-postgres`, on which that crate is built, the same way:
//! on the calling thread, with one runtime per connection. It does not depend on the statements.
//!
//! A statement whose further rows are not needed is not read to its end: beyond
//! [`DISCARD_BYTES_MAX`] its connection is closed, and PostgreSQL ends the statement with its next
//! write. Rejected: a portal with a maximum of rows, which needs a round trip for each part and
//! cannot bound bytes; a cancel request, which also needs a connection and may hit the next
//! statement; a running total of sizes in SQL, for which PostgreSQL makes the texts of all rows
//! before it sends one.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream as _;
use futures_util::future::join3;
use postgres::types::{ToSql, Type};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{AsyncMessage, Client, Error, Row, RowStream};

use super::connect::{
    BEGIN_IO_TIMEOUT, ConnectionSlot, Connections, Connector, TxnOptions, checkout, error_before_work,
};
use super::error;
use super::io_timeout::{IoDeadline, TimeoutConnector};
use super::target::{ConnectTarget, NoticeHandler};
use crate::storage::StoreError;

/// The pool of read connections, with the transaction options of a statement.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadPool<'a> {
    pub(super) connections: &'a Connections,
    pub(super) options: &'a TxnOptions,
}

type SqlParams<'a> = [(&'a (dyn ToSql + Sync), Type)];

/// Bytes of unneeded rows that are received and discarded before the connection is closed instead.
/// They take about as long as a new connection with empty caches.
const DISCARD_BYTES_MAX: usize = 4 << 20;

/// A read-only statement and its parameters.
struct ReadStatement<'a> {
    /// Names the operation in error messages.
    operation: &'static str,
    sql: &'a str,
    params: &'a SqlParams<'a>,
}

/// A connection for read-only statements.
pub(super) struct ReadConnection {
    // Drop order: once the client is gone, the driver sends Terminate to the database.
    client: Client,
    driver: ConnectionDriver,
    io_deadline: Arc<IoDeadline>,
}

/// The I/O half of the connection, which sends and receives the client's messages.
struct ConnectionDriver {
    runtime: Runtime,
    poll: Box<PollMessage>,
    notices: NoticeHandler,
    /// The connection must not be polled again: it has failed, or a statement is abandoned.
    dead: bool,
}

type PollMessage = dyn FnMut(&mut Context<'_>) -> Poll<Option<Result<AsyncMessage, Error>>> + Send;

/// The result of a read statement.
enum ReadOutcome {
    Done,
    /// The wanted rows were read. The statement is abandoned with its connection.
    Abandoned,
    /// The connection failed before BEGIN succeeded.
    NotStarted(Error),
    Failed(StoreError),
}

impl ReadPool<'_> {
    /// Runs the statement and passes each row to `each` until it returns `Break`. Rows are received
    /// one by one; later rows are discarded, or not received at all.
    pub(super) fn query_each(
        self,
        operation: &'static str,
        sql: &str,
        params: &SqlParams<'_>,
        each: impl FnMut(&Row) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let Connections { reads, connector, session, .. } = self.connections;
        let begin_sql = session.complete_read(&self.options.begin_sql);
        let options = TxnOptions { begin_sql, ..*self.options };
        let statement = ReadStatement { operation, sql, params };
        run(&mut *checkout(reads)?, connector, &options, &statement, each)
    }

    /// Runs the statement and returns all rows.
    pub(super) fn query<T>(
        self,
        operation: &'static str,
        sql: &str,
        params: &SqlParams<'_>,
        mut read: impl FnMut(&Row) -> T,
    ) -> Result<Vec<T>, StoreError> {
        let mut all = Vec::new();
        self.query_each(operation, sql, params, |row| {
            all.push(read(row));
            ControlFlow::Continue(())
        })?;
        Ok(all)
    }
}

/// Runs a statement on the slot's connection. A pooled connection may have died while it was idle,
/// which shows only on use. No row has been read then, so the statement runs on a new connection.
fn run(
    slot: &mut ConnectionSlot<ReadConnection>,
    connector: &Connector,
    options: &TxnOptions,
    statement: &ReadStatement<'_>,
    mut each: impl FnMut(&Row) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    slot.in_transaction = true;
    let pooled = match &mut slot.connection {
        Some(connection) => match connection.query(options, statement, &mut each) {
            ReadOutcome::NotStarted(error) if !error::leaves_connection_usable(&error) => None,
            outcome @ (ReadOutcome::Done
            | ReadOutcome::Abandoned
            | ReadOutcome::NotStarted(_)
            | ReadOutcome::Failed(_)) => Some(outcome),
        },
        None => None,
    };
    let outcome = match pooled {
        Some(outcome) => outcome,
        None => slot.connection.insert(connector.connect_for_reads()?).query(options, statement, &mut each),
    };
    match outcome {
        ReadOutcome::Done => {
            slot.in_transaction = false;
            Ok(())
        }
        ReadOutcome::Abandoned => {
            slot.connection = None;
            slot.in_transaction = false;
            Ok(())
        }
        ReadOutcome::NotStarted(error) => Err(error_before_work("BEGIN", &error)),
        ReadOutcome::Failed(error) => {
            // COMMIT was sent too: if the database sent an error, it has ended the transaction.
            slot.in_transaction = error.sqlstate.is_none();
            Err(error)
        }
    }
}

impl ReadConnection {
    pub(super) fn connect(
        target: &ConnectTarget,
        connector: TimeoutConnector,
        io_deadline: Arc<IoDeadline>,
    ) -> Result<Self, StoreError> {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| {
            StoreError::client_side(format!("connecting: cannot create a runtime: {error}"))
        })?;
        let (client, mut connection) = runtime
            .block_on(target.config.connect(connector))
            .map_err(|error| error_before_work("connecting", &error))?;
        let poll = Box::new(move |cx: &mut Context<'_>| connection.poll_message(cx));
        let driver = ConnectionDriver { runtime, poll, notices: Arc::clone(&target.on_notice), dead: false };
        Ok(Self { client, driver, io_deadline })
    }

    fn query(
        &mut self,
        options: &TxnOptions,
        statement: &ReadStatement<'_>,
        each: &mut impl FnMut(&Row) -> ControlFlow<()>,
    ) -> ReadOutcome {
        let Self { client, driver, io_deadline } = self;
        let (has_begun, abandoned) = (Cell::new(false), Cell::new(false));
        let begin = async {
            io_deadline.restart(options.io_timeout.min(BEGIN_IO_TIMEOUT));
            let result = client.batch_execute(&options.begin_sql).await;
            io_deadline.restart(options.io_timeout);
            has_begun.set(result.is_ok());
            result
        };
        let read = async {
            let params = statement.params.iter().map(|(value, kind)| (*value, kind.clone()));
            let rows = pin!(client.query_typed_raw(statement.sql, params).await?);
            abandoned.set(receive(rows, each).await? == RowsEnd::Abandoned);
            Ok(())
        };
        // `join3` polls in order, and the first poll of each future sends its message.
        let mut work = pin!(join3(begin, read, client.batch_execute("COMMIT")));
        // COMMIT is answered after the last row, so it is pending when the statement is abandoned.
        let done = driver.drive(poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if abandoned.get() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }));
        let Some(done) = done.transpose() else {
            log::debug!("{}: closing the connection instead of reading further rows", statement.operation);
            driver.dead = true;
            return ReadOutcome::Abandoned;
        };
        let failed = |operation, error| ReadOutcome::Failed(error::from_postgres(operation, &error));
        match done {
            Err(error) if has_begun.get() => failed(statement.operation, error),
            Err(error) | Ok((Err(error), _, _)) => ReadOutcome::NotStarted(error),
            Ok((Ok(()), Err(error), _)) => failed(statement.operation, error),
            Ok((Ok(()), Ok(()), Err(error))) => failed("COMMIT", error),
            Ok((Ok(()), Ok(()), Ok(()))) => ReadOutcome::Done,
        }
    }
}

/// Whether the rows of a statement were received to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RowsEnd {
    Complete,
    /// More than [`DISCARD_BYTES_MAX`] followed the last wanted row.
    Abandoned,
}

/// Passes rows to `each` until it returns `Break`, then discards rows.
async fn receive(
    mut rows: Pin<&mut RowStream>,
    each: &mut impl FnMut(&Row) -> ControlFlow<()>,
) -> Result<RowsEnd, Error> {
    loop {
        let Some(row) = poll_fn(|cx| rows.as_mut().poll_next(cx)).await.transpose()? else {
            return Ok(RowsEnd::Complete);
        };
        if each(&row).is_break() {
            break;
        }
    }
    let mut discarded = 0;
    while discarded <= DISCARD_BYTES_MAX {
        match poll_fn(|cx| rows.as_mut().poll_next(cx)).await {
            Some(Ok(row)) => discarded += row.raw_size_bytes(),
            // All wanted rows were read, so the end of the statement does not matter.
            Some(Err(_)) | None => return Ok(RowsEnd::Complete),
        }
    }
    Ok(RowsEnd::Abandoned)
}

impl ConnectionDriver {
    /// Drives the connection until `work` completes. Fails when the connection fails.
    fn drive<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Error> {
        let Self { runtime, poll, notices, dead } = self;
        let mut work = pin!(work);
        runtime.block_on(poll_fn(|cx| {
            loop {
                if let Poll::Ready(done) = work.as_mut().poll(cx) {
                    return Poll::Ready(Ok(done));
                }
                match poll(cx) {
                    Poll::Ready(Some(Ok(AsyncMessage::Notice(notice)))) => notices(&notice),
                    // LISTEN is not used, so notifications and other messages are ignored.
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(Some(Err(error))) => {
                        *dead = true;
                        return Poll::Ready(Err(error));
                    }
                    // None means that the client was dropped; `work` still borrows the client.
                    Poll::Ready(None) | Poll::Pending => return Poll::Pending,
                }
            }
        }))
    }
}

impl Drop for ConnectionDriver {
    /// Sends Terminate if the socket accepts it without blocking.
    fn drop(&mut self) {
        let Self { runtime, poll, dead, .. } = self;
        if !*dead {
            runtime.block_on(poll_fn(|cx| {
                drop(poll(cx));
                Poll::Ready(())
            }));
        }
    }
}
