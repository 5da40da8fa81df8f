//! `orgstream dead-letters retry`: asks in the store, and watches what the owner makes of it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::super::Failure;
use super::super::connect::{JsonFlag, read};
use super::super::interrupt::Interrupt;
use super::super::output::{Progress, note, one_line, print_json, print_line};
use super::choice::Choice;
use crate::letters;
use crate::letters::shown::Configured;
use crate::letters::ways::{Way, ways};
use crate::store::{LetterSelection, LetterSummary, Store};

/// How often the store is looked at: seldomer the longer it takes.
const LOOK_EVERY: Duration = Duration::from_millis(400);
const LOOK_SELDOM: Duration = Duration::from_secs(3);

/// How often all that are open are looked at although none of those that were asked for has changed: what
/// they wait behind may have.
const LOOK_AROUND: Duration = Duration::from_secs(5);

/// How long a subscription may be without a worker before nobody waits for it: a restart takes less.
const NO_WORKER: Duration = Duration::from_secs(10);

/// Letters whose fate is told one by one.
const TOLD: usize = 20;

/// Hand parked events over once more.
///
/// Whoever runs the subscription hands them to the same handler, oldest first and in the order of their
/// records, out of the store: nothing is delivered a second time. One that is handled lets those go that were
/// parked behind it, without being asked for them. One that is refused again stays parked, with the new error.
/// One that could not be decoded is decoded anew, with the schema that wrote it, and given to every handler.
///
/// Waits until each is handled or refused, or waits itself behind another parked event that nobody asked for,
/// and says which. Ctrl-C takes back what was not tried yet; once more, and the command ends at once.
///
/// Exits with 1 if not all of them were handled.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  orgstream dead-letters retry 7 8\n  orgstream dead-letters retry --handler fulfilment --reason exhausted\n  orgstream dead-letters retry --all --no-wait"
)]
pub(super) struct RetryArgs {
    #[command(flatten)]
    choice: Choice,
    /// Ask, and do not wait for what comes of it
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    output: JsonFlag,
}

/// What came of it.
#[derive(Debug, Default)]
struct Outcome {
    handled: BTreeSet<i64>,
    discarded: BTreeSet<i64>,
    /// With the new error.
    refused: BTreeMap<i64, String>,
    /// Behind another one that rests.
    behind: BTreeMap<i64, i64>,
    /// Asked for, and not tried yet.
    waiting: BTreeSet<i64>,
    /// Taken back.
    withdrawn: BTreeSet<i64>,
}

pub(super) async fn run(
    store: &dyn Store,
    configured: &Configured,
    args: RetryArgs,
) -> Result<ExitCode, Failure> {
    let chosen = args.choice.open(store).await?;
    let (orphans, chosen): (Vec<_>, Vec<_>) = chosen
        .into_iter()
        .partition(|letter| configured.has_no_handler(letter));
    tell_orphans(&orphans);
    if chosen.is_empty() {
        if orphans.is_empty() {
            note("no parked events are open that you name");
        }
        if args.output.json {
            print_json(&Outcome::default().json())?;
        }
        return Ok(ExitCode::from(u8::from(!orphans.is_empty())));
    }
    // Before they are marked: a Ctrl-C in between has to take that back.
    let interrupt = Interrupt::listen()?;
    let subscriptions = chosen.iter().map(|one| one.subscription.clone()).collect();
    let ids = chosen.iter().map(|letter| letter.placed.id).collect();
    let selection = LetterSelection {
        ids,
        ..LetterSelection::default()
    };
    let asked: BTreeSet<i64> = read(store.ask_retry(&selection).await)?
        .into_iter()
        .collect();
    let unordered = configured.unordered();
    let mut watch = Watch {
        store,
        unordered: &unordered,
        subscriptions,
        asked,
        own: BTreeSet::new(),
        seen: None,
        outcome: Outcome::default(),
        unattended: None,
    };
    let finished = if args.no_wait {
        watch.look().await?;
        true
    } else {
        watch.wait(&interrupt, args.output.json).await?
    };
    let well = orphans.is_empty() && (args.no_wait || watch.outcome.is_well());
    watch.outcome.tell(args.output.json, args.no_wait)?;
    if let Some(name) = watch.worker_missing().await? {
        note(&format!(
            "no worker runs `{name}` now: what is asked for is tried once one does"
        ));
    }
    Ok(ExitCode::from(u8::from(!(finished && well))))
}

/// Letters that nobody can be given.
fn tell_orphans(orphans: &[LetterSummary]) {
    for letter in orphans.iter().take(TOLD) {
        note(&letters::orphan(letter));
    }
    if let Some(more) = orphans.len().checked_sub(TOLD).filter(|more| *more > 0) {
        note(&format!("and {more} more, for the same reason"));
    }
}

/// Letters that were asked for.
struct Watch<'a> {
    store: &'a dyn Store,
    unordered: &'a HashSet<String>,
    /// Those of the letters.
    subscriptions: BTreeSet<String>,
    asked: BTreeSet<i64>,
    /// Letters of handlers in the place of one that was asked for, which counts for those they handle.
    own: BTreeSet<i64>,
    /// How they were when all that are open were looked at last, and when that was.
    seen: Option<(Instant, Vec<LetterSummary>)>,
    outcome: Outcome,
    /// Since when nobody runs a subscription of theirs.
    unattended: Option<Instant>,
}

impl Watch<'_> {
    /// True where all are settled, or can be only by something else first.
    async fn wait(&mut self, interrupt: &Interrupt, json: bool) -> Result<bool, Failure> {
        let mut progress = Progress::new(!json);
        let began = Instant::now();
        loop {
            // The store may hang.
            let Some(settled) = interrupt.or(self.look_on(&mut progress)).await else {
                break;
            };
            if let Some(all) = settled? {
                return Ok(all);
            }
            let pause = (began.elapsed() / 10).clamp(LOOK_EVERY, LOOK_SELDOM);
            if interrupt.or(tokio::time::sleep(pause)).await.is_none() {
                break;
            }
        }
        self.withdraw().await?;
        Ok(false)
    }

    /// One look, and what it shows: whether all are settled, `None` where it is worth waiting.
    async fn look_on(&mut self, progress: &mut Progress) -> Result<Option<bool>, Failure> {
        self.look().await?;
        let outcome = &self.outcome;
        progress.show(&format!(
            "{} handled, {} refused again, {} still waiting",
            outcome.handled.len(),
            outcome.refused.len(),
            outcome.waiting.len() + outcome.behind.len(),
        ));
        if outcome.waiting.is_empty() {
            return Ok(Some(true));
        }
        if self.worker_missing().await?.is_none() {
            self.unattended = None;
            return Ok(None);
        }
        let since = self.unattended.get_or_insert_with(Instant::now);
        Ok((since.elapsed() >= NO_WORKER).then_some(false))
    }

    /// Looks what became of them, and of those that came in the place of one.
    async fn look(&mut self) -> Result<(), Failure> {
        while self.look_once().await? {}
        Ok(())
    }

    /// True where there are more to look at now.
    async fn look_once(&mut self) -> Result<bool, Failure> {
        let ids: Vec<i64> = self.asked.union(&self.own).copied().collect();
        let letters = read(self.store.letter_summaries(&ids).await)?;
        let same = |(at, seen): &(Instant, _)| *seen == letters && at.elapsed() < LOOK_AROUND;
        if self.seen.as_ref().is_some_and(same) {
            return Ok(false);
        }
        let mut open = Vec::new();
        for subscription in &self.subscriptions {
            let selection = LetterSelection {
                subscription: Some(subscription.clone()),
                ..LetterSelection::default()
            };
            open.extend(read(self.store.select_letters(&selection).await)?);
        }
        self.seen = Some((Instant::now(), letters.clone()));
        let ways = ways(&open, self.unordered);
        let known = self.own.len();
        let mut outcome = Outcome::default();
        for letter in &letters {
            let id = letter.placed.id;
            match (letter.state.as_str(), letter.asked, ways.get(&id)) {
                ("handled", ..) if self.own.contains(&id) => {}
                ("handled", ..) => {
                    outcome.handled.insert(id);
                    self.follow(letter, &open);
                }
                ("open", true, Some(Way::Behind(other))) => _ = outcome.behind.insert(id, *other),
                // What was passed on to a handler goes by itself.
                ("open", false, Some(Way::Free)) | ("open", true, _) => {
                    outcome.waiting.insert(id);
                }
                ("open", false, _) => {
                    let error = format!("{}: {}", letter.reason, letter.error);
                    outcome.refused.insert(id, error);
                }
                _ => _ = outcome.discarded.insert(id),
            }
        }
        outcome.withdrawn = std::mem::take(&mut self.outcome.withdrawn);
        self.outcome = outcome;
        Ok(self.own.len() > known)
    }

    /// A letter of everyone was passed on: those of the handlers, in its place, are what was asked for.
    fn follow(&mut self, letter: &LetterSummary, open: &[LetterSummary]) {
        if letter.handler.is_some() {
            return;
        }
        let own = open.iter().filter(|other| {
            other.subscription == letter.subscription
                && other.placed.place == letter.placed.place
                && other.handler.is_some()
        });
        self.own.extend(own.map(|other| other.placed.id));
    }

    /// Takes back what was not tried yet.
    async fn withdraw(&mut self) -> Result<(), Failure> {
        let waiting = self
            .outcome
            .waiting
            .iter()
            .chain(self.outcome.behind.keys());
        let ids: Vec<i64> = waiting.copied().collect();
        let withdrawn = read(self.store.withdraw_retry(&ids).await)?;
        self.seen = None;
        self.look().await?;
        for id in withdrawn {
            self.outcome.refused.remove(&id);
            self.outcome.waiting.remove(&id);
            self.outcome.withdrawn.insert(id);
        }
        Ok(())
    }

    /// A subscription with letters that wait, and nobody to run it.
    async fn worker_missing(&self) -> Result<Option<String>, Failure> {
        if self.outcome.waiting.is_empty() {
            return Ok(None);
        }
        let waits = |one: &&LetterSummary| self.outcome.waiting.contains(&one.placed.id);
        let letters = self.seen.iter().flat_map(|(_, letters)| letters);
        let names: BTreeSet<&str> = letters
            .filter(waits)
            .map(|one| one.subscription.as_str())
            .collect();
        let all = read(self.store.subscriptions().await)?;
        let missing = all
            .into_iter()
            .find(|one| names.contains(one.key.name.as_str()) && !one.held);
        Ok(missing.map(|one| one.key.name))
    }
}

impl Outcome {
    fn is_well(&self) -> bool {
        self.refused.is_empty()
            && self.behind.is_empty()
            && self.waiting.is_empty()
            && self.discarded.is_empty()
            && self.withdrawn.is_empty()
    }

    fn tell(&self, json: bool, only_asked: bool) -> Result<(), Failure> {
        if json {
            return print_json(&self.json());
        }
        if only_asked {
            let count = self.waiting.len() + self.behind.len();
            print_line(&format!("{count} will be tried again"))?;
        } else {
            print_line(&self.counts())?;
        }
        for (id, error) in self.refused.iter().take(TOLD) {
            note(&format!("{id} was refused again: {}", one_line(error)));
        }
        for (id, other) in self.behind.iter().take(TOLD) {
            note(&format!(
                "{id} waits behind {other}, which nobody asked to retry: `orgstream dead-letters retry {other}`, or \
                 discard it, and {id} follows"
            ));
        }
        let told = self.refused.len().min(TOLD) + self.behind.len().min(TOLD);
        let untold = self.refused.len() + self.behind.len() - told;
        if untold > 0 {
            note(&format!(
                "and {untold} more: see `orgstream dead-letters list`"
            ));
        }
        Ok(())
    }

    fn counts(&self) -> String {
        let counts = [
            (self.handled.len(), "handled"),
            (self.refused.len(), "refused again"),
            (self.behind.len(), "waiting behind others"),
            (self.waiting.len(), "not tried yet"),
            (self.discarded.len(), "discarded meanwhile"),
            (self.withdrawn.len(), "taken back untried"),
        ];
        let told = counts.iter().filter(|(count, _)| *count > 0);
        let told: Vec<String> = told
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        told.join(", ")
    }

    fn json(&self) -> Value {
        let refused = |(id, error): (&i64, &String)| json!({"id": id, "error": error});
        let behind = |(id, other): (&i64, &i64)| json!({"id": id, "behind": other});
        json!({
            "handled": self.handled,
            "refused": self.refused.iter().map(refused).collect::<Vec<_>>(),
            "behind": self.behind.iter().map(behind).collect::<Vec<_>>(),
            "waiting": self.waiting,
            "discarded": self.discarded,
            "withdrawn": self.withdrawn,
        })
    }
}
