//! What a handler does with events that are bad, and where its work is cut short.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::{Run, Stop, count};
use crate::conformance::ConformanceError;
use crate::conformance::call::{Came, Instance};
use crate::conformance::events::Made;
use crate::conformance::hand_over::{Broken, Lanes, Rules, Verdict};
use crate::conformance::report::Mistake;
use crate::handler::{Answer, BatchAnswer};

/// How long a handler may take to end.
const END: Duration = Duration::from_secs(5);

/// What an event of the step `reject` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Sound,
    Odd,
    Bad,
}

impl Run<'_> {
    /// Odd events and the bad one, each between sound ones; the one after it is of the same record.
    pub(super) async fn reject(&mut self) -> Result<String, Stop> {
        let rules = Rules {
            concurrency: 1,
            ..self.rules()
        };
        let mut events = Vec::new();
        // Which are sound, odd or bad, in the same order.
        let mut kinds = Vec::new();
        let mut push = |made: Made, kind: Sort| {
            events.push(made);
            kinds.push(kind);
        };
        for oddity in self.maker.oddities() {
            let records = self.maker.new_records(2);
            push(self.maker.sound(&records[0])?, Sort::Sound);
            push(self.maker.odd(oddity, &records[1])?, Sort::Odd);
            push(self.maker.sound(&records[1])?, Sort::Sound);
        }
        if self.maker.knows_bad() {
            let records = self.maker.new_records(2);
            push(self.maker.sound(&records[0])?, Sort::Sound);
            push(self.maker.bad(&records[1])?, Sort::Bad);
            push(self.maker.sound(&records[1])?, Sort::Sound);
        }
        let record = self.maker.new_record();
        push(self.maker.sound(&record)?, Sort::Sound);
        let did = "handed over odd events among sound ones";
        let verdicts = self.hand(&rules, &events, did).await?;
        let mut odd = (0, 0);
        for ((made, kind), verdict) in events.iter().zip(&kinds).zip(&verdicts) {
            match (kind, verdict) {
                (Sort::Odd, Verdict::Handled) => odd.0 += 1,
                (Sort::Odd, Verdict::Rejected(_)) => odd.1 += 1,
                _ => {}
            }
            self.judge(*kind, made, verdict);
        }
        self.look(did, &events, &verdicts).await?;
        let (handled, rejected) = odd;
        let bad = match self.maker.knows_bad() {
            true => "; one that it was said to refuse",
            false if rejected == 0 => {
                "; it refused none of them: name an event that it must refuse (--bad) to see that too"
            }
            false => "",
        };
        Ok(format!(
            "odd events among sound ones: {handled} handled, {rejected} rejected{bad}"
        ))
    }

    /// Is that how such an event may end among others?
    fn judge(&mut self, kind: Sort, made: &Made, verdict: &Verdict) {
        let mut ears = self.ears();
        let did = format!("handed over {} among others", made.what);
        match (kind, verdict) {
            (Sort::Sound, Verdict::Rejected(reason)) => {
                let came = format!("a reject of it: {}", ears.shown(reason));
                ears.wrong(Mistake::RejectedWithOthers, &did, came);
            }
            (Sort::Sound, Verdict::GivenUp(reason)) => {
                let came = format!("a retry each time: {}", ears.shown(reason));
                ears.wrong(Mistake::RetriesForEver, &did, came);
            }
            (Sort::Odd | Sort::Bad, Verdict::GivenUp(reason)) => {
                let came = format!("a retry each time: {}", ears.shown(reason));
                ears.wrong(Mistake::RetriesBad, &did, came);
            }
            (Sort::Bad, Verdict::Handled) => ears.wrong(Mistake::TookBad, &did, "handled"),
            _ => {}
        }
    }

    /// Calls that are given up, as when the process is told to stop at once.
    pub(super) async fn slow(&mut self) -> Result<String, Stop> {
        let rules = Rules {
            concurrency: 1,
            ..self.rules()
        };
        let record = self.maker.new_record();
        let one = self.sound(&[record], 1)?;
        let began = tokio::time::Instant::now();
        let did = "handed over one event";
        let verdicts = self.hand(&rules, &one, did).await?;
        self.expect_handled(did, &one, &verdicts, Mistake::RejectedSound);
        let usual = began.elapsed().min(Duration::from_secs(2));
        let mut dropped = 0;
        let mut all = Vec::new();
        let mut fates = Vec::new();
        for quarters in 0..=4 {
            let record = self.maker.new_record();
            let events = self.sound(&[record], self.limits.events.min(3))?;
            let after = usual * quarters / 4;
            let did = format!(
                "dropped a call of {} after {} ms, then handed them over again",
                count(events.len(), "event"),
                after.as_millis()
            );
            let call = self
                .instance
                .drop_call(self.batch_of(&events), after, rules.call_limit);
            match call.await {
                Some(unfinished) => dropped += usize::from(unfinished),
                None => {
                    let came = "it went on all the same, and blocked its thread";
                    self.ears().wrong(Mistake::NoAnswer, &did, came);
                    return Err(Broken.into());
                }
            }
            let verdicts = self.hand(&rules, &events, &did).await?;
            self.expect_handled(&did, &events, &verdicts, Mistake::RepeatRefused);
            all.extend(events);
            fates.extend(verdicts);
        }
        let did = "dropped calls in the middle, then handed their events over again";
        self.look(did, &all, &fates).await?;
        Ok(format!(
            "{dropped} of 5 calls dropped in the middle, their events handed over again; the longest call so far \
             took {} ms",
            self.longest.as_millis()
        ))
    }

    /// Killed after its answers, and killed in the middle of calls.
    pub(super) async fn restart(&mut self) -> Result<String, Stop> {
        let rules = self.rules();
        let records = self.records(4);
        let before = self.sound(&records, 3)?;
        let did = format!(
            "handed over {}, and ended everything that the handler does when it had answered",
            count(before.len(), "event")
        );
        let verdicts = self.hand(&rules, &before, &did).await?;
        self.instance.kill();
        self.expect_handled(&did, &before, &verdicts, Mistake::RejectedSound);
        let first = self.look(&did, &before, &verdicts).await?;
        self.build_again().await?;

        let during = self.sound(&records, 3)?;
        self.kill_in_the_middle(&rules, &during).await;
        self.build_again().await?;
        // The answers to the last of the first were not stored yet.
        let mut events: Vec<Made> = before[before.len().saturating_sub(4)..].to_vec();
        let answered = events.len();
        events.extend(during.iter().cloned());
        let did = format!(
            "ended everything in the middle of calls, built the handler anew and handed over {} that it had answered \
             for and {} that it had not",
            count(answered, "event"),
            during.len()
        );
        let last = self
            .through(&rules, &events, &did, Mistake::RepeatRefused)
            .await?;
        Ok(format!(
            "killed after {} and in the middle of calls; {}",
            count(before.len(), "answer"),
            if first.lost { first.told } else { last.told }
        ))
    }

    async fn kill_in_the_middle(&mut self, rules: &Rules, events: &[Made]) {
        let mut lanes = Lanes::new(events, rules);
        let mut calls = FuturesUnordered::new();
        while calls.len() < rules.concurrency {
            let Some((_, batch)) = lanes.next_call(Instant::now()) else {
                break;
            };
            calls.push(self.instance.call(batch, 1, rules.call_limit));
        }
        let pause = (self.longest / 2).min(Duration::from_secs(1));
        let answers = async { while calls.next().await.is_some() {} };
        let _ = tokio::time::timeout(pause, answers).await;
        drop(calls);
        self.instance.kill();
    }

    pub(super) async fn close(&mut self) -> Result<String, Stop> {
        let rules = self.rules();
        let records = self.records(1);
        let events = self.sound(&records, 2)?;
        let did = "handed over two events, and told it that the process ends";
        let verdicts = self.hand(&rules, &events, did).await?;
        self.expect_handled(did, &events, &verdicts, Mistake::RejectedSound);
        if !self.instance.close(END).await {
            let came = format!("it had not ended after {} s, or it panicked", END.as_secs());
            self.ears().note(Mistake::SlowEnd, did, came);
        }
        self.look(did, &events, &verdicts).await?;
        let late = self.sound(&records, 1)?;
        let limit = rules.call_limit.min(2 * END);
        let call = self.instance.call(self.batch_of(&late), 1, limit).await;
        let did = "called it after its end, with one event";
        let mut ears = self.ears();
        let told = match call.came {
            Came::Panic => {
                ears.note(Mistake::CalledAfterEnd, did, "a panic");
                "a panic"
            }
            Came::Silence => {
                ears.note(Mistake::CalledAfterEnd, did, "no answer");
                "no answer"
            }
            Came::Answer(answer) => match one_answer(answer) {
                Some(Answer::Handled) => {
                    self.look(did, &late, &[Verdict::Handled]).await?;
                    "handled"
                }
                Some(Answer::Retry(_)) => "a retry",
                Some(Answer::Reject { .. }) => {
                    ears.note(
                        Mistake::CalledAfterEnd,
                        did,
                        "a reject, which would park the event",
                    );
                    "a reject"
                }
                None => "an answer for none",
            },
        };
        Ok(format!("ended in order; a call after that: {told}"))
    }

    async fn build_again(&mut self) -> Result<(), Stop> {
        self.instance.bury();
        if let Some(within) = &mut self.within {
            let opened = within.open_again().await;
            opened.map_err(ConformanceError::from)?;
        }
        match Instance::start(self.registry, self.config, self.within.clone()) {
            Ok(instance) => {
                self.instance = instance;
                Ok(())
            }
            Err(error) => {
                let did = "built it anew from the same configuration";
                let mut ears = self.ears();
                ears.wrong(Mistake::NotBuiltAgain, did, error.to_string());
                Err(Stop::Broken("it cannot be built again"))
            }
        }
    }
}

fn one_answer(answer: BatchAnswer) -> Option<Answer> {
    match answer {
        BatchAnswer::All(answer) => Some(answer),
        BatchAnswer::Each(answers) => answers.into_iter().next(),
    }
}
