//! The script: what is done with a handler, step by step, and what is expected of it.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::call::{Came, Instance, Within};
use super::events::{LARGEST, Made, Maker};
use super::far_side::{Seen, View};
use super::hand_over::{Broken, Ears, Lanes, Rules, Verdict, hand_over};
use super::report::{Mistake, Notebook, Report, Step};
use super::{ConformanceError, Script};
use crate::config::{Group, HandlerConfig, SubscriptionConfig};
use crate::handler::{Answer, BatchAnswer, BatchLimits, EventBatch, Registry};

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

/// How long a handler may take to end.
const END: Duration = Duration::from_secs(5);

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

    async fn ready(&mut self) -> Result<String, Stop> {
        let did = "asked it for its check, as `orgstream check` does";
        if let Err(why) = self.instance.check().await {
            self.notebook
                .wrong(Step::Ready, Mistake::NotReady, did, why);
            return Err(Stop::Broken("its check says that it is not ready"));
        }
        if self.limits.events == 0 {
            let did = "asked it how much it wants in one call";
            let came = "no event at all, or a panic";
            self.notebook
                .wrong(Step::Ready, Mistake::LimitOfNothing, did, came);
            self.limits.events = 1;
        }
        Ok(format!(
            "its check is content; it takes up to {} in a call",
            count(self.limits.events, "event")
        ))
    }

    async fn order(&mut self) -> Result<String, Stop> {
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
        let verdicts = self.hand(Step::Order, &rules, &events, &did).await?;
        self.expect_handled(
            Step::Order,
            &did,
            &events,
            &verdicts,
            Mistake::RejectedSound,
        );
        let there = self.look(Step::Order, &did, &events, &verdicts).await?;
        if !verdicts.contains(&Verdict::Handled) {
            return Err(Stop::Broken("it has handled no event"));
        }
        self.first = events;
        Ok(format!("{what}, {calls}; {}", there.told))
    }

    /// The same events, as after a crash before their end was stored; then each in a call of its own.
    async fn repeats(&mut self) -> Result<String, Stop> {
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
            let verdicts = self.hand(Step::Repeats, &rules, &events, &did).await?;
            self.expect_handled(
                Step::Repeats,
                &did,
                &events,
                &verdicts,
                Mistake::RepeatRefused,
            );
            let there = self.look(Step::Repeats, &did, &events, &verdicts).await?;
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

    async fn batch(&mut self) -> Result<String, Stop> {
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
        let verdicts = self.hand(Step::Batch, &rules, &events, &did).await?;
        self.expect_handled(
            Step::Batch,
            &did,
            &events,
            &verdicts,
            Mistake::RejectedSound,
        );
        self.look(Step::Batch, &did, &events, &verdicts).await?;
        let record = self.maker.new_record();
        let Some(largest) = self.maker.largest(&record)? else {
            return Ok(format!("{full} in one call"));
        };
        let small = self.sound(&[record], 1)?;
        let did =
            format!("handed over an event of {LARGEST} bytes, the most that an event may have");
        let large = [largest];
        let verdicts = self.hand(Step::Batch, &rules, &large, &did).await?;
        let fate = match verdicts.first() {
            Some(Verdict::GivenUp(reason)) => {
                let mut ears = self.ears(Step::Batch);
                let came = format!("a retry each time: {}", ears.shown(reason));
                ears.wrong(Mistake::RetriesBad, &did, came);
                "wanted again and again".to_owned()
            }
            Some(Verdict::Rejected(reason)) => {
                format!("rejected ({})", self.ears(Step::Batch).shown(reason))
            }
            Some(Verdict::Broke) | None => "without an answer".to_owned(),
            Some(Verdict::Handled) => "handled".to_owned(),
        };
        self.look(Step::Batch, &did, &large, &verdicts).await?;
        let did = "handed over a small event after the largest";
        let verdicts = self.hand(Step::Batch, &rules, &small, did).await?;
        self.expect_handled(Step::Batch, did, &small, &verdicts, Mistake::RejectedSound);
        Ok(format!("{full} in one call; one of {LARGEST} bytes {fate}"))
    }

    async fn transaction(&mut self) -> Result<String, Stop> {
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
        let verdicts = self.hand(Step::Transaction, &rules, &events, &did).await?;
        self.expect_handled(
            Step::Transaction,
            &did,
            &events,
            &verdicts,
            Mistake::RejectedSound,
        );
        self.look(Step::Transaction, &did, &events, &verdicts)
            .await?;
        Ok(format!("{what} in one call"))
    }

    /// Odd events and the bad one, each between sound ones.
    async fn reject(&mut self) -> Result<String, Stop> {
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
        }
        if self.maker.knows_bad() {
            let records = self.maker.new_records(2);
            push(self.maker.sound(&records[0])?, Sort::Sound);
            push(self.maker.bad(&records[1])?, Sort::Bad);
        }
        let record = self.maker.new_record();
        push(self.maker.sound(&record)?, Sort::Sound);
        let did = "handed over odd events among sound ones";
        let verdicts = self.hand(Step::Reject, &rules, &events, did).await?;
        let mut odd = (0, 0);
        for ((made, kind), verdict) in events.iter().zip(&kinds).zip(&verdicts) {
            match (kind, verdict) {
                (Sort::Odd, Verdict::Handled) => odd.0 += 1,
                (Sort::Odd, Verdict::Rejected(_)) => odd.1 += 1,
                _ => {}
            }
            self.judge(*kind, made, verdict);
        }
        self.look(Step::Reject, did, &events, &verdicts).await?;
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
        let mut ears = self.ears(Step::Reject);
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
    async fn slow(&mut self) -> Result<String, Stop> {
        let rules = Rules {
            concurrency: 1,
            ..self.rules()
        };
        let record = self.maker.new_record();
        let one = self.sound(&[record], 1)?;
        let began = tokio::time::Instant::now();
        let did = "handed over one event";
        let verdicts = self.hand(Step::Slow, &rules, &one, did).await?;
        self.expect_handled(Step::Slow, did, &one, &verdicts, Mistake::RejectedSound);
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
                    self.ears(Step::Slow).wrong(Mistake::NoAnswer, &did, came);
                    return Err(Broken.into());
                }
            }
            let verdicts = self.hand(Step::Slow, &rules, &events, &did).await?;
            self.expect_handled(Step::Slow, &did, &events, &verdicts, Mistake::RepeatRefused);
            all.extend(events);
            fates.extend(verdicts);
        }
        let did = "dropped calls in the middle, then handed their events over again";
        self.look(Step::Slow, did, &all, &fates).await?;
        Ok(format!(
            "{dropped} of 5 calls dropped in the middle, their events handed over again; the longest call so far \
             took {} ms",
            self.longest.as_millis()
        ))
    }

    /// Killed after its answers, and killed in the middle of calls.
    async fn restart(&mut self) -> Result<String, Stop> {
        let rules = self.rules();
        let records = self.records(4);
        let before = self.sound(&records, 3)?;
        let did = format!(
            "handed over {}, and ended everything that the handler does when it had answered",
            count(before.len(), "event")
        );
        let verdicts = self.hand(Step::Restart, &rules, &before, &did).await?;
        self.instance.kill();
        self.expect_handled(
            Step::Restart,
            &did,
            &before,
            &verdicts,
            Mistake::RejectedSound,
        );
        self.look(Step::Restart, &did, &before, &verdicts).await?;
        self.build_again()?;

        let during = self.sound(&records, 3)?;
        self.kill_in_the_middle(&rules, &during).await;
        self.build_again()?;
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
        let verdicts = self.hand(Step::Restart, &rules, &events, &did).await?;
        self.expect_handled(
            Step::Restart,
            &did,
            &events,
            &verdicts,
            Mistake::RepeatRefused,
        );
        let last = self.look(Step::Restart, &did, &events, &verdicts).await?;
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
            let Some((_, batch)) = lanes.next_call() else {
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

    async fn close(&mut self) -> Result<String, Stop> {
        let rules = self.rules();
        let records = self.records(1);
        let events = self.sound(&records, 2)?;
        let did = "handed over two events, and told it that the process ends";
        let verdicts = self.hand(Step::Close, &rules, &events, did).await?;
        self.expect_handled(Step::Close, did, &events, &verdicts, Mistake::RejectedSound);
        if !self.instance.close(END).await {
            let came = format!("it had not ended after {} s, or it panicked", END.as_secs());
            self.ears(Step::Close).note(Mistake::SlowEnd, did, came);
        }
        self.look(Step::Close, did, &events, &verdicts).await?;
        let late = self.sound(&records, 1)?;
        let limit = rules.call_limit.min(2 * END);
        let call = self.instance.call(self.batch_of(&late), 1, limit).await;
        let did = "called it after its end, with one event";
        let mut ears = self.ears(Step::Close);
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
                    self.look(Step::Close, did, &late, &[Verdict::Handled])
                        .await?;
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

    fn build_again(&mut self) -> Result<(), Stop> {
        self.instance.bury();
        match Instance::start(self.registry, self.config, self.within.clone()) {
            Ok(instance) => {
                self.instance = instance;
                Ok(())
            }
            Err(error) => {
                let did = "built it anew from the same configuration";
                let mut ears = self.ears(Step::Restart);
                ears.wrong(Mistake::NotBuiltAgain, did, error.to_string());
                Err(Stop::Broken("it cannot be built again"))
            }
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
        }
    }

    fn batch_of(&self, events: &[Made]) -> EventBatch {
        EventBatch {
            subscription: self.subscription.name.as_str().into(),
            events: events.iter().map(|made| made.event.clone()).collect(),
        }
    }

    fn ears(&mut self, step: Step) -> Ears<'_> {
        Ears {
            step,
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

    /// The events of the first step: by turns, and then those of each record in a row, so that batches of every
    /// size have several of one record.
    fn of_records(&mut self, records: &[String]) -> Result<Vec<Made>, Stop> {
        let mut events = self.sound(records, ROUNDS / 2)?;
        for record in records {
            events.extend(self.sound(std::slice::from_ref(record), ROUNDS / 2)?);
        }
        Ok(events)
    }

    async fn hand(
        &mut self,
        step: Step,
        rules: &Rules,
        events: &[Made],
        did: &str,
    ) -> Result<Vec<Verdict>, Stop> {
        let mut ears = Ears {
            step,
            notebook: &mut self.notebook,
            secrets: &self.secrets,
            longest: &mut self.longest,
        };
        Ok(hand_over(&self.instance, rules, events, did, &mut ears).await?)
    }

    /// All of these should have been handled.
    fn expect_handled(
        &mut self,
        step: Step,
        did: &str,
        events: &[Made],
        verdicts: &[Verdict],
        refused: Mistake,
    ) {
        // What it has finished is not handed to a transactional handler again, but by a replay.
        let is_note = refused == Mistake::RepeatRefused && self.instance.is_transactional();
        let mut ears = self.ears(step);
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
        step: Step,
        did: &str,
        events: &[Made],
        verdicts: &[Verdict],
    ) -> Result<There, Stop> {
        let Some(view) = &self.view else {
            return Ok(There::unknown(&self.within));
        };
        let handled: Vec<&Made> = events
            .iter()
            .zip(verdicts)
            .filter(|(_, verdict)| **verdict == Verdict::Handled)
            .map(|(made, _)| made)
            .collect();
        let numbers: Vec<usize> = handled.iter().map(|made| made.number).collect();
        let seen = view.look(&numbers).await;
        let seen = seen.map_err(ConformanceError::FarSide)?;
        let in_order: Vec<_> = handled
            .iter()
            .map(|made| (made.number, made.records.clone()))
            .collect();
        Ok(self.compare(step, did, &numbers, &in_order, &seen))
    }

    fn compare(
        &mut self,
        step: Step,
        did: &str,
        numbers: &[usize],
        in_order: &[(usize, Vec<Box<str>>)],
        seen: &Seen,
    ) -> There {
        let mark = self.maker.mark();
        let settle = self.script.settle;
        let mut ears = self.ears(step);
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
            repeated: Some(seen.repeated(numbers)),
        }
    }
}

/// What an event of the step `reject` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Sound,
    Odd,
    Bad,
}

/// What a look at the other side gave.
struct There {
    told: &'static str,
    lost: bool,
    /// How many arrived more than once; none where nobody looked.
    repeated: Option<usize>,
}

impl There {
    fn unknown(within: &Option<Within>) -> Self {
        Self {
            told: match within {
                Some(within) if !within.commit => "rolled back",
                _ => "what arrived was not looked at (--received)",
            },
            lost: false,
            repeated: None,
        }
    }
}

fn one_answer(answer: BatchAnswer) -> Option<Answer> {
    match answer {
        BatchAnswer::All(answer) => Some(answer),
        BatchAnswer::Each(answers) => answers.into_iter().next(),
    }
}

/// `1 event`, `3 events`.
fn count(number: usize, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        several => format!("{several} {what}s"),
    }
}
