//! Hands events over as the daemon's lanes do: the records of a call are nobody else's until it is answered.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::call::{Call, Came, Instance};
use super::events::Made;
use super::report::{Mistake, Notebook, Step};
use crate::handler::{Answer, BatchAnswer, BatchLimits, EventBatch, Retry};

/// Attempts in company that count, before an event is handed over alone.
const TOGETHER: usize = 4;

/// Calls that may panic, or give the wrong number of answers, before no more are made.
const BREAKS: usize = 10;

/// The longest pause before another attempt, whatever the handler asks for: nobody wants to wait for a test.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The first pause, which doubles.
const PAUSE: Duration = Duration::from_millis(100);

/// How events are handed over.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub(super) subscription: Arc<str>,
    /// Calls at the same time.
    pub(super) concurrency: usize,
    pub(super) limits: BatchLimits,
    /// How long a call may take.
    pub(super) call_limit: Duration,
    /// How long a handler is tried that takes nothing.
    pub(super) patience: Duration,
    /// How often within one transaction, where it writes within one.
    pub(super) times: usize,
    /// Events have records, which are held where one is parked.
    pub(super) parks_behind: bool,
    /// All events are in one order.
    pub(super) strict: bool,
}

/// What became of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Handled,
    /// With the reason.
    Rejected(String),
    /// With the last reason.
    GivenUp(String),
    /// The call broke, which is noted already.
    Broke,
}

/// The step that is under way, and what is written down of it.
pub(super) struct Ears<'a> {
    pub(super) step: Step,
    pub(super) notebook: &'a mut Notebook,
    /// Texts that are in no reason.
    pub(super) secrets: &'a [String],
    /// The longest call so far.
    pub(super) longest: &'a mut Duration,
}

impl Ears<'_> {
    /// Something wrong.
    pub(super) fn wrong(&mut self, mistake: Mistake, did: &str, came: impl Into<String>) {
        self.notebook.wrong(self.step, mistake, did, came);
    }

    /// Something to think about.
    pub(super) fn note(&mut self, mistake: Mistake, did: &str, came: impl Into<String>) {
        self.notebook.note(self.step, mistake, did, came);
    }

    /// What can be told from a call alone.
    pub(super) fn call(&mut self, did: &str, call: &Call) {
        *self.longest = call.took.max(*self.longest);
        if call.ended_transaction {
            self.wrong(
                Mistake::OwnTransactionEnd,
                did,
                "after the call the connection was in another transaction than before",
            );
        }
        if call.failed_statement {
            self.wrong(
                Mistake::FailedStatement,
                did,
                "handled, in a transaction that a failed statement had brought down (SQLSTATE 25P02)",
            );
        }
        match &call.came {
            Came::Panic => self.wrong(Mistake::Panicked, did, "a panic"),
            Came::Silence => {
                let took = call.took.as_secs_f32();
                self.wrong(
                    Mistake::NoAnswer,
                    did,
                    format!("no answer within {took:.1} s"),
                );
            }
            Came::Answer(BatchAnswer::All(answer)) => self.reason(did, answer),
            Came::Answer(BatchAnswer::Each(answers)) => {
                answers.iter().for_each(|answer| self.reason(did, answer));
            }
        }
    }

    /// Reasons are for everybody to read.
    fn reason(&mut self, did: &str, answer: &Answer) {
        let (reason, what) = match answer {
            Answer::Handled => return,
            Answer::Retry(retry) => (&retry.reason, "retry"),
            Answer::Reject { reason } => (reason, "reject"),
        };
        if self.secrets.iter().any(|secret| reason.contains(secret)) {
            let length = reason.chars().count();
            let came = format!(
                "a {what} whose reason, of {length} characters, holds the value of a field; it is not shown here"
            );
            self.wrong(Mistake::PayloadInReason, did, came);
        }
        if reason.trim().is_empty() {
            self.note(
                Mistake::NoReason,
                did,
                format!("a {what} with a blank reason"),
            );
        }
    }

    /// A reason that may be shown.
    pub(super) fn shown<'r>(&self, reason: &'r str) -> &'r str {
        if self.secrets.iter().any(|secret| reason.contains(secret)) {
            return "(not shown: it holds a value of the event)";
        }
        reason
    }
}

/// The rest of the script makes no sense with this handler: it gives no answer, or breaks with every call.
#[derive(Debug)]
pub(super) struct Broken;

/// An event that is not finished.
#[derive(Debug, Default)]
struct Waiting {
    not_before: Option<Instant>,
    attempts: usize,
    /// Those that count against it.
    counted: usize,
    /// Rejected in a batch: alone it will tell.
    alone: bool,
    under_way: bool,
}

/// Events on their way.
pub(super) struct Lanes<'a> {
    events: &'a [Made],
    rules: &'a Rules,
    waiting: BTreeMap<usize, Waiting>,
    verdicts: Vec<Option<Verdict>>,
    /// When something was last handled or rejected.
    moved: Instant,
    breaks: usize,
}

/// Hands all of these events over, in order where they share records, and gives what became of each.
pub(super) async fn hand_over(
    instance: &Instance,
    rules: &Rules,
    events: &[Made],
    did: &str,
    ears: &mut Ears<'_>,
) -> Result<Vec<Verdict>, Broken> {
    let mut lanes = Lanes::new(events, rules);
    let mut calls = FuturesUnordered::new();
    loop {
        // One for both: what falls due between two looks at the clock would be seen by neither.
        let now = Instant::now();
        while calls.len() < rules.concurrency {
            let Some((chosen, batch)) = lanes.next_call(now) else {
                break;
            };
            calls.push(async move {
                let call = instance.call(batch, rules.times, rules.call_limit);
                (chosen, call.await)
            });
        }
        let wake = lanes.wake_at(now);
        tokio::select! {
            Some((chosen, call)) = calls.next(), if !calls.is_empty() => {
                let did = lanes.told(did, &chosen);
                ears.call(&did, &call);
                lanes.answered(chosen, call.came, &did, ears)?;
            }
            () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            else => break,
        }
    }
    let unknown = || Verdict::GivenUp("it was never handed over".to_owned());
    let verdicts = lanes.verdicts.into_iter();
    Ok(verdicts
        .map(|verdict| verdict.unwrap_or_else(unknown))
        .collect())
}

impl<'a> Lanes<'a> {
    pub(super) fn new(events: &'a [Made], rules: &'a Rules) -> Self {
        let waiting = (0..events.len()).map(|number| (number, Waiting::default()));
        Self {
            events,
            rules,
            waiting: waiting.collect(),
            verdicts: vec![None; events.len()],
            moved: Instant::now(),
            breaks: 0,
        }
    }

    /// The next batch, where there is one: in order, of records that no other call has.
    pub(super) fn next_call(&mut self, now: Instant) -> Option<(Vec<usize>, EventBatch)> {
        let limits = self.rules.limits;
        let (under_way, idle): (Vec<_>, Vec<_>) = self
            .waiting
            .iter()
            .partition(|(_, waiting)| waiting.under_way);
        let mut held: HashSet<&str> = under_way
            .iter()
            .flat_map(|(number, _)| self.records(**number))
            .collect();
        let mut chosen = Vec::new();
        let mut bytes = 0;
        for (number, waiting) in idle {
            let made = &self.events[*number];
            let size = made.event.raw.size();
            let due = waiting.not_before.is_none_or(|at| at <= now);
            let free = !self.records(*number).any(|record| held.contains(record));
            let fits = chosen.is_empty()
                || (!waiting.alone && chosen.len() < limits.events && bytes + size <= limits.bytes);
            if due && free && fits {
                chosen.push(*number);
                bytes += size;
                if waiting.alone {
                    break;
                }
            } else {
                // What follows it of its records waits behind it.
                held.extend(self.records(*number));
            }
        }
        if chosen.is_empty() {
            return None;
        }
        for number in &chosen {
            if let Some(waiting) = self.waiting.get_mut(number) {
                waiting.under_way = true;
            }
        }
        let events = chosen
            .iter()
            .map(|number| self.events[*number].event.clone());
        let batch = EventBatch {
            subscription: self.rules.subscription.clone(),
            events: events.collect(),
            strict: self.rules.strict,
        };
        Some((chosen, batch))
    }

    /// When something that waits for its time is due.
    fn wake_at(&self, now: Instant) -> Option<Instant> {
        let idle = self.waiting.values().filter(|waiting| !waiting.under_way);
        let times = idle.filter_map(|waiting| waiting.not_before);
        times.filter(|at| *at > now).min()
    }

    fn records(&self, number: usize) -> impl Iterator<Item = &'a str> + use<'a> {
        self.events[number].records.iter().map(|record| &**record)
    }

    /// What was done, with what the call had.
    fn told(&self, did: &str, chosen: &[usize]) -> String {
        match chosen {
            [number] => format!("{did}; the call had {}", self.events[*number].what),
            several => format!("{did}; the call had {} events", several.len()),
        }
    }

    /// Takes the end of a call.
    fn answered(
        &mut self,
        chosen: Vec<usize>,
        came: Came,
        did: &str,
        ears: &mut Ears<'_>,
    ) -> Result<(), Broken> {
        let count = chosen.len();
        let (answers, whole) = match came {
            Came::Answer(BatchAnswer::All(answer)) => (vec![answer; count], count > 1),
            Came::Answer(BatchAnswer::Each(answers)) if answers.len() == count => (answers, false),
            Came::Answer(BatchAnswer::Each(answers)) => {
                let given = answers.len();
                let came = format!("{given} answers for {count} events");
                ears.wrong(Mistake::WrongLength, did, &*came);
                return self.broke(&chosen, &came);
            }
            Came::Panic => return self.broke(&chosen, "it panicked"),
            Came::Silence => return Err(Broken),
        };
        self.look_at_order(&chosen, &answers, did, ears);
        for (number, answer) in chosen.into_iter().zip(answers) {
            match answer {
                Answer::Handled => self.finished(number, Verdict::Handled),
                Answer::Reject { .. } if whole => {
                    self.moved = Instant::now();
                    if let Some(waiting) = self.waiting.get_mut(&number) {
                        waiting.under_way = false;
                        waiting.alone = true;
                    }
                }
                Answer::Reject { reason } => self.finished(number, Verdict::Rejected(reason)),
                Answer::Retry(retry) => {
                    self.again(number, retry);
                }
            }
        }
        Ok(())
    }

    fn finished(&mut self, number: usize, verdict: Verdict) {
        if matches!(verdict, Verdict::Handled | Verdict::Rejected(_)) {
            self.moved = Instant::now();
        }
        self.waiting.remove(&number);
        self.verdicts[number] = Some(verdict);
    }

    /// Hands an event over once more, or gives it up: once it was tried alone, for what came with it may have been
    /// to blame.
    fn again(&mut self, number: usize, retry: Retry) {
        let late = self.moved.elapsed() >= self.rules.patience;
        let Some(waiting) = self.waiting.get_mut(&number) else {
            return;
        };
        waiting.attempts += 1;
        waiting.counted += usize::from(retry.counts);
        waiting.under_way = false;
        let was_alone = waiting.alone;
        waiting.alone |= waiting.counted >= TOGETHER || late;
        let least = retry.after.unwrap_or_default();
        let pause = PAUSE * (1 << waiting.attempts.min(5));
        waiting.not_before = Some(Instant::now() + pause.max(least).min(LONGEST_PAUSE));
        if late && was_alone {
            self.finished(number, Verdict::GivenUp(retry.reason));
        }
    }

    /// A call that gave no answer that could be used.
    fn broke(&mut self, chosen: &[usize], why: &str) -> Result<(), Broken> {
        self.breaks += 1;
        if self.breaks >= BREAKS {
            return Err(Broken);
        }
        if let [number] = chosen {
            self.finished(*number, Verdict::Broke);
            return Ok(());
        }
        for number in chosen {
            self.again(*number, Retry::because(why));
            if let Some(waiting) = self.waiting.get_mut(number) {
                waiting.alone = true;
            }
        }
        Ok(())
    }

    fn look_at_order(&self, chosen: &[usize], answers: &[Answer], did: &str, ears: &mut Ears<'_>) {
        // What was answered for the records of events that are not handled.
        let mut left: HashMap<&str, &str> = HashMap::new();
        for (number, answer) in chosen.iter().zip(answers) {
            let mut records = self.records(*number);
            match answer {
                Answer::Retry(_) => left.extend(records.map(|record| (record, "retry"))),
                // It is parked, and tried again once somebody says so: behind what was handled past it.
                Answer::Reject { .. } if self.rules.parks_behind => {
                    left.extend(records.map(|record| (record, "reject")));
                }
                Answer::Reject { .. } => {}
                Answer::Handled => {
                    if let Some(said) = records.find_map(|record| left.get(record)) {
                        let came = format!(
                            "an event handled, and a {said} for one before it of the same record in the same call"
                        );
                        ears.wrong(Mistake::OrderGivenUp, did, came);
                    }
                }
            }
        }
    }
}
