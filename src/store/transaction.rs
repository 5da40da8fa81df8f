//! Transactions that a handler's rows and the events' finished marks share (design 3.1, rule 3).

use std::time::Duration;

use async_trait::async_trait;
use sqlx::PgConnection;

use super::{Lease, StoreError};
use crate::event::EventIdentity;

/// How the store remembers, in a handler's own transaction, that the handler has finished an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// An event of the stream: among those that the handler has finished above the position.
    Ahead(EventIdentity),
    /// A dead letter, by its number: it is resolved.
    Letter(i64),
    /// Not at all. An event of a side replay may be given as often as somebody asks for it.
    Nothing,
}

/// Events that are handed to a handler together.
#[derive(Debug, Clone, Copy)]
pub struct HandOver<'a> {
    /// Under which they are handed over.
    pub lease: &'a Lease,
    /// Name of the handler.
    pub handler: &'a str,
    /// One for each event, in the batch's order.
    pub marks: &'a [Mark],
}

/// What is done in the transaction.
#[async_trait]
pub trait Work: Send {
    /// Does it. `finished` tells for each event whether an earlier transaction has finished it, whose answer
    /// was lost: it is not to be done again. Gives for each event whether it is finished now.
    ///
    /// # Errors
    ///
    /// Whatever a statement failed with; the transaction is rolled back.
    async fn run(
        &mut self,
        connection: &mut PgConnection,
        finished: &[bool],
    ) -> Result<Vec<bool>, sqlx::Error>;
}

/// Why a transaction did not commit, or perhaps did and nobody heard of it.
#[derive(Debug, thiserror::Error)]
pub enum TransactionError {
    /// The store's part.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A statement of the work, or the commit, which looks at deferred constraints. May quote what a row holds.
    #[error("a statement failed")]
    Work(sqlx::Error),
    /// The commit was asked for, and its answer was lost: nobody knows yet whether all is stored or nothing.
    #[error("the answer to the commit was lost: {0}")]
    Unheard(String),
}

/// Transactions for handlers.
#[async_trait]
pub trait Transactions: Send + Sync {
    /// Does work in one transaction, whose outcome and the marks of the events that it finished are stored
    /// together or not at all. In this order: a transaction begins; it is refused where the lease's epoch
    /// has passed, and from then on keeps others from taking over; marks are taken for the events, which
    /// tells those that are finished already; the work is done; what it did not finish loses its mark;
    /// commit. Where it finished nothing, all is rolled back.
    ///
    /// Takes at most `limit`, once it has one of the connections that are set apart for this.
    ///
    /// After [`TransactionError::Unheard`] all may be stored or nothing: done again, it finds finished what
    /// was. Any other error means that nothing is stored.
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`] where the epoch has passed, [`StoreError::Config`] where the store has no
    /// transactions to share.
    async fn transact(
        &self,
        hand_over: HandOver<'_>,
        limit: Duration,
        work: &mut dyn Work,
    ) -> Result<(), TransactionError>;

    /// Does work without any event, and rolls it back.
    ///
    /// # Errors
    ///
    /// As [`Transactions::transact`], without a lease.
    async fn try_out(&self, limit: Duration, work: &mut dyn Work) -> Result<(), TransactionError>;

    /// Does work without any event of a subscription, and commits it where it gives true for anything.
    ///
    /// # Errors
    ///
    /// As [`Transactions::transact`], without a lease.
    async fn transact_unmarked(
        &self,
        limit: Duration,
        work: &mut dyn Work,
    ) -> Result<(), TransactionError>;
}
