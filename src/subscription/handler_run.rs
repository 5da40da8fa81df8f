//! One handler of a subscription: what it is given when, and what its answers mean (design 3.1, rules 5
//! and 6). Pure: time is passed in, and nothing is called.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::backoff::pause;
use super::lanes::{CallId, Lanes, Waiting};
use super::tracker::{HandlerSet, Seq};
use crate::config::{BackoffConfig, HandlerConfig, OnExhausted, Ordering, RetryConfig};
use crate::event::Event;
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
    down: Option<Down>,
    /// Events that were given up with `on_exhausted = "stop"`: nothing else is handed over while there are any.
    stopped: BTreeMap<Seq, String>,
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
            lanes: Lanes::default(),
            successes: 0,
            failures_in_row: 0,
            down: None,
            stopped: BTreeMap::new(),
        }
    }

    /// Takes an event in.
    pub(super) fn put(&mut self, seq: Seq, event: Arc<Event>, ordering: Ordering) {
        self.lanes.put(Waiting::new(seq, event, ordering));
    }

    /// The next call to make now, if any.
    pub(super) fn next_call(&mut self, now: Instant) -> Option<(CallId, Vec<Waiting>)> {
        let calls = self.lanes.calls();
        let (call, mut batch) = match (&self.down, self.stopped.keys().next()) {
            // Only what stopped it, until that is done.
            (_, Some(_)) if calls > 0 => None,
            (_, Some(seq)) => self.lanes.one(*seq, now),
            // One event at a time, to see whether it is back.
            (Some(down), None) if down.until > now || calls > 0 => None,
            (Some(_), None) => self.lanes.probe(now),
            (None, None) if calls >= self.concurrency => None,
            (None, None) => self.lanes.next_batch(now, self.limits),
        }?;
        for waiting in batch.iter_mut().filter(|w| w.attempts == 0) {
            // What succeeded before its first hand-over says nothing about this event.
            waiting.successes_seen = self.successes;
        }
        Some((call, batch))
    }

    /// When [`HandlerRun::next_call`] may have something new without an answer or an event coming first.
    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        if self.lanes.waiting() == 0 {
            return None;
        }
        let held = self.down.as_ref().map(|down| down.until);
        held.filter(|until| *until > now && self.stopped.is_empty())
            .or_else(|| self.lanes.next_due(now))
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
        // Having handled or refused something, it answers; else, the longest pause that it asked for.
        let answers_at_all = answers.iter().any(|a| asked_pause(a).is_none());
        let asked_for = answers.iter().filter_map(asked_pause).max();
        let failed = asked_for.filter(|_| !answers_at_all);
        self.successes += handled as u64;
        for (mut waiting, answer) in batch.into_iter().zip(answers) {
            waiting.attempts += 1;
            if !matches!(answer, Answer::Retry(_)) {
                self.stopped.remove(&waiting.seq);
            }
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
        self.judge(now, call, failed, &mut result);
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
        let counts = self.successes > waiting.successes_seen;
        if counts {
            waiting.counted += 1;
            waiting.successes_seen = self.successes;
        }
        let since = *waiting.failing_since.get_or_insert(now);
        let exhausted = (counts && waiting.counted >= self.retry.attempts)
            || now.duration_since(since) >= self.retry.total;
        if exhausted && whole && !waiting.alone {
            // Which of them is to blame? Alone they will tell.
            waiting.alone = true;
            waiting.counted = 0;
        } else if exhausted && self.on_exhausted == OnExhausted::Park {
            let error = format!(
                "given up after {} attempts: {}",
                waiting.attempts, retry.reason
            );
            self.stopped.remove(&waiting.seq);
            result.done.push((
                waiting,
                Verdict::Park {
                    reason: "exhausted",
                    error,
                },
            ));
            return;
        } else if exhausted || self.stopped.contains_key(&waiting.seq) {
            let why = format!(
                "handler `{}` could not handle event {} after {} attempts ({}), and on_exhausted is \
                 \"stop\": mend it, and it goes on by itself",
                self.name,
                waiting.event.identity(),
                waiting.attempts,
                retry.reason
            );
            waiting.not_before = Some(now + pause(&self.stopped_retry, 8));
            if self.stopped.insert(waiting.seq, why.clone()).is_none() {
                result.health = Some(Health::Stopped(why));
            }
        } else {
            let least = retry.after.unwrap_or_default().min(LONGEST_AFTER);
            let pause = pause(&self.retry.backoff, waiting.attempts.saturating_sub(1)).max(least);
            waiting.not_before = Some(now + pause);
        }
        waiting.last_error = Some(retry.reason);
        result.again += 1;
        self.lanes.put(waiting);
    }

    /// Is the handler itself up or down? `failed` is the longest pause asked for by a call that handled and
    /// refused nothing.
    fn judge(
        &mut self,
        now: Instant,
        call: CallId,
        failed: Option<Duration>,
        result: &mut Answered,
    ) {
        let Some(asked_for) = failed else {
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
                if let Some(why) = self.lanes.last_error() {
                    down.why = why;
                }
            }
            Some(down) => down.until = down.until.max(now + asked_for),
            None if self.failures_in_row >= DOWN_AFTER => {
                let why = self.lanes.last_error().unwrap_or_default();
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
    fn an_event_is_not_given_up_for_what_succeeded_before_it_was_tried() {
        let mut run = run(4, 1, OnExhausted::Park);
        run.retry.attempts = 1;
        let mut calls = 0;
        let done = drive(&mut run, Duration::from_secs(600), |_| {
            calls += 1;
            if calls <= 2 {
                BatchAnswer::HANDLED
            } else {
                retry()
            }
        });
        assert_eq!(done.len(), 2, "the outage began with the third: {done:?}");
    }

    #[test]
    fn a_batch_that_is_split_begins_to_count_anew() {
        let mut run = run(0, 10, OnExhausted::Park);
        let mut now = Instant::now();
        run.put(0, event(&["a"]), Ordering::Record);
        run.put(1, event(&["b"]), Ordering::Record);
        // The two fail together while a third succeeds in between, until their batch is exhausted.
        for round in 0..4 {
            run.put(100 + round, event(&["ok"]), Ordering::Record);
            while let Some((call, batch)) = run.next_call(now) {
                let good = batch.iter().all(|w| w.seq >= 100);
                let answer = if good { BatchAnswer::HANDLED } else { retry() };
                let answered = run.answered(now, call, batch, answer);
                assert!(answered.done.iter().all(|(w, _)| w.seq >= 100));
            }
            now += Duration::from_secs(2);
        }
        // Now everything fails: an outage, in which nothing is parked.
        let done = drive_from(&mut run, now, Duration::from_secs(600), |_| retry());
        assert_eq!(done, []);
    }

    #[test]
    fn failures_of_calls_under_way_do_not_lengthen_the_hold() {
        let mut run = run(64, 1, OnExhausted::Park);
        run.concurrency = 64;
        let now = Instant::now();
        let calls: Vec<_> = std::iter::from_fn(|| run.next_call(now)).collect();
        assert_eq!(calls.len(), 64);
        for (call, batch) in calls {
            run.answered(now, call, batch, retry());
        }
        assert!(run.is_down());
        assert!(run.wake_at(now).unwrap() <= now + PAUSES.initial);
    }

    #[test]
    fn a_handler_that_is_down_is_held_for_as_long_as_it_asks() {
        let mut run = run(10, 1, OnExhausted::Park);
        let now = Instant::now();
        let asks = || {
            BatchAnswer::All(Answer::Retry(Retry {
                reason: "429".to_owned(),
                after: Some(Duration::MAX),
            }))
        };
        while let Some((call, batch)) = run.next_call(now) {
            run.answered(now, call, batch, asks());
        }
        assert_eq!(run.wake_at(now), Some(now + LONGEST_AFTER));
        assert_eq!(run.lanes.waiting(), 10);
    }

    #[test]
    fn a_refusal_shows_that_a_handler_is_back() {
        let mut run = run(5, 1, OnExhausted::Park);
        let mut calls = 0;
        let done = drive(&mut run, Duration::from_secs(60), |_| {
            calls += 1;
            if calls < 5 { retry() } else { reject() }
        });
        assert_eq!(done.len(), 5);
        assert!(!run.is_down());
    }

    #[test]
    fn while_stopped_nothing_else_is_handed_over() {
        let mut run = run(2, 1, OnExhausted::Stop);
        run.retry.attempts = 1;
        let mut now = Instant::now();
        let mut handed = vec![];
        for round in 0..200u64 {
            run.put(10 + round, event(&["x"]), Ordering::Record);
            while let Some((call, batch)) = run.next_call(now) {
                let seq = batch[0].seq;
                handed.push((run.stopped().is_some(), seq));
                let answer = if seq == 0 {
                    retry()
                } else {
                    BatchAnswer::HANDLED
                };
                run.answered(now, call, batch, answer);
            }
            now += Duration::from_secs(1);
        }
        let stopped: Vec<_> = handed.iter().filter(|(stopped, _)| *stopped).collect();
        assert!(stopped.len() > 2, "it is tried again while stopped");
        assert!(stopped.iter().all(|(_, seq)| *seq == 0), "{stopped:?}");
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
