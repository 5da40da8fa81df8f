//! Handlers that are broken on purpose, one for each mistake: each is found, with the right finding. A sound one
//! is not found guilty of anything.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

use serde_json::json;

use super::*;
use crate::event::Event;
use crate::handler::{
    Answer, BatchAnswer, BatchLimits, EventBatch, Handler, Options, Retry, async_trait,
};

/// What the handlers of a test write to: it outlives each of them.
#[derive(Default)]
struct Shelf {
    /// The `id` of each arrival, in order.
    kept: Mutex<Vec<String>>,
}

impl Shelf {
    fn keep(&self, event: &Event) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(event.identity().as_str().to_owned());
    }

    fn has(&self, event: &Event) -> bool {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().any(|id| id == event.identity().as_str())
    }
}

#[async_trait]
impl FarSide for Shelf {
    async fn received(&self) -> Result<Vec<String>, String> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(kept.clone())
    }
}

/// What is wrong with a handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    Nothing,
    /// One event a call, and a pause in each.
    OneByOne,
    Reorders,
    AnswersBeforeItIsDone,
    WritesWhenItHasMany,
    RejectsTheWholeBatch,
    GivesTooFewAnswers,
    PanicsOnRepeats,
    RejectsRepeats,
    NeverAnswers,
    BlocksItsThread,
    ShowsThePayload,
    ShowsThePayloadInARetry,
    GivesNoReason,
    TakesWhatIsBad,
    RetriesWhatIsBad,
    RetriesAll,
    RejectsAll,
    HandlesPastARetry,
    HandlesPastAReject,
    KeepsALockWhenDropped,
    PanicsOnOddEvents,
    WantsNothing,
    IsNotReady,
    CannotBeBuiltTwice,
    NeverEnds,
    IsGoneAfterItsEnd,
}

struct Subject {
    flaw: Flaw,
    shelf: Arc<Shelf>,
    calls: AtomicUsize,
    held: Arc<Mutex<Vec<Arc<Event>>>>,
    busy: std::sync::atomic::AtomicBool,
    ended: std::sync::atomic::AtomicBool,
}

fn data(event: &Event) -> String {
    String::from_utf8_lossy(&event.decoded.data).into_owned()
}

/// What a sound handler refuses here: texts with U+0000, and what the test calls bad.
fn is_bad(event: &Event) -> bool {
    let data = data(event);
    data.contains("\\u0000") || data.contains("really bad")
}

fn reject(reason: impl Into<String>) -> Answer {
    Answer::Reject {
        reason: reason.into(),
    }
}

impl Subject {
    fn take(&self, event: &Event) -> Answer {
        if is_bad(event) {
            return reject("a text has a character that the shelf cannot hold");
        }
        self.shelf.keep(event);
        Answer::Handled
    }

    fn each(&self, batch: &EventBatch) -> BatchAnswer {
        BatchAnswer::Each(batch.events.iter().map(|event| self.take(event)).collect())
    }

    /// None past one that is refused.
    fn each_in_order(&self, batch: &EventBatch) -> BatchAnswer {
        let mut answers: Vec<Answer> = Vec::new();
        for event in &batch.events {
            answers.push(match answers.last() {
                None | Some(Answer::Handled) => self.take(event),
                Some(_) => Answer::Retry(Retry::because("one before it was refused").uncounted()),
            });
        }
        BatchAnswer::Each(answers)
    }

    async fn handle_badly(&self, batch: &EventBatch) -> BatchAnswer {
        let events = &batch.events;
        let call = self.calls.fetch_add(1, SeqCst);
        match self.flaw {
            Flaw::OneByOne => tokio::time::sleep(Duration::from_millis(3)).await,
            Flaw::Reorders => {
                let mut answers: Vec<Answer> =
                    events.iter().rev().map(|event| self.take(event)).collect();
                answers.reverse();
                return BatchAnswer::Each(answers);
            }
            Flaw::AnswersBeforeItIsDone => {
                let (shelf, events) = (self.shelf.clone(), events.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    events.iter().for_each(|event| shelf.keep(event));
                });
                return BatchAnswer::HANDLED;
            }
            Flaw::WritesWhenItHasMany => {
                let mut held = self.held.lock().unwrap();
                held.extend(events.iter().cloned());
                if held.len() >= 7 {
                    held.drain(..).for_each(|event| self.shelf.keep(&event));
                }
                return BatchAnswer::HANDLED;
            }
            Flaw::RejectsTheWholeBatch if events.iter().any(|event| is_bad(event)) => {
                return BatchAnswer::Each(vec![reject("the batch was refused"); events.len()]);
            }
            Flaw::GivesTooFewAnswers if events.len() > 1 => {
                return BatchAnswer::Each(vec![Answer::Handled; events.len() - 1]);
            }
            Flaw::PanicsOnRepeats => {
                assert!(!events.iter().any(|event| self.shelf.has(event)), "again?");
            }
            Flaw::RejectsRepeats if events.iter().any(|event| self.shelf.has(event)) => {
                return BatchAnswer::All(reject("a duplicate key"));
            }
            Flaw::NeverAnswers if call > 5 => std::future::pending().await,
            #[expect(clippy::disallowed_methods, reason = "that is the mistake")]
            Flaw::BlocksItsThread if call > 5 => std::thread::sleep(Duration::from_secs(5)),
            Flaw::ShowsThePayload => {
                let taken = |event: &Arc<Event>| match is_bad(event) {
                    true => reject(format!("refused: {}", data(event))),
                    false => self.take(event),
                };
                return BatchAnswer::Each(events.iter().map(taken).collect());
            }
            Flaw::ShowsThePayloadInARetry if call.is_multiple_of(5) => {
                return BatchAnswer::retry(format!("not now: {}", data(&events[0])));
            }
            Flaw::GivesNoReason if events.iter().any(|event| is_bad(event)) => {
                return BatchAnswer::All(reject(" "));
            }
            Flaw::TakesWhatIsBad => {
                events.iter().for_each(|event| self.shelf.keep(event));
                return BatchAnswer::HANDLED;
            }
            Flaw::RetriesWhatIsBad if events.iter().any(|event| is_bad(event)) => {
                return BatchAnswer::retry("the shelf refused it");
            }
            Flaw::RetriesAll => return BatchAnswer::retry("the shelf is full"),
            Flaw::RejectsAll => return BatchAnswer::All(reject("field Amount__c is missing")),
            Flaw::HandlesPastARetry if events.len() > 1 && call.is_multiple_of(3) => {
                let BatchAnswer::Each(mut answers) = self.each(batch) else {
                    return BatchAnswer::HANDLED;
                };
                answers[0] = Answer::Retry(Retry::because("not this one"));
                return BatchAnswer::Each(answers);
            }
            Flaw::HandlesPastAReject => return self.each(batch),
            Flaw::KeepsALockWhenDropped => {
                while self.busy.swap(true, SeqCst) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                let answer = self.each(batch);
                self.busy.store(false, SeqCst);
                return answer;
            }
            Flaw::PanicsOnOddEvents => {
                let changed = |event: &Arc<Event>| data(event).contains("GAP_");
                assert!(!events.iter().any(changed), "a change without its fields");
            }
            Flaw::IsGoneAfterItsEnd => assert!(!self.ended.load(SeqCst), "ended"),
            _ => {}
        }
        self.each_in_order(batch)
    }
}

#[async_trait]
impl Handler for Subject {
    async fn handle(&self, batch: &EventBatch) -> BatchAnswer {
        self.handle_badly(batch).await
    }

    fn batch_limits(&self) -> BatchLimits {
        BatchLimits {
            events: match self.flaw {
                Flaw::OneByOne | Flaw::PanicsOnOddEvents => 1,
                Flaw::WantsNothing => 0,
                _ => 10,
            },
            bytes: 1 << 20,
        }
    }

    async fn check(&self) -> Result<(), String> {
        match self.flaw {
            Flaw::IsNotReady => Err("the shelf is not there: put one up".to_owned()),
            _ => Ok(()),
        }
    }

    async fn close(&self, _: Duration) {
        self.ended.store(true, SeqCst);
        if self.flaw == Flaw::NeverEnds {
            std::future::pending::<()>().await;
        }
    }
}

/// Runs the script with a handler that has this flaw, of a subscription to this topic.
async fn tried(flaw: Flaw, topic: &str, change: impl FnOnce(&mut Script)) -> Report {
    let shelf = Arc::new(Shelf::default());
    let mut registry = Registry::builtin();
    let built = AtomicUsize::new(0);
    let written = shelf.clone();
    registry.register("subject", move |config| {
        Options::new(config).finish(Some(()))?;
        if built.fetch_add(1, SeqCst) > 0 && flaw == Flaw::CannotBeBuiltTwice {
            return Err(HandlerConfigError::setup(config, "the port is taken"));
        }
        Ok(Arc::new(Subject {
            flaw,
            shelf: written.clone(),
            calls: AtomicUsize::new(0),
            held: Arc::default(),
            busy: false.into(),
            ended: false.into(),
        }))
    });
    let subscription = SubscriptionConfig::new("things", topic.parse().unwrap());
    let mut script = Script {
        call_limit: Duration::from_secs(2),
        patience: Duration::from_millis(1500),
        settle: Duration::from_millis(500),
        bad: Some(json!({"AccountNumber": "really bad"})),
        far_side: Some(shelf),
        ..Script::default()
    };
    change(&mut script);
    let handler = HandlerConfig::new("subject");
    let report = run(&registry, &subscription, &handler, &script).await;
    report.unwrap()
}

async fn of_accounts(flaw: Flaw) -> Report {
    tried(flaw, "/data/AccountChangeEvent", |_| {}).await
}

fn outcome_of(report: &Report, step: Step) -> Outcome {
    let found = report.steps.iter().find(|one| one.step == step);
    found
        .unwrap_or_else(|| panic!("no step {step:?}:\n{report}"))
        .outcome
}

/// The step and the severity of a mistake, which has to be there.
fn found(report: &Report, mistake: Mistake) -> (Step, Outcome) {
    let finding = report
        .finding(mistake)
        .unwrap_or_else(|| panic!("{mistake:?} was not found:\n{report}"));
    (finding.step, finding.severity)
}

#[tokio::test]
async fn a_sound_handler_is_found_to_be_sound() {
    for flaw in [Flaw::Nothing, Flaw::OneByOne] {
        let report = of_accounts(flaw).await;
        assert!(report.is_sound() && report.findings.is_empty(), "{report}");
        assert!(
            report.steps.iter().all(|step| step.outcome == Outcome::Ok),
            "{report}"
        );
        assert!(report.events < MOST_EVENTS, "{report}");
        assert!(
            report.to_string().contains("all there, and in order"),
            "{report}"
        );
    }
}

#[tokio::test]
async fn other_topics_orders_and_groups_are_fine_too() {
    for topic in [
        "/event/Order__e",
        "/data/ChangeEvents",
        "/event/Orders__chn",
    ] {
        let report = tried(Flaw::Nothing, topic, |script| script.bad = None).await;
        assert!(
            report.is_sound() && report.findings.is_empty(),
            "{topic}: {report}"
        );
    }
    let mut registry = Registry::builtin();
    let shelf = Arc::new(Shelf::default());
    let written = shelf.clone();
    registry.register("subject", move |config| {
        Options::new(config).finish(Some(()))?;
        Ok(Arc::new(Subject {
            flaw: Flaw::Nothing,
            shelf: written.clone(),
            calls: AtomicUsize::new(0),
            held: Arc::default(),
            busy: false.into(),
            ended: false.into(),
        }))
    });
    let script = Script {
        far_side: Some(shelf),
        ..Script::default()
    };
    let handler = HandlerConfig::new("subject");
    for change in [
        (|one| one.ordering = crate::config::Ordering::None) as fn(&mut SubscriptionConfig),
        |one| {
            one.ordering = crate::config::Ordering::Strict;
            one.concurrency = 1;
        },
        |one| one.group = crate::config::Group::Transaction,
    ] {
        let mut subscription = SubscriptionConfig::new("things", "Account".parse().unwrap());
        change(&mut subscription);
        let report = run(&registry, &subscription, &handler, &script)
            .await
            .unwrap();
        assert!(report.is_sound() && report.findings.is_empty(), "{report}");
    }
}

#[tokio::test]
async fn one_that_reorders_is_found() {
    let report = of_accounts(Flaw::Reorders).await;
    assert_eq!(
        found(&report, Mistake::OutOfOrder),
        (Step::Order, Outcome::Wrong)
    );
    let finding = report.finding(Mistake::OutOfOrder).unwrap();
    assert!(finding.came.contains(&report.mark), "{report}");
}

#[tokio::test]
async fn one_that_answers_before_it_is_done_is_found() {
    let report = of_accounts(Flaw::AnswersBeforeItIsDone).await;
    assert_eq!(
        found(&report, Mistake::ThereLater),
        (Step::Order, Outcome::Note)
    );
    assert_eq!(
        found(&report, Mistake::NotThere),
        (Step::Restart, Outcome::Wrong)
    );
}

#[tokio::test]
async fn one_that_holds_events_in_memory_is_found() {
    let report = of_accounts(Flaw::WritesWhenItHasMany).await;
    found(&report, Mistake::NotThere);
    assert_eq!(outcome_of(&report, Step::Restart), Outcome::Wrong);
}

#[tokio::test]
async fn one_that_rejects_sound_events_with_a_bad_one_is_found() {
    let report = of_accounts(Flaw::RejectsTheWholeBatch).await;
    let expected = (Step::Reject, Outcome::Wrong);
    assert_eq!(found(&report, Mistake::RejectedWithOthers), expected);
}

#[tokio::test]
async fn one_that_gives_too_few_answers_is_found() {
    let report = of_accounts(Flaw::GivesTooFewAnswers).await;
    assert_eq!(
        found(&report, Mistake::WrongLength),
        (Step::Order, Outcome::Wrong)
    );
    let finding = report.finding(Mistake::WrongLength).unwrap();
    assert!(finding.came.contains("9 answers for 10 events"), "{report}");
}

#[tokio::test]
async fn one_that_panics_or_refuses_when_an_event_comes_again_is_found() {
    let report = of_accounts(Flaw::PanicsOnRepeats).await;
    assert_eq!(
        found(&report, Mistake::Panicked),
        (Step::Repeats, Outcome::Wrong)
    );
    assert_eq!(outcome_of(&report, Step::Order), Outcome::Ok);
    let report = of_accounts(Flaw::RejectsRepeats).await;
    assert_eq!(
        found(&report, Mistake::RepeatRefused),
        (Step::Repeats, Outcome::Wrong)
    );
}

#[tokio::test]
async fn one_that_never_answers_or_blocks_its_thread_is_found_and_the_rest_is_left_out() {
    for flaw in [Flaw::NeverAnswers, Flaw::BlocksItsThread] {
        let report = of_accounts(flaw).await;
        assert_eq!(
            found(&report, Mistake::NoAnswer),
            (Step::Order, Outcome::Wrong)
        );
        assert_eq!(outcome_of(&report, Step::Close), Outcome::Skipped);
    }
}

#[tokio::test]
async fn one_that_shows_the_payload_is_found_and_it_is_not_shown_again() {
    let report = of_accounts(Flaw::ShowsThePayload).await;
    assert_eq!(
        found(&report, Mistake::PayloadInReason),
        (Step::Reject, Outcome::Wrong)
    );
    assert!(!report.to_string().contains("canary"), "{report}");
    let report = of_accounts(Flaw::ShowsThePayloadInARetry).await;
    assert_eq!(
        found(&report, Mistake::PayloadInReason),
        (Step::Order, Outcome::Wrong)
    );
    assert!(!report.to_string().contains("canary"), "{report}");
    let report = of_accounts(Flaw::GivesNoReason).await;
    assert_eq!(
        found(&report, Mistake::NoReason),
        (Step::Reject, Outcome::Note)
    );
    assert!(report.is_sound(), "{report}");
}

#[tokio::test]
async fn one_that_takes_what_it_must_refuse_or_wants_it_again_is_found() {
    let report = of_accounts(Flaw::TakesWhatIsBad).await;
    assert_eq!(
        found(&report, Mistake::TookBad),
        (Step::Reject, Outcome::Wrong)
    );
    let report = of_accounts(Flaw::RetriesWhatIsBad).await;
    assert_eq!(
        found(&report, Mistake::RetriesBad),
        (Step::Reject, Outcome::Wrong)
    );
    assert!(
        report.finding(Mistake::RetriesForEver).is_none(),
        "{report}"
    );
}

#[tokio::test]
async fn one_that_takes_nothing_is_found_and_told_how_to_name_an_event_for_it() {
    for (flaw, mistake) in [
        (Flaw::RetriesAll, Mistake::RetriesForEver),
        (Flaw::RejectsAll, Mistake::RejectedSound),
    ] {
        let report = of_accounts(flaw).await;
        assert_eq!(found(&report, mistake), (Step::Order, Outcome::Wrong));
        assert_eq!(outcome_of(&report, Step::Repeats), Outcome::Skipped);
        let finding = report.finding(mistake).unwrap();
        assert!(finding.mend.contains("--event"), "{report}");
    }
}

#[tokio::test]
async fn one_that_handles_past_a_retry_is_found() {
    let report = of_accounts(Flaw::HandlesPastARetry).await;
    assert_eq!(
        found(&report, Mistake::OrderGivenUp),
        (Step::Order, Outcome::Wrong)
    );
}

#[tokio::test]
async fn one_that_handles_past_a_reject_is_found() {
    let report = of_accounts(Flaw::HandlesPastAReject).await;
    assert_eq!(
        found(&report, Mistake::OrderGivenUp),
        (Step::Reject, Outcome::Wrong)
    );
    let finding = report.finding(Mistake::OrderGivenUp).unwrap();
    assert!(
        finding.came.contains("a reject for one before it"),
        "{report}"
    );
}

#[tokio::test]
async fn one_that_a_dropped_call_leaves_locked_is_found() {
    let report = of_accounts(Flaw::KeepsALockWhenDropped).await;
    assert_eq!(
        found(&report, Mistake::NoAnswer),
        (Step::Slow, Outcome::Wrong)
    );
}

#[tokio::test]
async fn one_that_panics_on_an_odd_event_is_found_with_the_event_that_it_was() {
    let report = of_accounts(Flaw::PanicsOnOddEvents).await;
    assert_eq!(
        found(&report, Mistake::Panicked),
        (Step::Reject, Outcome::Wrong)
    );
    let finding = report.finding(Mistake::Panicked).unwrap();
    assert!(finding.did.contains("GAP_UPDATE"), "{report}");
}

#[tokio::test]
async fn beginnings_and_ends_are_looked_at() {
    for (flaw, mistake, step, severity) in [
        (
            Flaw::WantsNothing,
            Mistake::LimitOfNothing,
            Step::Ready,
            Outcome::Wrong,
        ),
        (
            Flaw::IsNotReady,
            Mistake::NotReady,
            Step::Ready,
            Outcome::Wrong,
        ),
        (
            Flaw::CannotBeBuiltTwice,
            Mistake::NotBuiltAgain,
            Step::Restart,
            Outcome::Wrong,
        ),
        (
            Flaw::NeverEnds,
            Mistake::SlowEnd,
            Step::Close,
            Outcome::Note,
        ),
        (
            Flaw::IsGoneAfterItsEnd,
            Mistake::CalledAfterEnd,
            Step::Close,
            Outcome::Note,
        ),
    ] {
        let report = of_accounts(flaw).await;
        assert_eq!(found(&report, mistake), (step, severity), "{report}");
        assert_eq!(report.is_sound(), severity == Outcome::Note, "{report}");
    }
}

#[tokio::test]
async fn without_a_look_at_the_other_side_it_says_that_nobody_looked() {
    let blind = |script: &mut Script| script.far_side = None;
    let report = tried(Flaw::AnswersBeforeItIsDone, "Account", blind).await;
    assert!(report.to_string().contains("not looked at"), "{report}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["steps"][1]["step"], "order");
    assert_eq!(json["steps"][1]["outcome"], "ok");
}

#[tokio::test]
async fn what_keeps_the_script_from_running_is_an_error() {
    let registry = Registry::builtin();
    let subscription = SubscriptionConfig::new("orders", "Order__e".parse().unwrap());
    let mut script = Script {
        sound: Some(json!({"Cty__c": "Lisbon"})),
        ..Script::default()
    };
    let log = HandlerConfig::new("log");
    let error = run(&registry, &subscription, &log, &script)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("no field Cty__c"), "{error}");
    script.sound = None;
    let unknown = HandlerConfig::new("lg");
    let error = run(&registry, &subscription, &unknown, &script)
        .await
        .unwrap_err();
    assert!(matches!(error, ConformanceError::Handler(_)), "{error}");
    let mut rows = HandlerConfig::new("postgres");
    rows.options.insert("mode".into(), "append".into());
    let error = run(&registry, &subscription, &rows, &script)
        .await
        .unwrap_err();
    assert!(matches!(error, ConformanceError::NoStore), "{error}");
}
