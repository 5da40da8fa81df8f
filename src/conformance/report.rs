//! What a run found: a result for each step, and the mistakes with their cures.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::text::one_line;

/// A part of the script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Step {
    /// Its own look at the other side.
    Ready,
    /// Many records, calls side by side.
    Order,
    /// The same events again.
    Repeats,
    /// As many events in a call as it takes, and one of the largest size.
    Batch,
    /// A transaction of the org, larger than its batches.
    Transaction,
    /// Events that are odd or bad, among sound ones.
    Reject,
    /// Calls that are dropped in the middle, and how long the others take.
    Slow,
    /// The handler killed and built anew.
    Restart,
    /// Its end in order.
    Close,
}

impl Step {
    /// As tables show it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Order => "order",
            Self::Repeats => "repeats",
            Self::Batch => "batch",
            Self::Transaction => "transaction",
            Self::Reject => "reject",
            Self::Slow => "slow",
            Self::Restart => "restart",
            Self::Close => "close",
        }
    }
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// Something to think about.
    Note,
    /// Something that loses, reorders or blocks events.
    Wrong,
    /// Not tried; the detail says why.
    Skipped,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Wrong => "wrong",
            Self::Skipped => "skipped",
        }
    }
}

/// What a handler can get wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Mistake {
    /// Its own check says that the other side would take nothing.
    NotReady,
    /// It wants less than one event a call.
    LimitOfNothing,
    /// It panicked.
    Panicked,
    /// It gave no answer.
    NoAnswer,
    /// It gave another number of answers than there were events.
    WrongLength,
    /// It wants a sound event again and again.
    RetriesForEver,
    /// It refused an event for good that nothing is wrong with.
    RejectedSound,
    /// It refused sound events together with a bad one.
    RejectedWithOthers,
    /// It took an event that it was said to refuse.
    TookBad,
    /// It wants an event again and again that it can never take.
    RetriesBad,
    /// Part of an event is in a reason.
    PayloadInReason,
    /// It gave no reason.
    NoReason,
    /// It refused an event for good that it had taken before.
    RepeatRefused,
    /// Events of a record reached the other side out of order.
    OutOfOrder,
    /// It handled an event, and not an earlier one of the same record in the same call.
    OrderGivenUp,
    /// It answered for an event that the other side does not have.
    NotThere,
    /// It answered for an event that the other side had only later.
    ThereLater,
    /// It ended the transaction itself.
    OwnTransactionEnd,
    /// It went on after a statement had failed.
    FailedStatement,
    /// It cannot be built a second time.
    NotBuiltAgain,
    /// Its end took longer than it may.
    SlowEnd,
    /// After its end it cannot be called any more.
    CalledAfterEnd,
}

impl Mistake {
    /// What a sound handler does.
    pub fn expected(self) -> &'static str {
        match self {
            Self::NotReady => "its check says that events would be taken",
            Self::LimitOfNothing => "`batch_limits` asks for at least one event",
            Self::Panicked => {
                "an answer: a panic costs the whole batch, and is tried again as if nothing were known"
            }
            Self::NoAnswer => {
                "an answer within bounded time: a call that never ends holds its records for ever"
            }
            Self::WrongLength => {
                "one answer for each event of the batch, in its order, or one for all"
            }
            Self::RetriesForEver => "handled, after a few attempts at most",
            Self::RejectedSound => {
                "handled, or a retry while the other side cannot take it: a reject parks the event"
            }
            Self::RejectedWithOthers => "the bad event rejected, and the others handled",
            Self::TookBad => "rejected, as was said with the event",
            Self::RetriesBad => {
                "handled or rejected: what can never be taken is a reject, or it is tried for hours and its record waits"
            }
            Self::PayloadInReason => {
                "a reason without what is in the event: it goes to logs, metrics and dead letters"
            }
            Self::NoReason => "a reason that a person can act on",
            Self::RepeatRefused => "handled: after a crash an event comes again with the same `id`",
            Self::OutOfOrder => {
                "the first arrivals of each record's events in the order in which they were handed over"
            }
            Self::OrderGivenUp => {
                "nothing handled past an event of the same record that is to come again or is refused"
            }
            Self::NotThere => {
                "what was answered with handled is at the other side, whatever happens to the process"
            }
            Self::ThereLater => "what was answered with handled is at the other side by then",
            Self::OwnTransactionEnd => {
                "the transaction still open: the events' finished marks are committed with it"
            }
            Self::FailedStatement => {
                "an error of a statement given back with `?`: the transaction cannot be committed any more"
            }
            Self::NotBuiltAgain => "built from its configuration at every start, without any I/O",
            Self::SlowEnd => "the end within the time that it is given",
            Self::CalledAfterEnd => "an answer that loses nothing, best a retry",
        }
    }

    /// How to mend it.
    pub fn mend(self) -> &'static str {
        match self {
            Self::NotReady => "do what the check says; then try again",
            Self::LimitOfNothing => "set `events` of `batch_limits` to 1 or more",
            Self::Panicked => {
                "give `Retry` or `Reject` in place of unwrap, expect and indexing; standard error has the place"
            }
            Self::NoAnswer => {
                "put a timeout around everything that waits for another system, and never block a thread in a call"
            }
            Self::WrongLength => {
                "push exactly one answer for each event, also for those that were skipped or deduplicated"
            }
            Self::RetriesForEver => {
                "look at the reason; if the other side is sound, then what is sent to it is not; if the handler wants \
                 certain fields, name an event that it takes with --event"
            }
            Self::RejectedSound => {
                "look at the reason; if the handler wants certain fields, name an event that it takes with --event"
            }
            Self::RejectedWithOthers => {
                "answer for each event by itself (`BatchAnswer::Each`), or reject all with `BatchAnswer::All`: then the \
                 daemon splits the batch until the bad one is found"
            }
            Self::TookBad => {
                "check the event before it is sent, or read what the other side says about it"
            }
            Self::RetriesBad => {
                "tell what is wrong with the event from what is wrong with the other side, and give `Reject`"
            }
            Self::PayloadInReason => {
                "name the field and the rule in the reason, never the value; do not pass on texts of the other side"
            }
            Self::NoReason => "say what was refused, by whom, and what to do about it",
            Self::RepeatRefused => {
                "write with the event's `id` as key, and take what is there already as done (`on conflict do nothing`)"
            }
            Self::OutOfOrder => {
                "send the events of a batch one after the other, or at least those of one record, and answer when the \
                 one before is sure"
            }
            Self::OrderGivenUp => {
                "stop at the first event that is not handled, and give `Retry::uncounted` for all after it in the batch"
            }
            Self::NotThere => {
                "await the other side's answer before giving `Handled`: nothing may be left in a buffer, a queue or a \
                 task of its own"
            }
            Self::ThereLater => {
                "await the other side's answer before giving `Handled`; if it is only the look at it that lags \
                 behind, all is well"
            }
            Self::OwnTransactionEnd => {
                "take out commit and rollback; what is to be undone by itself goes into a savepoint (`begin`)"
            }
            Self::FailedStatement => {
                "pass errors on with `?`, or write within a savepoint (`begin`) where they are expected"
            }
            Self::NotBuiltAgain => {
                "keep nothing from the one before: no global state, no lock, no port"
            }
            Self::SlowEnd => "give up in `close` what takes longer than its limit",
            Self::CalledAfterEnd => "give `Retry` once `close` was called",
        }
    }
}

/// A mistake, as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// In which step.
    pub step: Step,
    /// What it is.
    pub mistake: Mistake,
    /// `Wrong` or `Note`.
    pub severity: Outcome,
    /// How often it was found in this step; the rest is about the first time.
    pub times: usize,
    /// What was done.
    pub did: String,
    /// What should have come.
    pub expected: &'static str,
    /// What came.
    pub came: String,
    /// How to mend it.
    pub mend: &'static str,
}

/// How one step ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepReport {
    /// Which.
    pub step: Step,
    /// How.
    pub outcome: Outcome,
    /// What was done, or why it was not.
    pub detail: String,
}

/// What a run found. Shown as text it is a table of the steps, and what is wrong below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Name of the subscription.
    pub subscription: String,
    /// Name of the handler.
    pub handler: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// True where nothing is wrong.
    pub sound: bool,
    /// How many events were made; each may have been handed over several times.
    pub events: usize,
    /// What the events' `id` begins with.
    pub mark: String,
    /// In the order of the script.
    pub steps: Vec<StepReport>,
    /// What is wrong first, then notes; each in the order in which they were found.
    pub findings: Vec<Finding>,
}

impl Report {
    /// True where nothing is wrong; there may be notes.
    pub fn is_sound(&self) -> bool {
        self.sound
    }

    /// The finding of this mistake, in whatever step.
    pub fn finding(&self, mistake: Mistake) -> Option<&Finding> {
        self.findings.iter().find(|one| one.mistake == mistake)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:11}  {:7}  DETAIL", "STEP", "RESULT")?;
        for StepReport {
            step,
            outcome,
            detail,
        } in &self.steps
        {
            let (step, outcome) = (step.name(), outcome.name());
            writeln!(f, "{step:11}  {outcome:7}  {}", plain(detail))?;
        }
        for finding in &self.findings {
            let times = match finding.times {
                1 => String::new(),
                times => format!(", {times} times"),
            };
            let (severity, step) = (finding.severity.name(), finding.step.name());
            writeln!(f, "\n{severity} in {step}{times}")?;
            writeln!(f, "  did       {}", plain(&finding.did))?;
            writeln!(f, "  expected  {}", finding.expected)?;
            writeln!(f, "  came      {}", plain(&finding.came))?;
            writeln!(f, "  mend      {}", finding.mend)?;
        }
        Ok(())
    }
}

/// What comes from a handler may not steer a terminal.
fn plain(text: &str) -> String {
    one_line(text, usize::MAX)
}

/// What is found while the script runs.
#[derive(Debug, Default)]
pub(super) struct Notebook {
    steps: Vec<StepReport>,
    findings: Vec<Finding>,
    /// Where in `findings` a mistake of this step is.
    known: BTreeMap<(Step, Mistake), usize>,
}

impl Notebook {
    /// Notes something wrong.
    pub(super) fn wrong(
        &mut self,
        step: Step,
        mistake: Mistake,
        did: &str,
        came: impl Into<String>,
    ) {
        self.add(step, mistake, Outcome::Wrong, did, came.into());
    }

    /// Notes something to think about.
    pub(super) fn note(
        &mut self,
        step: Step,
        mistake: Mistake,
        did: &str,
        came: impl Into<String>,
    ) {
        self.add(step, mistake, Outcome::Note, did, came.into());
    }

    fn add(&mut self, step: Step, mistake: Mistake, severity: Outcome, did: &str, came: String) {
        if let Some(number) = self.known.get(&(step, mistake)) {
            let finding = &mut self.findings[*number];
            finding.times += 1;
            if severity == Outcome::Wrong {
                finding.severity = severity;
            }
            return;
        }
        self.known.insert((step, mistake), self.findings.len());
        self.findings.push(Finding {
            step,
            mistake,
            severity,
            times: 1,
            did: did.to_owned(),
            expected: mistake.expected(),
            came,
            mend: mistake.mend(),
        });
    }

    /// Ends a step: its outcome is that of the worst finding.
    pub(super) fn end(&mut self, step: Step, detail: impl Into<String>) {
        let found = self.findings.iter().filter(|one| one.step == step);
        let outcome = match found.map(|one| one.severity).collect::<Vec<_>>() {
            found if found.contains(&Outcome::Wrong) => Outcome::Wrong,
            found if found.is_empty() => Outcome::Ok,
            _ => Outcome::Note,
        };
        self.steps.push(StepReport {
            step,
            outcome,
            detail: detail.into(),
        });
    }

    /// Leaves a step out.
    pub(super) fn skip(&mut self, step: Step, why: impl Into<String>) {
        self.steps.push(StepReport {
            step,
            outcome: Outcome::Skipped,
            detail: why.into(),
        });
    }

    /// Everything that was noted, what is wrong first.
    pub(super) fn into_parts(mut self) -> (Vec<StepReport>, Vec<Finding>) {
        let is_note = |finding: &Finding| finding.severity != Outcome::Wrong;
        self.findings.sort_by_key(is_note);
        (self.steps, self.findings)
    }
}
