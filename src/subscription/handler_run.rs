//! One handler of a subscription: what it is given when, and what its answers mean (design 3.1, rules 5
//! and 6). Pure: time is passed in, and nothing is called.

use std::sync::Arc;
use std::time::Instant;

use super::backoff::pause;
use super::lanes::{CallId, Lanes, Waiting};
use super::tracker::{HandlerSet, Seq};
use crate::config::{BackoffConfig, HandlerConfig, OnExhausted, Ordering, RetryConfig};
use crate::event::Event;
use crate::handler::{Answer, BatchAnswer, BatchLimits, Retry};

/// Failed calls in a row, without a success of any other event, after which the handler counts as down.
const DOWN_AFTER: u32 = 3;

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
    /// It fails for all: held back, tried now and then.
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
    lanes: Lanes,
    successes: u64,
    failures_in_row: u32,
    /// While down: not to be called before.
    held_until: Option<Instant>,
    stopped: Option<String>,
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
            lanes: Lanes::default(),
            successes: 0,
            failures_in_row: 0,
            held_until: None,
            stopped: None,
        }
    }

    /// Takes an event in.
    pub(super) fn put(&mut self, seq: Seq, event: Arc<Event>, ordering: Ordering) {
        let mut waiting = Waiting::new(seq, event, ordering);
        waiting.successes_seen = self.successes;
        self.lanes.put(waiting);
    }

    /// The next call to make now, if any.
    pub(super) fn next_call(&mut self, now: Instant) -> Option<(CallId, Vec<Waiting>)> {
        match self.held_until {
            // Down: one event at a time, to see whether it is back.
            Some(until) if until > now || self.lanes.calls() > 0 => None,
            Some(_) => self.lanes.probe(now),
            None if self.lanes.calls() >= self.concurrency => None,
            None => self.lanes.next_batch(now, self.limits),
        }
    }

    /// When [`HandlerRun::next_call`] may have something new without an answer or an event coming first.
    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        if self.lanes.waiting() == 0 {
            return None;
        }
        let held = self.held_until.filter(|until| *until > now);
        match (held, self.lanes.next_due(now)) {
            (Some(held), _) => Some(held),
            (None, due) => due,
        }
    }

    /// Why it is stopped, where it is.
    pub(super) fn stopped(&self) -> Option<&str> {
        self.stopped.as_deref()
    }

    /// True where it fails for all.
    #[cfg(test)]
    pub(super) fn is_down(&self) -> bool {
        self.held_until.is_some()
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
        let answers = one_each(answer, batch.len());
        let mut result = Answered::default();
        let handled = answers.iter().filter(|a| **a == Answer::Handled).count();
        let failed = answers.iter().any(|a| matches!(a, Answer::Retry(_)));
        self.successes += handled as u64;
        for (mut waiting, answer) in batch.into_iter().zip(answers) {
            waiting.attempts += 1;
            match answer {
                Answer::Handled => result.done.push((waiting, Verdict::Handled)),
                // Which of them is to blame? Alone they will tell.
                Answer::Reject { .. } if whole => {
                    waiting.alone = true;
                    result.again += 1;
                    self.lanes.put(waiting);
                }
                Answer::Reject { reason } => result.done.push((
                    waiting,
                    Verdict::Park {
                        reason: "rejected",
                        error: reason,
                    },
                )),
                Answer::Retry(retry) => self.failed(now, waiting, retry, whole, &mut result),
            }
        }
        self.judge(now, handled > 0, failed, &mut result);
        result
    }

    fn failed(
        &mut self,
        now: Instant,
        mut waiting: Waiting,
        retry: Retry,
        whole: bool,
        result: &mut Answered,
    ) {
        // An attempt counts against the event only if the handler succeeded with others meanwhile: a
        // handler that is down is not a bad event.
        if self.successes > waiting.successes_seen {
            waiting.counted += 1;
            waiting.successes_seen = self.successes;
        }
        let since = *waiting.failing_since.get_or_insert(now);
        let exhausted =
            waiting.counted >= self.retry.attempts || now.duration_since(since) >= self.retry.total;
        if exhausted && whole && !waiting.alone {
            waiting.alone = true;
        } else if exhausted && self.on_exhausted == OnExhausted::Park {
            let error = format!(
                "given up after {} attempts: {}",
                waiting.attempts, retry.reason
            );
            result.done.push((
                waiting,
                Verdict::Park {
                    reason: "exhausted",
                    error,
                },
            ));
            return;
        } else if exhausted {
            let why = format!(
                "handler `{}` could not handle event {} after {} attempts ({}), and on_exhausted is \
                 \"stop\": mend it, and it goes on by itself",
                self.name,
                waiting.event.identity(),
                waiting.attempts,
                retry.reason
            );
            waiting.not_before = Some(now + pause(&self.stopped_retry, 8));
            result.health = Some(Health::Stopped(why.clone()));
            self.stopped = Some(why);
        } else {
            let least = retry.after.unwrap_or_default();
            let pause = pause(&self.retry.backoff, waiting.attempts.saturating_sub(1)).max(least);
            waiting.not_before = Some(now + pause);
        }
        waiting.last_error = Some(retry.reason);
        result.again += 1;
        self.lanes.put(waiting);
    }

    /// Is the handler itself up or down?
    fn judge(&mut self, now: Instant, succeeded: bool, failed: bool, result: &mut Answered) {
        if succeeded {
            self.failures_in_row = 0;
            self.stopped = None;
            if self.held_until.take().is_some() {
                self.lanes.wake_untried();
                result.health = Some(Health::Up);
            }
        } else if failed {
            self.failures_in_row = self.failures_in_row.saturating_add(1);
            if self.failures_in_row >= DOWN_AFTER {
                let was_up = self.held_until.is_none();
                let hold = pause(&self.retry.backoff, self.failures_in_row - DOWN_AFTER);
                self.held_until = Some(now + hold);
                if was_up && result.health.is_none() {
                    let why = self.lanes.last_error().unwrap_or_default();
                    result.health = Some(Health::Down(why));
                }
            }
        } else {
            // It refused something: whatever that was, it answers.
            self.failures_in_row = 0;
        }
    }
}

fn one_each(answer: BatchAnswer, events: usize) -> Vec<Answer> {
    match answer {
        BatchAnswer::All(answer) => vec![answer; events],
        BatchAnswer::Each(answers) if answers.len() == events => answers,
        BatchAnswer::Each(answers) => {
            let reason = format!(
                "the handler gave {} answers for {events} events",
                answers.len()
            );
            vec![
                Answer::Retry(Retry {
                    reason,
                    after: None
                });
                events
            ]
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::subscription::lanes::tests::event;

    const PAUSES: BackoffConfig = BackoffConfig {
        initial: Duration::from_millis(100),
        max: Duration::from_secs(1),
    };

    fn run(events: usize, batch: usize, on_exhausted: OnExhausted) -> HandlerRun {
        let config = HandlerConfig {
            name: "h".to_owned(),
            kind: "log".to_owned(),
            retry: RetryConfig {
                attempts: 3,
                backoff: PAUSES,
                total: Duration::from_secs(3600),
            },
            on_exhausted,
            options: std::collections::BTreeMap::new(),
        };
        let limits = BatchLimits {
            events: batch,
            bytes: 1 << 20,
        };
        let mut run = HandlerRun::new(0, &config, limits, 1, PAUSES);
        for seq in 0..events {
            run.put(seq as Seq, event(&[&format!("r{seq}")]), Ordering::Record);
        }
        run
    }

    fn drive(
        run: &mut HandlerRun,
        limit: Duration,
        answer: impl FnMut(&[Seq]) -> BatchAnswer,
    ) -> Vec<(Seq, Verdict)> {
        drive_from(run, Instant::now(), limit, answer)
    }

    /// Calls at every moment something may be due, and gives what left the handler, in order.
    fn drive_from(
        run: &mut HandlerRun,
        start: Instant,
        limit: Duration,
        mut answer: impl FnMut(&[Seq]) -> BatchAnswer,
    ) -> Vec<(Seq, Verdict)> {
        let mut now = start;
        let mut done = vec![];
        while now.duration_since(start) < limit {
            while let Some((call, batch)) = run.next_call(now) {
                let seqs: Vec<Seq> = batch.iter().map(|w| w.seq).collect();
                let answered = run.answered(now, call, batch, answer(&seqs));
                done.extend(answered.done.into_iter().map(|(w, v)| (w.seq, v)));
            }
            match run.wake_at(now) {
                Some(at) => now = at,
                None => break,
            }
        }
        done
    }

    fn retry() -> BatchAnswer {
        BatchAnswer::retry("no")
    }

    fn reject() -> BatchAnswer {
        BatchAnswer::All(Answer::Reject {
            reason: "bad".to_owned(),
        })
    }

    #[test]
    fn a_handler_that_is_down_parks_nothing() {
        let mut run = run(5, 1, OnExhausted::Park);
        let done = drive(&mut run, Duration::from_secs(3000), |_| retry());
        assert_eq!(done, []);
        assert!(run.is_down());
    }

    #[test]
    fn after_the_total_time_even_then_events_are_parked() {
        let mut run = run(1, 1, OnExhausted::Park);
        let done = drive(&mut run, Duration::from_secs(4000), |_| retry());
        assert!(
            matches!(
                &done[..],
                [(
                    0,
                    Verdict::Park {
                        reason: "exhausted",
                        ..
                    }
                )]
            ),
            "{done:?}"
        );
    }

    #[test]
    fn one_bad_event_is_parked_while_others_succeed() {
        let mut run = run(40, 1, OnExhausted::Park);
        let start = Instant::now();
        let bad = |seqs: &[Seq]| {
            if seqs == [0] {
                retry()
            } else {
                BatchAnswer::HANDLED
            }
        };
        let done = drive_from(&mut run, start, Duration::from_secs(10), bad);
        assert_eq!(
            done.len(),
            39,
            "it was alone at last, and nothing shows that it is to blame"
        );
        assert!(done.iter().all(|(_, verdict)| *verdict == Verdict::Handled));
        // More traffic, and its attempts count.
        let mut all = done;
        for round in 0..5 {
            run.put(100 + round, event(&["new"]), Ordering::Record);
            let later = start + Duration::from_secs(20 * (round + 1));
            all.extend(drive_from(&mut run, later, Duration::from_secs(10), bad));
        }
        let parked: Vec<_> = all.iter().filter(|(_, v)| *v != Verdict::Handled).collect();
        assert!(
            matches!(
                &parked[..],
                [(
                    0,
                    Verdict::Park {
                        reason: "exhausted",
                        ..
                    }
                )]
            ),
            "{parked:?}"
        );
    }

    #[test]
    fn a_handler_that_comes_back_goes_on_at_once() {
        let mut run = run(20, 1, OnExhausted::Park);
        let mut calls = 0;
        let done = drive(&mut run, Duration::from_secs(3000), |_| {
            calls += 1;
            if calls < 10 {
                retry()
            } else {
                BatchAnswer::HANDLED
            }
        });
        assert_eq!(done.len(), 20);
        assert!(!run.is_down());
    }

    #[test]
    fn a_rejected_batch_is_split_before_anything_is_parked() {
        let mut run = run(10, 10, OnExhausted::Park);
        let done = drive(&mut run, Duration::from_secs(60), |seqs| {
            if seqs.contains(&4) {
                reject()
            } else {
                BatchAnswer::HANDLED
            }
        });
        assert_eq!(done.len(), 10);
        let parked: Vec<Seq> = done
            .iter()
            .filter(|(_, v)| {
                matches!(
                    v,
                    Verdict::Park {
                        reason: "rejected",
                        ..
                    }
                )
            })
            .map(|(seq, _)| *seq)
            .collect();
        assert_eq!(parked, [4]);
    }

    #[test]
    fn what_was_handled_in_a_batch_never_repeats() {
        let mut run = run(3, 3, OnExhausted::Park);
        let mut seen = vec![];
        let done = drive(&mut run, Duration::from_secs(60), |seqs| {
            seen.push(seqs.to_vec());
            if seqs.len() == 3 {
                BatchAnswer::Each(vec![
                    Answer::Handled,
                    Answer::Retry(Retry::because("no")),
                    Answer::Handled,
                ])
            } else {
                BatchAnswer::HANDLED
            }
        });
        assert_eq!(seen, [vec![0, 1, 2], vec![1]]);
        assert_eq!(done.len(), 3);
    }

    #[test]
    fn a_list_of_the_wrong_length_is_a_retry_of_the_whole_batch() {
        let mut run = run(2, 2, OnExhausted::Park);
        let mut calls = 0;
        let done = drive(&mut run, Duration::from_secs(60), |_| {
            calls += 1;
            if calls == 1 {
                BatchAnswer::Each(vec![Answer::Handled])
            } else {
                BatchAnswer::HANDLED
            }
        });
        assert_eq!(done.len(), 2);
        assert!(calls > 1);
    }

    #[test]
    fn a_pause_that_the_other_side_asks_for_is_kept() {
        let mut run = run(1, 1, OnExhausted::Park);
        let now = Instant::now();
        let (call, batch) = run.next_call(now).unwrap();
        let after = Some(Duration::from_secs(77));
        let answer = BatchAnswer::All(Answer::Retry(Retry {
            reason: "429".to_owned(),
            after,
        }));
        run.answered(now, call, batch, answer);
        assert_eq!(run.wake_at(now), Some(now + Duration::from_secs(77)));
    }

    #[test]
    fn with_stop_an_exhausted_event_is_kept_and_tried_until_it_is_mended() {
        let mut run = run(2, 1, OnExhausted::Stop);
        let start = Instant::now();
        let mut now = start;
        let mut stopped = false;
        let mut done = vec![];
        while done.is_empty() && now.duration_since(start) < Duration::from_secs(9000) {
            while let Some((call, batch)) = run.next_call(now) {
                let ok = now.duration_since(start) > Duration::from_secs(5000);
                let answer = if ok { BatchAnswer::HANDLED } else { retry() };
                done.extend(run.answered(now, call, batch, answer).done);
                stopped |= run.stopped().is_some();
            }
            now = run.wake_at(now).unwrap_or(now + Duration::from_secs(1));
        }
        assert!(stopped);
        assert!(!done.is_empty(), "mended, it goes on");
        assert_eq!(run.stopped(), None);
    }
}
