//! The `postgres` handler in a database of its own: what it writes is committed before the events count as handled, so
//! at least once.

use std::fmt;
use std::io::ErrorKind;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Connection};
use tokio::time::timeout;

use super::PostgresHandler;
use crate::handler::{
    Answer, BatchAnswer, BatchLimits, EventBatch, Handler, Retry, TransactionalHandler, reason_of,
};
use crate::postgres::{ConnectError, Connections, Lent, Limits, Seat};

/// How long connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// The longest pause between two statements.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The handler, and how it gets at its database.
pub(super) struct Elsewhere {
    handler: PostgresHandler,
    connections: Connections,
}

impl Elsewhere {
    /// Of connections to the database that `handler` writes to.
    pub(super) fn new(handler: PostgresHandler, connections: Connections) -> Self {
        Self {
            handler,
            connections,
        }
    }

    /// Hands the events over in one transaction. A connection on which anything went wrong but an event is closed: it
    /// may lead to a server that is not the primary any more.
    async fn hand_over(&self, seat: Seat<'_>, batch: &EventBatch) -> BatchAnswer {
        let mut lent = match connect(seat).await {
            Ok(lent) => lent,
            Err(why) => return unconnected(why),
        };
        let written = self.write(&mut lent, batch).await;
        match written {
            Ok(BatchAnswer::All(Answer::Retry(retry))) => self.again(retry),
            Ok(answer) => {
                lent.give_back();
                answer
            }
            Err(error) => match self.handler.answer_to(&error) {
                Answer::Retry(retry) => self.again(retry),
                answer => BatchAnswer::All(answer),
            },
        }
    }

    async fn write(
        &self,
        lent: &mut Lent<'_>,
        batch: &EventBatch,
    ) -> Result<BatchAnswer, sqlx::Error> {
        let begin = AssertSqlSafe(lent.begin_statement(self.limits()));
        // Known to sqlx as a transaction, so that one that the handler begins is a savepoint of it.
        let mut tx = lent.connection().begin_with(begin).await?;
        let answer = self.handler.handle(&mut tx, batch).await?;
        match answer {
            BatchAnswer::HANDLED => tx.commit().await?,
            _ => tx.rollback().await?,
        }
        Ok(answer)
    }

    async fn look(&self) -> Result<(), String> {
        let placed = |error: sqlx::Error| self.place(&reason_of(&error));
        let seat = self.connections.seat().await;
        let mut lent = connect(seat.map_err(|error| no_connection(&error))?).await?;
        let begin = AssertSqlSafe(lent.begin_statement(self.limits()));
        let begun = lent.connection().begin_with(begin).await;
        let mut tx = begun.map_err(placed)?;
        let found = self.handler.check(&mut tx).await;
        tx.rollback().await.map_err(placed)?;
        found.map_err(|why| self.place(&why))
    }

    /// Numbers of ours only. The server's own limit comes first: what it says is better than our own silence.
    fn limits(&self) -> Limits {
        let limit = self.handler.timeout;
        let statement = limit * 4 / 5;
        Limits {
            statement,
            lock: statement / 2,
            pause: limit.min(LONGEST_PAUSE),
        }
    }

    /// Says where events have to wait.
    fn again(&self, retry: Retry) -> BatchAnswer {
        BatchAnswer::All(Answer::Retry(Retry {
            reason: self.place(&retry.reason),
            ..retry
        }))
    }

    fn place(&self, why: &str) -> String {
        format!("{}: {why}", self.connections.place())
    }

    fn too_long(&self) -> String {
        self.place(&format!("no answer within {:?}", self.handler.timeout))
    }
}

/// The answer without a connection, which no event is to blame for.
fn unconnected(why: String) -> BatchAnswer {
    BatchAnswer::All(Answer::Retry(Retry::because(why).uncounted()))
}

async fn connect(seat: Seat<'_>) -> Result<Lent<'_>, String> {
    let place = seat.place();
    match timeout(CONNECT_LIMIT, seat.connect()).await {
        Ok(connected) => connected.map_err(|error| no_connection(&error)),
        Err(_) => Err(format!(
            "no connection to {place} within {CONNECT_LIMIT:?}: look at host and port of `database_url`"
        )),
    }
}

/// Why there is no connection, and the cure; without the user and the database that the URL names.
fn no_connection(ConnectError { place, error }: &ConnectError) -> String {
    let tls = |why: &dyn fmt::Display| {
        format!(
            "no connection to {place}: TLS failed: {why}; in `database_url`, `sslrootcert=FILE` names a CA to trust, \
             and `sslmode` says how much is verified"
        )
    };
    let error = match error {
        sqlx::Error::Database(error) => error,
        sqlx::Error::Tls(error) => return tls(error),
        // What a handshake came to: a certificate that is not trusted, for example.
        sqlx::Error::Io(error) if error.kind() == ErrorKind::InvalidData => return tls(error),
        sqlx::Error::Io(error) => {
            return format!(
                "no connection to {place}: {error}; look at host and port of `database_url`, and whether the server \
                 is up"
            );
        }
        other => return format!("no connection to {place}: {other}"),
    };
    let code = error.code().unwrap_or_default();
    let why = match &*code {
        "28P01" | "28000" => {
            "the login is refused: look at user, password and database in `database_url`, and at the server's pg_hba.conf"
        }
        "3D000" => {
            "the database that `database_url` names is not there: create it, or name another"
        }
        "42501" => {
            "the user of `database_url` may not connect to that database: grant connect on database … to …"
        }
        "53300" => {
            "it has no connection left: close others, raise its limit, or lower `max_connections`"
        }
        "57P03" => "it is starting up or shutting down",
        _ => error.message(),
    };
    format!("no connection to {place}: {why} (SQLSTATE {code})")
}

#[async_trait]
impl Handler for Elsewhere {
    async fn handle(&self, batch: &EventBatch) -> BatchAnswer {
        // Waited for without a limit: whoever has one is bounded, and to be many is no failure.
        let seat = match self.connections.seat().await {
            Ok(seat) => seat,
            Err(error) => return unconnected(no_connection(&error)),
        };
        timeout(self.handler.timeout, self.hand_over(seat, batch))
            .await
            .unwrap_or_else(|_| BatchAnswer::retry(self.too_long()))
    }

    fn batch_limits(&self) -> BatchLimits {
        TransactionalHandler::batch_limits(&self.handler)
    }

    async fn check(&self) -> Result<(), String> {
        timeout(self.handler.timeout, self.look())
            .await
            .unwrap_or_else(|_| Err(self.too_long()))
    }

    async fn close(&self, limit: Duration) {
        // A server that does not take the message notices the closed socket.
        let _ = timeout(limit, self.connections.close()).await;
    }
}

// By hand: the connections know the password.
impl fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Elsewhere")
            .field("server", &self.connections.place())
            .field("handler", &self.handler)
            .finish_non_exhaustive()
    }
}
