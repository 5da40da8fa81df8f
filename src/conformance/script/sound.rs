//! What a handler does with events that nothing is wrong with.

use std::collections::HashSet;

use super::{Run, Stop, count};
use crate::conformance::events::{LARGEST, Made};
use crate::conformance::hand_over::{Rules, Verdict};
use crate::conformance::report::Mistake;
use crate::handler::BatchLimits;

/// Records of the first step, at most.
const RECORDS: usize = 32;

/// Events of each of them.
const ROUNDS: usize = 8;

/// Events of the first step that have no record: they go one after the other.
const UNORDERED: usize = 40;

/// Events that are handed over again.
const REPEATED: usize = 24;

/// Events of the largest batch.
const LARGEST_BATCH: usize = 500;

impl Run<'_> {
    pub(super) async fn ready(&mut self) -> Result<String, Stop> {
        let did = "asked it for its check, as `orgstream check` does";
        if let Err(why) = self.instance.check().await {
            self.ears().wrong(Mistake::NotReady, did, why);
            return Err(Stop::Broken("its check says that it is not ready"));
        }
        if self.limits.events == 0 {
            let did = "asked it how much it wants in one call";
            let came = "no event at all, or a panic";
            self.ears().wrong(Mistake::LimitOfNothing, did, came);
            self.limits.events = 1;
        }
        Ok(format!(
            "its check is content; it takes up to {} in a call",
            count(self.limits.events, "event")
        ))
    }

    pub(super) async fn order(&mut self) -> Result<String, Stop> {
        let rules = self.rules();
        let events = if self.maker.has_records() {
            let records = self
                .maker
                .new_records((2 * rules.concurrency).clamp(4, RECORDS));
            self.of_records(&records)?
        } else {
            self.sound(&[String::new()], UNORDERED)?
        };
        let records: HashSet<_> = events.iter().flat_map(|made| &made.records).collect();
        let what = match self.maker.has_records() {
            true => format!(
                "{} of {}",
                count(events.len(), "event"),
                count(records.len(), "record")
            ),
            false => count(events.len(), "event"),
        };
        let calls = match (rules.concurrency, records.len()) {
            (1, _) | (_, 1) => "one call at a time".to_owned(),
            (several, _) => format!("up to {several} calls at a time"),
        };
        let did = format!("handed over {what}, {calls}");
        let there = self
            .through(&rules, &events, &did, Mistake::RejectedSound)
            .await?;
        if there.handled == 0 {
            return Err(Stop::Broken("it has handled no event"));
        }
        self.first = events;
        Ok(format!("{what}, {calls}; {}", there.told))
    }

    /// The same events, as after a crash before their end was stored; then each in a call of its own.
    pub(super) async fn repeats(&mut self) -> Result<String, Stop> {
        let mut rules = self.rules();
        let events: Vec<Made> = self.first.iter().take(REPEATED).cloned().collect();
        // A transaction that was rolled back leaves nothing behind: both have to be within one.
        if self.within.as_ref().is_some_and(|within| !within.commit) {
            rules.times = 2;
        }
        let mut told = String::new();
        for (limit, how) in [
            (self.limits.events, "again"),
            (1, "again, one in each call"),
        ] {
            rules.limits.events = limit;
            let did = format!(
                "handed over {} {how}, with the same `id`",
                count(events.len(), "event")
            );
            let there = self
                .through(&rules, &events, &did, Mistake::RepeatRefused)
                .await?;
            told = match there.repeated {
                Some(0) => "; they are there once".to_owned(),
                Some(several) => format!(
                    "; {several} of them are there more than once, which receivers have to know"
                ),
                None => String::new(),
            };
            if self.limits.events == 1 {
                break;
            }
        }
        Ok(format!(
            "{} handed over again, all together and one by one{told}",
            count(self.first.len().min(REPEATED), "event")
        ))
    }

    pub(super) async fn batch(&mut self) -> Result<String, Stop> {
        let rules = Rules {
            concurrency: 1,
            ..self.rules()
        };
        let wanted = self.limits.events.min(LARGEST_BATCH);
        let mut events = Vec::new();
        let mut bytes = 0;
        while events.len() < wanted {
            let records = self.maker.new_records(1);
            for made in self.sound(&records, 2)? {
                bytes += made.event.raw.size();
                if events.len() < wanted && (events.is_empty() || bytes <= self.limits.bytes) {
                    events.push(made);
                }
            }
            if bytes > self.limits.bytes {
                break;
            }
        }
        let full = count(events.len(), "event");
        let did = format!("handed over {full} in one call");
        self.through(&rules, &events, &did, Mistake::RejectedSound)
            .await?;
        let record = self.maker.new_record();
        let Some(largest) = self.maker.largest(&record)? else {
            return Ok(format!("{full} in one call"));
        };
        let small = self.sound(&[record], 1)?;
        let did =
            format!("handed over an event of {LARGEST} bytes, the most that an event may have");
        let large = [largest];
        let verdicts = self.hand(&rules, &large, &did).await?;
        let fate = match verdicts.first() {
            Some(Verdict::GivenUp(reason)) => {
                let mut ears = self.ears();
                let came = format!("a retry each time: {}", ears.shown(reason));
                ears.wrong(Mistake::RetriesBad, &did, came);
                "wanted again and again".to_owned()
            }
            Some(Verdict::Rejected(reason)) => {
                format!("rejected ({})", self.ears().shown(reason))
            }
            Some(Verdict::Broke) | None => "without an answer".to_owned(),
            Some(Verdict::Handled) => "handled".to_owned(),
        };
        self.look(&did, &large, &verdicts).await?;
        let did = "handed over a small event after the largest";
        let verdicts = self.hand(&rules, &small, did).await?;
        self.expect_handled(did, &small, &verdicts, Mistake::RejectedSound);
        Ok(format!("{full} in one call; one of {LARGEST} bytes {fate}"))
    }

    pub(super) async fn transaction(&mut self) -> Result<String, Stop> {
        let events = self.limits.events.min(LARGEST_BATCH / 5) + 5;
        let events = self.maker.transaction(events)?;
        let rules = Rules {
            concurrency: 1,
            limits: BatchLimits {
                events: events.len(),
                bytes: usize::MAX,
            },
            ..self.rules()
        };
        let what = format!("{} of one transaction", count(events.len(), "event"));
        let did = format!("handed over {what} in one call, more than `batch_limits` asks for");
        self.through(&rules, &events, &did, Mistake::RejectedSound)
            .await?;
        Ok(format!("{what} in one call"))
    }

    /// The events of the first step: by turns, and then those of each record in a row, so that batches of every
    /// size have several of one record.
    fn of_records(&mut self, records: &[String]) -> Result<Vec<Made>, Stop> {
        let mut events = self.sound(records, ROUNDS / 2)?;
        for record in records {
            events.extend(self.sound(std::slice::from_ref(record), ROUNDS / 2)?);
        }
        Ok(events)
    }
}
