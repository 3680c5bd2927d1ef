//! Questions: a statement that only reads, in a transaction and a round trip of its own.
//!
//! BEGIN with its settings, the statement and COMMIT go out together, and their answers are awaited together. The
//! `postgres` crate would wait for each; on a busy machine every wait is two turns of the scheduler, and over a network a
//! way there and back. So this drives `tokio-postgres`, of which that crate is made, in the same manner: on the thread that
//! asks, by a runtime of the connection's own. It knows nothing of what is asked.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream as _;
use futures_util::future::join3;
use postgres::types::{ToSql, Type};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{AsyncMessage, Client, Error, Row};

use super::connect::{BEGIN_PATIENCE, Connections, Connector, Place, Terms, before_any_work, place};
use super::error;
use super::patience::{Pace, Patiently};
use super::target::{Notices, Target};
use crate::storage::StoreError;

/// Where questions go, and on which terms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Desk<'a> {
    pub(super) connections: &'a Connections,
    pub(super) terms: &'a Terms,
}

type Params<'a> = [(&'a (dyn ToSql + Sync), Type)];

/// A statement and its parameters.
struct Question<'a> {
    /// What an error says that was being done.
    doing: &'static str,
    statement: &'a str,
    params: &'a Params<'a>,
}

/// A connection for questions.
pub(super) struct Session {
    // In this order: without a client, the line tells the database that it ends.
    client: Client,
    line: Line,
    pace: Arc<Pace>,
}

/// The connection's own half: what carries the client's messages.
struct Line {
    runtime: Runtime,
    poll: Box<PollMessage>,
    notices: Notices,
    /// It has failed, and nothing more goes over it.
    over: bool,
}

type PollMessage = dyn FnMut(&mut Context<'_>) -> Poll<Option<Result<AsyncMessage, Error>>> + Send;

/// How far a question came.
enum Asked {
    Done,
    /// The connection was of no use before the database had begun with it.
    NotBegun(Error),
    Failed(StoreError),
}

impl Desk<'_> {
    /// Asks, and gives each row of the answer to `each` until that has had enough; what comes after it is thrown away
    /// where it arrives.
    pub(super) fn ask_each(
        self,
        doing: &'static str,
        statement: &str,
        params: &Params<'_>,
        each: impl FnMut(&Row) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let Connections { questions, connector, .. } = self.connections;
        let question = Question { doing, statement, params };
        ask(&mut *place(questions)?, connector, self.terms, &question, each)
    }

    /// Asks, and gives all rows of the answer.
    pub(super) fn ask<T>(
        self,
        doing: &'static str,
        statement: &str,
        params: &Params<'_>,
        mut read: impl FnMut(&Row) -> T,
    ) -> Result<Vec<T>, StoreError> {
        let mut all = Vec::new();
        self.ask_each(doing, statement, params, |row| {
            all.push(read(row));
            ControlFlow::Continue(())
        })?;
        Ok(all)
    }
}

/// A pooled connection may have died while it lay idle, which only shows when it is used: then nothing has been read
/// yet, and a new one takes its place.
fn ask(
    place: &mut Place<Session>,
    connector: &Connector,
    terms: &Terms,
    question: &Question<'_>,
    mut each: impl FnMut(&Row) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    place.busy = true;
    let pooled = match &mut place.connection {
        Some(session) => match session.ask(terms, question, &mut each) {
            Asked::NotBegun(error) if !error::is_answer(&error) => None,
            asked @ (Asked::Done | Asked::NotBegun(_) | Asked::Failed(_)) => Some(asked),
        },
        None => None,
    };
    let asked = match pooled {
        Some(asked) => asked,
        None => place.connection.insert(connector.session()?).ask(terms, question, &mut each),
    };
    match asked {
        Asked::Done => {
            place.busy = false;
            Ok(())
        }
        Asked::NotBegun(error) => Err(before_any_work("BEGIN", &error)),
        Asked::Failed(error) => {
            // COMMIT had been sent: where the database has answered, it has ended the transaction too.
            place.busy = error.sqlstate.is_none();
            Err(error)
        }
    }
}

impl Session {
    pub(super) fn connect(
        target: &Target,
        patiently: Patiently,
        pace: Arc<Pace>,
    ) -> Result<Self, StoreError> {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| {
            StoreError::unreachable(format!("connecting: no runtime could be made: {error}"))
        })?;
        let (client, mut connection) = runtime
            .block_on(target.config.connect(patiently))
            .map_err(|error| before_any_work("connecting", &error))?;
        let poll = Box::new(move |cx: &mut Context<'_>| connection.poll_message(cx));
        let line = Line { runtime, poll, notices: Arc::clone(&target.notices), over: false };
        Ok(Self { client, line, pace })
    }

    fn ask(
        &mut self,
        terms: &Terms,
        question: &Question<'_>,
        each: &mut impl FnMut(&Row) -> ControlFlow<()>,
    ) -> Asked {
        let Self { client, line, pace } = self;
        let has_begun = Cell::new(false);
        let begin = async {
            pace.begin(terms.patience.min(BEGIN_PATIENCE));
            let begun = client.batch_execute(&terms.begin).await;
            pace.begin(terms.patience);
            has_begun.set(begun.is_ok());
            begun
        };
        let read = async {
            let params = question.params.iter().map(|(value, kind)| (*value, kind.clone()));
            let mut rows = pin!(client.query_typed_raw(question.statement, params).await?);
            while let Some(row) = poll_fn(|cx| rows.as_mut().poll_next(cx)).await.transpose()? {
                if each(&row).is_break() {
                    break;
                }
            }
            Ok(())
        };
        // Each is sent as it is first polled, and they are polled in this order.
        let done = line.carry(join3(begin, read, client.batch_execute("COMMIT")));
        let failed = |doing, error| Asked::Failed(error::of(doing, &error));
        match done {
            Err(error) if has_begun.get() => failed(question.doing, error),
            Err(error) | Ok((Err(error), _, _)) => Asked::NotBegun(error),
            Ok((Ok(()), Err(error), _)) => failed(question.doing, error),
            Ok((Ok(()), Ok(()), Err(error))) => failed("COMMIT", error),
            Ok((Ok(()), Ok(()), Ok(()))) => Asked::Done,
        }
    }
}

impl Line {
    /// Carries messages until `work` is done. Fails when the connection does.
    fn carry<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Error> {
        let Self { runtime, poll, notices, over } = self;
        let mut work = pin!(work);
        runtime.block_on(poll_fn(|cx| {
            loop {
                if let Poll::Ready(done) = work.as_mut().poll(cx) {
                    return Poll::Ready(Ok(done));
                }
                match poll(cx) {
                    Poll::Ready(Some(Ok(AsyncMessage::Notice(notice)))) => notices(&notice),
                    // Nobody listens for notifications, and what else there may be is not for us.
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(Some(Err(error))) => {
                        *over = true;
                        return Poll::Ready(Err(error));
                    }
                    // It ends of itself only when the client is gone, and `work` has that.
                    Poll::Ready(None) | Poll::Pending => return Poll::Pending,
                }
            }
        }))
    }
}

impl Drop for Line {
    /// Says that it ends, if that can be said without waiting.
    fn drop(&mut self) {
        let Self { runtime, poll, over, .. } = self;
        if !*over {
            runtime.block_on(poll_fn(|cx| {
                drop(poll(cx));
                Poll::Ready(())
            }));
        }
    }
}
