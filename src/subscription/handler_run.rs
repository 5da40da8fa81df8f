//! One handler of a subscription: what it is given when, and what its answers mean (design 3.1, rules 5
//! and 6). Pure: time is passed in, and nothing is called.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::backoff::pause;
use super::gather::Gather;
use super::lanes::{Batch, CallId, IsHeld, Lanes, Next, Origin, RecordSet, Unit, Waiting};
use super::tracker::HandlerSet;
use crate::config::{BackoffConfig, HandlerConfig, OnExhausted, Ordering, RetryConfig};
use crate::handler::{Answer, BatchAnswer, BatchLimits, Retry};

/// Failed calls in a row, without a success of any other event, after which the handler counts as down.
const DOWN_AFTER: u32 = 3;

/// The longest pause that the other side can ask for.
const LONGEST_AFTER: Duration = Duration::from_secs(3600);

/// What became of an event that the handler answered for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Finished for this handler.
    Handled,
    /// To be parked, for this reason and with this error.
    Park {
        /// `rejected` or `exhausted`.
        reason: &'static str,
        /// What the handler said.
        error: String,
    },
}

/// A change that a person should hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Health {
    /// It fails for all, or now for another reason: held back, tried now and then.
    Down(String),
    /// It succeeds again.
    Up,
    /// An event was given up and `on_exhausted` is `stop`.
    Stopped(String),
}

/// What [`HandlerRun::answered`] found.
#[derive(Debug, Default)]
pub(super) struct Answered {
    /// Events that leave this handler.
    pub(super) done: Vec<(Waiting, Verdict)>,
    /// Events that wait for another attempt.
    pub(super) again: usize,
    /// What changed about the handler itself.
    pub(super) health: Option<Health>,
}

/// One handler's queue, attempts and health.
#[derive(Debug)]
pub(super) struct HandlerRun {
    pub(super) name: String,
    /// Its bit in the tracker.
    pub(super) bit: HandlerSet,
    retry: RetryConfig,
    on_exhausted: OnExhausted,
    /// How often a stopped handler is tried again.
    stopped_retry: BackoffConfig,
    limits: BatchLimits,
    concurrency: usize,
    gather: Gather,
    lanes: Lanes,
    successes: u64,
    failures_in_row: u32,
    down: Option<Down>,
    /// Events that were given up with `on_exhausted = "stop"`: nothing else is handed over while there are any.
    stopped: BTreeMap<Origin, String>,
}

/// A handler that fails for all.
#[derive(Debug)]
struct Down {
    /// What it said last.
    why: String,
    /// Not to be called before.
    until: Instant,
    /// Calls up to this one were made before it counted as down: their failures say nothing new.
    last_call: CallId,
    /// Failed probes since.
    probes: u32,
}

impl HandlerRun {
    pub(super) fn new(
        index: usize,
        config: &HandlerConfig,
        limits: BatchLimits,
        concurrency: usize,
        stopped_retry: BackoffConfig,
    ) -> Self {
        Self {
            name: config.name.clone(),
            bit: 1 << index,
            retry: config.retry.clone(),
            on_exhausted: config.on_exhausted,
            stopped_retry,
            limits: BatchLimits {
                events: limits.events.max(1),
                ..limits
            },
            concurrency: concurrency.max(1),
            gather: Gather::default(),
            lanes: Lanes::default(),
            successes: 0,
            failures_in_row: 0,
            down: None,
            stopped: BTreeMap::new(),
        }
    }

    /// The same for a handler of which a call costs much, however little is in it.
    pub(super) fn wanting_few_calls(mut self) -> Self {
        self.gather = Gather::wanted();
        self
    }

    /// Takes a unit in; `places` are those of its events, where they do not follow each other.
    pub(super) fn put(
        &mut self,
        origin: Origin,
        places: Option<Arc<[Origin]>>,
        unit: Unit,
        ordering: Ordering,
    ) {
        let mut waiting = Waiting::new(origin, unit, ordering);
        waiting.places = places;
        self.lanes.put(waiting);
    }

    /// Takes a unit back that left the lanes untried.
    pub(super) fn put_back(&mut self, waiting: Waiting) {
        self.lanes.put(waiting);
    }

    /// Forgets what waits and came from there; what is with the handler is not called back.
    pub(super) fn forget(&mut self, from: impl Fn(Origin) -> bool) {
        self.lanes.forget(&from);
        self.stopped.retain(|origin, _| !from(*origin));
    }

    /// Takes dead letters in that are tried together.
    pub(super) fn put_letters(
        &mut self,
        origin: Origin,
        letters: Arc<[i64]>,
        unit: Unit,
        ordering: Ordering,
    ) {
        let mut waiting = Waiting::new(origin, unit, ordering);
        waiting.letters = Some(letters);
        self.lanes.put(waiting);
    }

    /// The next call to make now, if any, or what has to leave the lanes without one because it is `held`.
    pub(super) fn next_call(&mut self, now: Instant, held: IsHeld<'_>) -> Option<Next> {
        let calls = self.lanes.calls();
        // Whatever the handler is like, for it is not asked; and first, for what is in doubt holds up what follows it.
        if calls < self.concurrency
            && let Some(look) = self.lanes.look(now)
        {
            return Some(look);
        }
        let mut next = match (&self.down, self.stopped.keys().next()) {
            // Only what stopped it, until that is done.
            (_, Some(_)) if calls > 0 => None,
            (_, Some(origin)) => self.lanes.one(*origin, now),
            // One event at a time, to see whether it is back.
            (Some(down), None) if down.until > now || calls > 0 => None,
            (Some(_), None) => self.lanes.probe(now, held),
            (None, None) if calls >= self.concurrency => None,
            (None, None) => self.next_batch(now, held),
        }?;
        if let Next::Call(_, batch) = &mut next {
            for waiting in batch.iter_mut().filter(|w| w.attempts == 0) {
                // What succeeded before its first hand-over says nothing about this event.
                waiting.successes_seen = self.successes;
            }
        }
        Some(next)
    }

    /// The next batch, or what has to leave the lanes, unless it is to wait for more.
    fn next_batch(&mut self, now: Instant, held: IsHeld<'_>) -> Option<Next> {
        let only_full = self.gather.only_full(now, self.lanes.calls());
        let next = self.lanes.next_batch(now, self.limits, only_full, held);
        match &next {
            Batch::Part => self.gather.left(now),
            Batch::Next(Next::Call(..)) | Batch::Nothing => self.gather.is_over(),
            Batch::Next(_) => {}
        }
        match next {
            Batch::Next(next) => Some(next),
            Batch::Part | Batch::Nothing => None,
        }
    }

    /// When [`HandlerRun::next_call`] may have something new without an answer or an event coming first.
    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        if self.lanes.waiting() == 0 {
            return None;
        }
        let held = self.down.as_ref().map(|down| down.until);
        let held = held.filter(|until| *until > now && self.stopped.is_empty());
        let gathered = self.gather.due(now);
        let due = || gathered.into_iter().chain(self.lanes.next_due(now)).min();
        held.or_else(due)
    }

    /// Why it is stopped, where it is.
    pub(super) fn stopped(&self) -> Option<&str> {
        self.stopped.values().next().map(String::as_str)
    }

    /// What it says, where it fails for all.
    pub(super) fn down(&self) -> Option<&str> {
        self.down.as_ref().map(|down| down.why.as_str())
    }

    /// True where it fails for all.
    #[cfg(test)]
    pub(super) fn is_down(&self) -> bool {
        self.down.is_some()
    }

    /// Takes the end of a call of which nobody knows whether it finished its events: they are in doubt, and neither
    /// handed over again nor parked before the store has told.
    pub(super) fn unheard(
        &mut self,
        now: Instant,
        call: CallId,
        mut batch: Vec<Waiting>,
        why: String,
    ) -> Answered {
        for waiting in &mut batch {
            waiting.in_doubt = true;
        }
        self.answered(now, call, batch, BatchAnswer::retry(why))
    }

    /// Takes what the store said of units in doubt: whether each is finished, or why it could not tell.
    pub(super) fn looked(
        &mut self,
        now: Instant,
        call: CallId,
        batch: Vec<Waiting>,
        finished: Result<Vec<bool>, String>,
    ) -> Answered {
        self.lanes.end_call(call);
        let mut result = Answered::default();
        let finished = finished.unwrap_or_else(|why| {
            self.judge(now, call, Some((Duration::ZERO, why)), &mut result);
            Vec::new()
        });
        let again = now + pause(&self.retry.backoff, self.failures_in_row);
        let mut finished = finished.into_iter();
        for mut waiting in batch {
            match finished.next() {
                Some(true) => {
                    self.stopped.remove(&waiting.origin);
                    result.done.push((waiting, Verdict::Handled));
                    continue;
                }
                Some(false) => {
                    waiting.in_doubt = false;
                    waiting.trouble().not_before = None; // it has had its pause
                }
                None => waiting.trouble().not_before = Some(again),
            }
            self.lanes.put(waiting);
        }
        result
    }

    /// Takes the answer of a call.
    pub(super) fn answered(
        &mut self,
        now: Instant,
        call: CallId,
        batch: Vec<Waiting>,
        answer: BatchAnswer,
    ) -> Answered {
        self.lanes.end_call(call);
        let whole = matches!(answer, BatchAnswer::All(_)) && batch.len() > 1;
        let answers = one_each(answer, &batch);
        let mut result = Answered {
            done: Vec::with_capacity(batch.len()),
            ..Answered::default()
        };
        let handled = answers.iter().filter(|a| **a == Answer::Handled).count();
        // Having handled or refused something, it answers; else, the longest pause that it asked for.
        let answers_at_all = answers.iter().any(|a| asked_pause(a).is_none());
        let asked_for = answers.iter().filter_map(asked_pause).max();
        let why = answers.iter().find_map(|answer| match answer {
            Answer::Retry(retry) => Some(retry.reason.clone()),
            _ => None,
        });
        let failed = asked_for.zip(why).filter(|_| !answers_at_all);
        self.successes += handled as u64;
        // Records of those that are handed over once more: what follows them in this batch is not parked
        // before they are settled, or they would find themselves behind it.
        let mut unsettled = RecordSet::default();
        for (mut waiting, answer) in batch.into_iter().zip(answers) {
            waiting.attempts += 1;
            let follows = waiting.records.iter().any(|r| unsettled.contains(r));
            if !matches!(answer, Answer::Retry(_)) {
                self.stopped.remove(&waiting.origin);
            }
            match answer {
                Answer::Handled => result.done.push((waiting, Verdict::Handled)),
                // Which of them is to blame? Alone they will tell.
                Answer::Reject { .. } if whole || follows => {
                    waiting.alone = true;
                    result.again += waiting.unit.events().len();
                    unsettled.extend(waiting.records.iter().copied());
                    self.lanes.put(waiting);
                }
                Answer::Reject { reason } => result.done.push((
                    waiting,
                    Verdict::Park {
                        reason: "rejected",
                        error: reason,
                    },
                )),
                Answer::Retry(retry) => {
                    let records = waiting.records.clone();
                    if self.failed(now, waiting, retry, whole || follows, &mut result) {
                        unsettled.extend(records);
                    }
                }
            }
        }
        self.judge(now, call, failed, &mut result);
        result
    }

    /// True where it is handed over once more. It failed `together` with others or not.
    fn failed(
        &mut self,
        now: Instant,
        mut waiting: Waiting,
        retry: Retry,
        together: bool,
        result: &mut Answered,
    ) -> bool {
        // An attempt counts against the event only if the handler succeeded with others meanwhile: a
        // handler that is down is not a bad event. Nor does it where the handler says whose fault it was.
        // What may be finished must not be parked, so it says nothing of that either.
        let known = !waiting.in_doubt;
        let counts = known && retry.counts && self.successes > waiting.successes_seen;
        if counts || !retry.counts {
            waiting.successes_seen = self.successes;
        }
        let trouble = waiting.trouble();
        trouble.counted += u32::from(counts);
        let since = *trouble.failing_since.get_or_insert(now);
        let exhausted = known
            && ((counts && trouble.counted >= self.retry.attempts)
                || now.duration_since(since) >= self.retry.total);
        // What is parked already stops nobody.
        let parks = self.on_exhausted == OnExhausted::Park
            || matches!(waiting.origin, Origin::Letter { .. });
        if exhausted && together && !waiting.alone {
            // Which of them is to blame? Alone they will tell.
            waiting.alone = true;
            waiting.trouble().counted = 0;
        } else if exhausted && parks {
            let error = format!(
                "given up after {} attempts: {}",
                waiting.attempts, retry.reason
            );
            self.stopped.remove(&waiting.origin);
            result.done.push((
                waiting,
                Verdict::Park {
                    reason: "exhausted",
                    error,
                },
            ));
            return false;
        } else if exhausted || self.stopped.contains_key(&waiting.origin) {
            let why = format!(
                "handler `{}` could not handle event {} after {} attempts ({}), and on_exhausted is \
                 \"stop\": mend it, and it goes on by itself",
                self.name,
                waiting.unit.events()[0].identity(),
                waiting.attempts,
                retry.reason
            );
            waiting.trouble().not_before = Some(now + pause(&self.stopped_retry, 8));
            if self.stopped.insert(waiting.origin, why.clone()).is_none() {
                result.health = Some(Health::Stopped(why));
            }
        } else {
            let pause = pause(&self.retry.backoff, waiting.attempts.saturating_sub(1));
            let trouble = waiting.trouble();
            trouble.asked_for = retry.after.map(|after| now + after.min(LONGEST_AFTER));
            trouble.not_before = Some(now + pause).max(trouble.asked_for);
        }
        result.again += waiting.unit.events().len();
        self.lanes.put(waiting);
        true
    }

    /// Is the handler itself up or down? `failed` is the longest pause asked for by a call that handled and
    /// refused nothing, and why.
    fn judge(
        &mut self,
        now: Instant,
        call: CallId,
        failed: Option<(Duration, String)>,
        result: &mut Answered,
    ) {
        let Some((asked_for, why)) = failed else {
            self.failures_in_row = 0;
            if self.down.take().is_some() {
                self.lanes.wake_untried();
                result.health = Some(Health::Up);
            }
            return;
        };
        self.failures_in_row = self.failures_in_row.saturating_add(1);
        let hold = |probes| now + pause(&self.retry.backoff, probes).max(asked_for);
        match &mut self.down {
            Some(down) if call > down.last_call => {
                down.probes += 1;
                down.until = hold(down.probes);
                if why != down.why {
                    down.why.clone_from(&why);
                    result.health = Some(Health::Down(why));
                }
            }
            Some(down) => down.until = down.until.max(now + asked_for),
            None if self.failures_in_row >= DOWN_AFTER => {
                self.down = Some(Down {
                    why: why.clone(),
                    until: hold(0),
                    last_call: self.lanes.last_call(),
                    probes: 0,
                });
                if result.health.is_none() {
                    result.health = Some(Health::Down(why));
                }
            }
            None => {}
        }
    }
}

/// The pause that a retry asks for; none for other answers.
fn asked_pause(answer: &Answer) -> Option<Duration> {
    match answer {
        Answer::Retry(retry) => Some(retry.after.unwrap_or_default().min(LONGEST_AFTER)),
        _ => None,
    }
}

/// One answer for each unit. The events of a transaction share the worst that was said of one of them; a retry that
/// counts is worse than one that does not.
fn one_each(answer: BatchAnswer, batch: &[Waiting]) -> Vec<Answer> {
    let events: usize = batch.iter().map(|w| w.unit.events().len()).sum();
    match answer {
        BatchAnswer::All(answer) => vec![answer; batch.len()],
        BatchAnswer::Each(answers) if answers.len() == events => {
            let mut answers = answers.into_iter();
            let of_unit = |waiting: &Waiting| {
                let own = answers.by_ref().take(waiting.unit.events().len());
                own.reduce(worse).unwrap_or(Answer::Handled)
            };
            batch.iter().map(of_unit).collect()
        }
        BatchAnswer::Each(answers) => {
            let reason = format!(
                "the handler gave {} answers for {events} events",
                answers.len()
            );
            vec![Answer::Retry(Retry::because(reason)); batch.len()]
        }
    }
}

fn worse(one: Answer, other: Answer) -> Answer {
    match (&one, &other) {
        (Answer::Retry(one), Answer::Retry(counted)) if counted.counts && !one.counts => other,
        (Answer::Reject { .. }, _) | (Answer::Retry(_), Answer::Handled | Answer::Retry(_)) => one,
        (Answer::Handled, _) | (Answer::Retry(_), Answer::Reject { .. }) => other,
    }
}

#[cfg(test)]
mod tests;
