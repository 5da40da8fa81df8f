//! How a handler is called: by itself, or within a transaction that its rows and the events' finished marks
//! share.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt;
use sqlx::PgConnection;

use super::lanes::{Origin, Unit, Waiting};
use crate::config::Ordering;
use crate::event::Event;
use crate::handler::{Answer, BatchAnswer, EventBatch, Handler, Retry, TransactionalHandler};
use crate::shape::NotShaped;
use crate::store::{HandOver, Lease, Mark, Store, StoreError, TransactionError, Work};

/// How a call ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CallEnd {
    /// The handler, or whatever kept it from its work, has answered.
    Answered(BatchAnswer),
    /// It was answered for, and perhaps stored: the answer to the commit was lost.
    Unheard(String),
    /// The store was asked which units are finished: what it said of each, or why it said nothing.
    Looked(Result<Vec<bool>, String>),
    /// Another worker has taken over: nothing was written, and it is nobody's fault.
    Fenced,
}

/// A call to be made: everything it needs, so that it can be a task of its own.
pub(super) struct Call {
    handler: Arc<dyn Handler>,
    name: String,
    store: Arc<dyn Store>,
    lease: Lease,
    batch: EventBatch,
    marks: Vec<Mark>,
    /// A transaction of the org: all of its events are finished together or none.
    whole: bool,
    /// Events of each unit, where the store is only asked which of them are finished.
    look: Option<Vec<usize>>,
    /// One of its events cannot be shown as it ought to be: nothing is handed over.
    not_shaped: Option<NotShaped>,
}

impl Call {
    /// A call of the handler of this name with what waits, of each of which it is `given` this.
    pub(super) fn new(
        handler: Arc<dyn Handler>,
        name: String,
        store: Arc<dyn Store>,
        lease: Lease,
        waiting: &[Waiting],
        ordering: Ordering,
        given: impl Fn(&Arc<Event>) -> Result<Arc<Event>, NotShaped>,
    ) -> Self {
        let events = waiting.iter().flat_map(|waiting| waiting.unit.events());
        let (events, not_shaped) = match events.map(given).collect::<Result<Vec<_>, _>>() {
            Ok(events) => (events, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let batch = EventBatch {
            subscription: lease.key.name.as_str().into(),
            events,
            strict: ordering == Ordering::Strict,
        };
        let marks = match handler.transactional() {
            Some(_) => waiting.iter().flat_map(marks).collect(),
            None => Vec::new(),
        };
        let whole = waiting.iter().any(|w| matches!(w.unit, Unit::Several(_)));
        Self {
            handler,
            name,
            store,
            lease,
            batch,
            marks,
            whole,
            look: None,
            not_shaped,
        }
    }

    /// The same, but nothing is handed over: the store is asked which of the units are finished. It tells once every
    /// transaction has ended that may have finished one of them.
    pub(super) fn only_looks(mut self, waiting: &[Waiting]) -> Self {
        let events = waiting.iter().map(|waiting| waiting.unit.events().len());
        self.look = Some(events.collect());
        self
    }

    /// Makes it. A panic of the handler is taken as a retry.
    pub(super) async fn make(self) -> CallEnd {
        if let (Some(units), Some(handler)) = (&self.look, self.handler.transactional()) {
            return self.look(handler, units).await;
        }
        if let Some(error) = self.not_shaped {
            return CallEnd::Answered(BatchAnswer::All(Answer::Reject {
                reason: error.to_string(),
            }));
        }
        // Within the block, for a handler may panic before it gives its future, too.
        let call = async {
            match self.handler.transactional() {
                Some(handler) => self.within_transaction(handler).await,
                None => CallEnd::Answered(self.handler.handle(&self.batch).await),
            }
        };
        AssertUnwindSafe(call)
            .catch_unwind()
            .await
            .unwrap_or_else(|_| CallEnd::Answered(BatchAnswer::retry("the handler panicked")))
    }

    async fn within_transaction(&self, handler: &dyn TransactionalHandler) -> CallEnd {
        let mut task = Task {
            handler,
            batch: &self.batch,
            whole: self.whole,
            begun: false,
            answer: None,
        };
        let done = self
            .store
            .transact(self.hand_over(), handler.timeout(), &mut task)
            .await;
        CallEnd::Answered(match done {
            Ok(()) => task.answer.unwrap_or(BatchAnswer::HANDLED),
            Err(TransactionError::Store(StoreError::Fenced { .. })) => return CallEnd::Fenced,
            Err(TransactionError::Unheard(why)) => return CallEnd::Unheard(why),
            Err(TransactionError::Store(error)) => {
                let retry = Retry::because(error.to_string());
                // Before the handler had its turn it was the store that failed, and no event of these.
                let retry = if task.begun { retry } else { retry.uncounted() };
                BatchAnswer::All(Answer::Retry(retry))
            }
            Err(TransactionError::Work(error)) => BatchAnswer::All(handler.answer_to(&error)),
        })
    }

    /// Asks the store which of these units, of so many events each, are finished.
    async fn look(&self, handler: &dyn TransactionalHandler, units: &[usize]) -> CallEnd {
        let mut look = Look::default();
        let done = self
            .store
            .transact(self.hand_over(), handler.timeout(), &mut look)
            .await;
        CallEnd::Looked(match done {
            Ok(()) => Ok(of_units(&look.finished, units)),
            Err(TransactionError::Store(StoreError::Fenced { .. })) => return CallEnd::Fenced,
            Err(error) => Err(error.to_string()),
        })
    }

    fn hand_over(&self) -> HandOver<'_> {
        HandOver {
            lease: &self.lease,
            handler: &self.name,
            marks: &self.marks,
        }
    }
}

/// The marks of a unit's events.
fn marks(waiting: &Waiting) -> impl Iterator<Item = Mark> {
    let mark = |(number, event): (usize, &Arc<Event>)| match waiting.origin {
        Origin::Live(_) => Mark::Ahead(event.identity()),
        Origin::Letter { id, .. } => {
            let letters = waiting.letters.as_deref().unwrap_or_default();
            Mark::Letter(letters.get(number).copied().unwrap_or(id))
        }
        Origin::Replay(_) => Mark::Nothing,
    };
    waiting.unit.events().iter().enumerate().map(mark)
}

/// What a transactional handler does within the transaction.
struct Task<'a> {
    handler: &'a dyn TransactionalHandler,
    batch: &'a EventBatch,
    whole: bool,
    /// The marks are taken: what goes wrong from now on may be the events' doing.
    begun: bool,
    /// For all events of the batch, once it has answered.
    answer: Option<BatchAnswer>,
}

#[async_trait]
impl Work for Task<'_> {
    async fn run(
        &mut self,
        connection: &mut PgConnection,
        finished: &[bool],
    ) -> Result<Vec<bool>, sqlx::Error> {
        self.begun = true;
        let left = |(event, finished): (&Arc<Event>, &bool)| (!finished).then(|| event.clone());
        let batch = EventBatch {
            subscription: self.batch.subscription.clone(),
            events: (self.batch.events.iter().zip(finished))
                .filter_map(left)
                .collect(),
            strict: self.batch.strict,
        };
        if batch.events.is_empty() {
            return Ok(finished.to_vec());
        }
        let answer = self.handler.handle(connection, &batch).await?;
        let (answer, done) = for_all(answer, finished, self.whole);
        self.answer = Some(answer);
        Ok(done)
    }
}

/// Finds out which events are finished, and finishes none.
#[derive(Default)]
struct Look {
    /// Of each event.
    finished: Vec<bool>,
}

#[async_trait]
impl Work for Look {
    async fn run(
        &mut self,
        _: &mut PgConnection,
        finished: &[bool],
    ) -> Result<Vec<bool>, sqlx::Error> {
        self.finished = finished.to_vec();
        Ok(finished.to_vec())
    }
}

/// Whether each unit of so many events is finished. What came in one transaction of the org was finished in one.
fn of_units(finished: &[bool], units: &[usize]) -> Vec<bool> {
    let mut rest = finished;
    let of_unit = |events: &usize| {
        let (own, others) = rest.split_at_checked(*events).unwrap_or_default();
        rest = others;
        !own.is_empty() && own.iter().all(|finished| *finished)
    };
    units.iter().map(of_unit).collect()
}

/// Makes an answer for the events that were not finished before one for all of the batch; with it, which
/// events are finished if the transaction commits.
fn for_all(answer: BatchAnswer, finished: &[bool], whole: bool) -> (BatchAnswer, Vec<bool>) {
    let left = finished.iter().filter(|finished| !**finished).count();
    let nothing = vec![false; finished.len()];
    let mut answers = match answer {
        BatchAnswer::All(Answer::Handled) => vec![Answer::Handled; left],
        BatchAnswer::All(_) => return (answer, nothing),
        BatchAnswer::Each(answers) if answers.len() == left => answers,
        BatchAnswer::Each(answers) => {
            let given = answers.len();
            let reason = format!("the handler gave {given} answers for {left} events");
            return (BatchAnswer::retry(reason), nothing);
        }
    }
    .into_iter();
    let answers: Vec<Answer> = finished
        .iter()
        .map(|finished| if *finished { None } else { answers.next() })
        .map(|answer| answer.unwrap_or(Answer::Handled))
        .collect();
    let mut done: Vec<bool> = answers.iter().map(|a| *a == Answer::Handled).collect();
    if whole && done.contains(&false) {
        done = nothing;
    }
    (BatchAnswer::Each(answers), done)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDLED: Answer = Answer::Handled;

    fn rejected() -> Answer {
        Answer::Reject {
            reason: "bad".to_owned(),
        }
    }

    #[test]
    fn answers_for_what_was_left_become_answers_for_all() {
        let finished = [true, false, true, false];
        let each = BatchAnswer::Each(vec![rejected(), HANDLED]);
        assert_eq!(
            for_all(each, &finished, false),
            (
                BatchAnswer::Each(vec![HANDLED, rejected(), HANDLED, HANDLED]),
                vec![true, false, true, true]
            )
        );
        let (answer, done) = for_all(BatchAnswer::HANDLED, &finished, false);
        assert_eq!(answer, BatchAnswer::Each(vec![HANDLED; 4]));
        assert_eq!(done, [true; 4]);
    }

    #[test]
    fn a_unit_is_finished_where_all_of_its_events_are() {
        let finished = [true, false, true, true, true, false];
        assert_eq!(
            of_units(&finished, &[1, 2, 2, 1]),
            [true, false, true, false]
        );
        assert_eq!(of_units(&[false], &[1, 1]), [false, false]);
    }

    #[test]
    fn an_answer_that_finishes_nothing_commits_nothing() {
        for answer in [
            BatchAnswer::retry("not now"),
            BatchAnswer::All(rejected()),
            BatchAnswer::Each(vec![Answer::Retry(Retry::because("not now")); 2]),
        ] {
            assert_eq!(for_all(answer, &[false; 2], false).1, [false; 2]);
        }
    }

    #[test]
    fn answers_that_are_not_one_for_each_event_left_are_a_retry_of_all() {
        // As many as the batch has events, but one of them was finished before.
        let each = BatchAnswer::Each(vec![HANDLED; 2]);
        let (answer, done) = for_all(each, &[true, false], false);
        assert!(matches!(answer, BatchAnswer::All(Answer::Retry(_))));
        assert_eq!(done, [false; 2]);
    }

    #[test]
    fn a_transaction_of_the_org_is_finished_whole_or_not_at_all() {
        let each = BatchAnswer::Each(vec![HANDLED, rejected()]);
        assert_eq!(for_all(each, &[false; 2], true).1, [false; 2]);
        let each = BatchAnswer::Each(vec![HANDLED; 2]);
        assert_eq!(for_all(each, &[false; 2], true).1, [true; 2]);
    }
}
