//! The script: what is done with a handler, step by step, and what is expected of it.

mod sound;
mod troubled;

use std::time::Duration;

use super::call::{Instance, Within};
use super::events::{Made, Maker};
use super::far_side::{Seen, View};
use super::hand_over::{Broken, Ears, Rules, Verdict, hand_over};
use super::report::{Mistake, Notebook, Report, Step};
use super::{ConformanceError, Script};
use crate::config::{Group, HandlerConfig, SubscriptionConfig};
use crate::handler::{BatchLimits, EventBatch, Registry};

/// Why the script ends early.
pub(super) enum Stop {
    /// The rest makes no sense with this handler.
    Broken(&'static str),
    /// The script itself cannot go on.
    Failed(ConformanceError),
}

impl From<ConformanceError> for Stop {
    fn from(error: ConformanceError) -> Self {
        Self::Failed(error)
    }
}

impl From<Broken> for Stop {
    fn from(_: Broken) -> Self {
        Self::Broken("an earlier step found no answer that could be used")
    }
}

impl From<String> for Stop {
    fn from(why: String) -> Self {
        Self::Failed(ConformanceError::Events(why))
    }
}

/// A run of the script.
pub(super) struct Run<'a> {
    pub(super) registry: &'a Registry,
    pub(super) subscription: &'a SubscriptionConfig,
    pub(super) config: &'a HandlerConfig,
    pub(super) script: &'a Script,
    pub(super) within: Option<Within>,
    pub(super) view: Option<View>,
    pub(super) maker: Maker,
    pub(super) secrets: Vec<String>,
    pub(super) notebook: Notebook,
    pub(super) longest: Duration,
    pub(super) limits: BatchLimits,
    pub(super) instance: Instance,
    /// The step that is under way.
    pub(super) step: Step,
    /// What the first step handed over.
    pub(super) first: Vec<Made>,
}

impl Run<'_> {
    /// All steps, as far as they make sense.
    pub(super) async fn steps(&mut self) -> Result<(), ConformanceError> {
        let mut stopped: Option<&'static str> = None;
        for step in [
            Step::Ready,
            Step::Order,
            Step::Repeats,
            Step::Batch,
            Step::Transaction,
            Step::Reject,
            Step::Slow,
            Step::Restart,
            Step::Close,
        ] {
            let in_groups = self.subscription.group == Group::Transaction;
            if step == Step::Transaction && !in_groups {
                continue;
            }
            if let Some(why) = stopped {
                self.notebook.skip(step, why);
                continue;
            }
            self.step = step;
            let done = match step {
                Step::Ready => self.ready().await,
                Step::Order => self.order().await,
                Step::Repeats => self.repeats().await,
                Step::Batch => self.batch().await,
                Step::Transaction => self.transaction().await,
                Step::Reject => self.reject().await,
                Step::Slow => self.slow().await,
                Step::Restart => self.restart().await,
                Step::Close => self.close().await,
            };
            match done {
                Ok(detail) => self.notebook.end(step, detail),
                Err(Stop::Broken(why)) => {
                    self.notebook.end(step, "not finished");
                    stopped = Some(why);
                }
                Err(Stop::Failed(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// What was found.
    pub(super) fn report(self) -> Report {
        let (steps, findings) = self.notebook.into_parts();
        let wrong = |outcome| outcome == super::Outcome::Wrong;
        Report {
            subscription: self.subscription.name.clone(),
            handler: self.config.name.clone(),
            kind: self.config.kind.clone(),
            sound: !findings.iter().any(|finding| wrong(finding.severity)),
            events: self.maker.made(),
            mark: self.maker.mark(),
            steps,
            findings,
        }
    }

    fn rules(&self) -> Rules {
        Rules {
            subscription: self.subscription.name.as_str().into(),
            concurrency: self.subscription.concurrency,
            limits: self.limits,
            call_limit: self.script.call_limit,
            patience: self.script.patience,
            times: 1,
            parks_behind: self.maker.has_records(),
            strict: self.maker.is_strict(),
        }
    }

    fn batch_of(&self, events: &[Made]) -> EventBatch {
        EventBatch {
            subscription: self.subscription.name.as_str().into(),
            events: events.iter().map(|made| made.event.clone()).collect(),
            strict: self.maker.is_strict(),
        }
    }

    fn ears(&mut self) -> Ears<'_> {
        Ears {
            step: self.step,
            notebook: &mut self.notebook,
            secrets: &self.secrets,
            longest: &mut self.longest,
        }
    }

    /// So many records, or the one that stands for none.
    fn records(&mut self, count: usize) -> Vec<String> {
        match self.maker.has_records() {
            true => self.maker.new_records(count),
            false => vec![String::new()],
        }
    }

    /// Sound events of these records, by turns.
    fn sound(&mut self, records: &[String], rounds: usize) -> Result<Vec<Made>, Stop> {
        let mut events = Vec::with_capacity(records.len() * rounds);
        for _ in 0..rounds {
            for record in records {
                events.push(self.maker.sound(record)?);
            }
        }
        Ok(events)
    }

    /// Hands sound events over, and looks whether they were handled and are at the other side.
    async fn through(
        &mut self,
        rules: &Rules,
        events: &[Made],
        did: &str,
        refused: Mistake,
    ) -> Result<There, Stop> {
        let verdicts = self.hand(rules, events, did).await?;
        self.expect_handled(did, events, &verdicts, refused);
        self.look(did, events, &verdicts).await
    }

    async fn hand(
        &mut self,
        rules: &Rules,
        events: &[Made],
        did: &str,
    ) -> Result<Vec<Verdict>, Stop> {
        let mut ears = Ears {
            step: self.step,
            notebook: &mut self.notebook,
            secrets: &self.secrets,
            longest: &mut self.longest,
        };
        Ok(hand_over(&self.instance, rules, events, did, &mut ears).await?)
    }

    /// All of these should have been handled; a reject is the mistake that is named.
    fn expect_handled(
        &mut self,
        did: &str,
        events: &[Made],
        verdicts: &[Verdict],
        refused: Mistake,
    ) {
        // What it has finished is not handed to a transactional handler again, but by a replay.
        let is_note = refused == Mistake::RepeatRefused && self.instance.is_transactional();
        let mut ears = self.ears();
        for (made, verdict) in events.iter().zip(verdicts) {
            let (mistake, came) = match verdict {
                Verdict::Handled | Verdict::Broke => continue,
                Verdict::Rejected(reason) => (
                    refused,
                    format!("a reject of {}: {}", made.what, ears.shown(reason)),
                ),
                Verdict::GivenUp(reason) => {
                    let came = format!("a retry each time: {}", ears.shown(reason));
                    (Mistake::RetriesForEver, came)
                }
            };
            if is_note {
                ears.note(mistake, did, came);
            } else {
                ears.wrong(mistake, did, came);
            }
        }
    }

    /// Is what was handled at the other side, and in order?
    async fn look(
        &mut self,
        did: &str,
        events: &[Made],
        verdicts: &[Verdict],
    ) -> Result<There, Stop> {
        let handled: Vec<&Made> = events
            .iter()
            .zip(verdicts)
            .filter(|(_, verdict)| **verdict == Verdict::Handled)
            .map(|(made, _)| made)
            .collect();
        let Some(view) = &self.view else {
            return Ok(There::unknown(self.within.as_ref(), handled.len()));
        };
        let numbers: Vec<usize> = handled.iter().map(|made| made.number).collect();
        let seen = view.look(&numbers).await;
        let seen = seen.map_err(ConformanceError::FarSide)?;
        let in_order: Vec<_> = handled
            .iter()
            .map(|made| (made.number, made.records.clone()))
            .collect();
        Ok(self.compare(did, &numbers, &in_order, &seen))
    }

    fn compare(
        &mut self,
        did: &str,
        numbers: &[usize],
        in_order: &[(usize, Vec<Box<str>>)],
        seen: &Seen,
    ) -> There {
        let mark = self.maker.mark();
        let settle = self.script.settle;
        let mut ears = self.ears();
        if let Some(first) = seen.missing.first() {
            let came = format!(
                "handled for all, and {} of {} are not at the other side after {} s, the first of them {mark}{first}",
                seen.missing.len(),
                numbers.len(),
                settle.as_secs_f32()
            );
            ears.wrong(Mistake::NotThere, did, came);
        }
        if seen.late > 0 {
            let came = format!(
                "handled for all, and {} of {} came to the other side only after that",
                seen.late,
                numbers.len()
            );
            ears.note(Mistake::ThereLater, did, came);
        }
        let disorder = seen.out_of_order(in_order);
        if let Some((earlier, later)) = disorder {
            let came = format!(
                "{mark}{later} came to the other side before {mark}{earlier}, which is of the same record and was \
                 handed over first"
            );
            ears.wrong(Mistake::OutOfOrder, did, came);
        }
        There {
            told: match (seen.missing.is_empty(), disorder) {
                (true, None) => "all there, and in order",
                (true, Some(_)) => "all there, and not in order",
                (false, _) => "not all there",
            },
            lost: !seen.missing.is_empty(),
            handled: numbers.len(),
            repeated: Some(seen.repeated(numbers)),
        }
    }
}

/// What a look at the other side gave.
struct There {
    told: &'static str,
    lost: bool,
    /// How many were handled.
    handled: usize,
    /// How many arrived more than once; none where nobody looked.
    repeated: Option<usize>,
}

impl There {
    fn unknown(within: Option<&Within>, handled: usize) -> Self {
        Self {
            told: match within {
                Some(within) if !within.commit => "rolled back",
                _ => "what arrived was not looked at (--received)",
            },
            lost: false,
            handled,
            repeated: None,
        }
    }
}

/// `1 event`, `3 events`.
fn count(number: usize, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        several => format!("{several} {what}s"),
    }
}
