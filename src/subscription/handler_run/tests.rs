//! What a handler is given when, and what its answers mean.

use std::time::Duration;

use super::*;
use crate::subscription::lanes::tests::{event, seq as seq_of};
use crate::subscription::tracker::Seq;

const PAUSES: BackoffConfig = BackoffConfig {
    initial: Duration::from_millis(100),
    max: Duration::from_secs(1),
};

fn run(events: usize, batch: usize, on_exhausted: OnExhausted) -> HandlerRun {
    let config = HandlerConfig {
        name: "h".to_owned(),
        retry: RetryConfig {
            attempts: 3,
            backoff: PAUSES,
            total: Duration::from_secs(3600),
        },
        on_exhausted,
        ..HandlerConfig::new("log")
    };
    let limits = BatchLimits {
        events: batch,
        bytes: 1 << 20,
    };
    let mut run = HandlerRun::new(0, &config, limits, 1, PAUSES);
    for seq in 0..events {
        put(&mut run, seq as Seq, &format!("r{seq}"));
    }
    run
}

impl HandlerRun {
    /// The next call, where nothing is held.
    fn call(&mut self, now: Instant) -> Option<(CallId, Vec<Waiting>)> {
        self.next_call(now, &|_| false).map(|next| match next {
            Next::Call(call, batch) => (call, batch),
            other => panic!("{other:?}"),
        })
    }
}

fn put(run: &mut HandlerRun, seq: Seq, record: &str) {
    let unit = Unit::One(event(&[record]));
    run.put(Origin::Live(seq), None, unit, Ordering::Record);
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
        while let Some((call, batch)) = run.call(now) {
            let seqs: Vec<Seq> = batch.iter().map(seq_of).collect();
            let answered = run.answered(now, call, batch, answer(&seqs));
            done.extend(answered.done.into_iter().map(|(w, v)| (seq_of(&w), v)));
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
fn a_handler_that_is_down_for_another_reason_says_so_once() {
    let mut run = run(5, 1, OnExhausted::Park);
    let (mut now, mut said) = (Instant::now(), vec![]);
    for reason in ["no", "no", "no", "no", "else", "else", "no"] {
        let (call, batch) = loop {
            match run.call(now) {
                Some(next) => break next,
                None => now = run.wake_at(now).unwrap(),
            }
        };
        let answered = run.answered(now, call, batch, BatchAnswer::retry(reason));
        said.extend(answered.health);
    }
    let down = |why: &str| Health::Down(why.to_owned());
    assert_eq!(said, [down("no"), down("else"), down("no")]);
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
        put(&mut run, 100 + round, "new");
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

/// Twenty attempts at one event, between which another is handled each time. Gives the last verdict of the one.
fn tried_while_others_succeed(retry: &Retry) -> Option<Verdict> {
    let mut run = run(0, 10, OnExhausted::Park);
    let mut now = Instant::now();
    put(&mut run, 0, "a");
    for round in 1..=20 {
        put(&mut run, round, "others");
        let (call, batch) = run.call(now).unwrap();
        assert_eq!(batch.len(), 2);
        let answers = vec![Answer::Retry(retry.clone()), Answer::Handled];
        let answered = run.answered(now, call, batch, BatchAnswer::Each(answers));
        assert!(!run.is_down());
        if let Some((_, verdict)) = answered.done.into_iter().find(|(w, _)| seq_of(w) == 0) {
            return Some(verdict);
        }
        now += Duration::from_secs(2);
    }
    // But not for ever.
    now += Duration::from_secs(3600);
    let (call, batch) = run.call(now).unwrap();
    let answers = vec![Answer::Retry(retry.clone())];
    let answered = run.answered(now, call, batch, BatchAnswer::Each(answers));
    assert_eq!(answered.done.len(), 1, "the total time is over");
    None
}

#[test]
fn an_attempt_that_does_not_count_parks_nothing_while_others_succeed() {
    let retry = Retry::because("no");
    let parked = tried_while_others_succeed(&retry);
    assert!(matches!(parked, Some(Verdict::Park { .. })), "{parked:?}");
    assert_eq!(tried_while_others_succeed(&retry.uncounted()), None);
}

/// A partition with ten events that are refused and three behind them, while another takes what is for it. Gives
/// what is parked.
fn parked_behind_ten_that_are_refused(behind: &Retry) -> Vec<Seq> {
    let mut run = run(13, 20, OnExhausted::Park);
    let (mut now, mut parked) = (Instant::now(), vec![]);
    for round in 0..12 {
        put(&mut run, 100 + round, "others");
        let (call, batch) = run.call(now).unwrap();
        let mut refused = false;
        let answer = |waiting: &Waiting| match seq_of(waiting) {
            100.. => Answer::Handled,
            _ if refused => Answer::Retry(behind.clone()),
            seq => {
                refused = seq < 10;
                let reason = "too large".to_owned();
                let reject = Answer::Reject { reason };
                if refused { reject } else { Answer::Handled }
            }
        };
        let answers = batch.iter().map(answer).collect();
        let answered = run.answered(now, call, batch, BatchAnswer::Each(answers));
        let done = answered.done.iter();
        parked.extend(
            done.filter(|(_, verdict)| *verdict != Verdict::Handled)
                .map(|(waiting, _)| seq_of(waiting)),
        );
        now += Duration::from_secs(2);
    }
    assert_eq!(run.lanes.waiting(), 0);
    parked
}

#[test]
fn what_stands_behind_events_that_are_refused_is_not_parked_with_them() {
    let behind = Retry::because("behind");
    let counting = parked_behind_ten_that_are_refused(&behind);
    assert!(
        counting.contains(&12),
        "an attempt would count: {counting:?}"
    );
    let refused: Vec<Seq> = (0..10).collect();
    assert_eq!(
        parked_behind_ten_that_are_refused(&behind.uncounted()),
        refused
    );
}

#[test]
fn a_transaction_with_one_attempt_that_counts_counts() {
    let (counted, uncounted) = (Retry::because("own"), Retry::because("behind").uncounted());
    for answers in [[&counted, &uncounted], [&uncounted, &counted]] {
        let [one, other] = answers.map(|retry| Answer::Retry(retry.clone()));
        assert_eq!(worse(one, other), Answer::Retry(counted.clone()));
    }
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
    let (call, batch) = run.call(now).unwrap();
    let asked = Retry::because("429").after(Duration::from_secs(77));
    let answer = BatchAnswer::All(Answer::Retry(asked));
    run.answered(now, call, batch, answer);
    assert_eq!(run.wake_at(now), Some(now + Duration::from_secs(77)));
}

#[test]
fn a_pause_that_was_asked_for_is_kept_when_the_handler_is_back() {
    let mut run = run(5, 1, OnExhausted::Park);
    let start = Instant::now();
    let asked = Duration::from_secs(77);
    let (call, batch) = run.call(start).unwrap();
    let answer = BatchAnswer::All(Answer::Retry(Retry::because("429").after(asked)));
    run.answered(start, call, batch, answer);
    while let Some((call, batch)) = run.call(start) {
        run.answered(start, call, batch, retry());
    }
    assert!(run.is_down());
    let mut now = run.wake_at(start).unwrap();
    assert!(now < start + asked);
    // Back: all go on at once, but for the one.
    let mut handed = vec![];
    while let Some((call, batch)) = run.call(now) {
        handed.extend(batch.iter().map(seq_of));
        run.answered(now, call, batch, BatchAnswer::HANDLED);
    }
    handed.sort_unstable();
    assert_eq!(handed, [1, 2, 3, 4]);
    assert_eq!(run.wake_at(now), Some(start + asked));
    now = start + asked;
    assert_eq!(seq_of(&run.call(now).unwrap().1[0]), 0);
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
    put(&mut run, 0, "a");
    put(&mut run, 1, "b");
    // The two fail together while a third succeeds in between, until their batch is exhausted.
    for round in 0..4 {
        put(&mut run, 100 + round, "ok");
        while let Some((call, batch)) = run.call(now) {
            let good = batch.iter().all(|w| seq_of(w) >= 100);
            let answer = if good { BatchAnswer::HANDLED } else { retry() };
            let answered = run.answered(now, call, batch, answer);
            assert!(answered.done.iter().all(|(w, _)| seq_of(w) >= 100));
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
    let calls: Vec<_> = std::iter::from_fn(|| run.call(now)).collect();
    assert_eq!(calls.len(), 64);
    for (call, batch) in calls {
        run.answered(now, call, batch, retry());
    }
    assert!(run.is_down());
    assert!(run.wake_at(now).unwrap() <= now + PAUSES.initial * 3 / 2);
}

#[test]
fn a_handler_that_is_down_is_held_for_as_long_as_it_asks() {
    let mut run = run(10, 1, OnExhausted::Park);
    let now = Instant::now();
    let asks = || BatchAnswer::All(Answer::Retry(Retry::because("429").after(Duration::MAX)));
    while let Some((call, batch)) = run.call(now) {
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
        put(&mut run, 10 + round, "x");
        while let Some((call, batch)) = run.call(now) {
            let seq = seq_of(&batch[0]);
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
        while let Some((call, batch)) = run.call(now) {
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

fn put_transaction(run: &mut HandlerRun, seq: Seq, records: &[&str]) {
    let events: Vec<_> = records.iter().map(|record| event(&[record])).collect();
    run.put(
        Origin::Live(seq),
        None,
        Unit::Several(events.into()),
        Ordering::Record,
    );
}

#[test]
fn a_transaction_is_alone_in_its_call_and_waits_for_the_records_of_all_its_events() {
    let mut run = run(0, 10, OnExhausted::Park);
    run.concurrency = 8;
    let now = Instant::now();
    put(&mut run, 0, "a");
    put_transaction(&mut run, 1, &["b", "a"]);
    put(&mut run, 3, "b");
    put(&mut run, 4, "c");
    let mut calls = vec![];
    while let Some((call, batch)) = run.call(now) {
        calls.push((call, batch));
    }
    let seqs = |batch: &[Waiting]| batch.iter().map(seq_of).collect::<Vec<_>>();
    let given: Vec<_> = calls.iter().map(|(_, batch)| seqs(batch)).collect();
    assert_eq!(given, [[0], [4]], "3 waits for b of 1, and 1 for a");
    let (call, batch) = calls.remove(0);
    run.answered(now, call, batch, BatchAnswer::HANDLED);
    let (call, batch) = run.call(now).unwrap();
    assert_eq!(seqs(&batch), [1]);
    assert_eq!(batch[0].unit.events().len(), 2);
    assert!(run.call(now).is_none());
    run.answered(now, call, batch, BatchAnswer::HANDLED);
    assert_eq!(seqs(&run.call(now).unwrap().1), [3]);
}

#[test]
fn a_transaction_shares_the_worst_answer_that_one_of_its_events_got() {
    let bad = || Answer::Reject {
        reason: "bad".to_owned(),
    };
    let again = || Answer::Retry(Retry::because("no"));
    for (answers, rejected) in [
        (
            vec![Answer::Handled, Answer::Handled, Answer::Handled],
            None,
        ),
        (vec![Answer::Handled, again(), Answer::Handled], Some(false)),
        (vec![again(), bad(), Answer::Handled], Some(true)),
    ] {
        let mut run = run(0, 10, OnExhausted::Park);
        let now = Instant::now();
        put_transaction(&mut run, 0, &["a", "b", "c"]);
        let (call, batch) = run.call(now).unwrap();
        let answered = run.answered(now, call, batch, BatchAnswer::Each(answers));
        let verdicts: Vec<_> = answered.done.into_iter().map(|(_, v)| v).collect();
        match rejected {
            None => assert_eq!(verdicts, [Verdict::Handled]),
            Some(false) => assert!(verdicts.is_empty() && answered.again == 3),
            Some(true) => assert!(
                matches!(
                    &verdicts[..],
                    [Verdict::Park {
                        reason: "rejected",
                        ..
                    }]
                ),
                "{verdicts:?}"
            ),
        }
    }
}

#[test]
fn what_follows_an_event_that_is_tried_again_is_not_parked_before_it() {
    let now = Instant::now();
    let mut run = run(0, 10, OnExhausted::Park);
    for seq in 0..3 {
        put(&mut run, seq, "A");
    }
    put(&mut run, 3, "B");
    let bad = || Answer::Reject {
        reason: "bad".to_owned(),
    };
    let (call, batch) = run.call(now).unwrap();
    let answers = vec![
        Answer::Handled,
        Answer::Retry(Retry::because("later")),
        bad(),
        bad(),
    ];
    let answered = run.answered(now, call, batch, BatchAnswer::Each(answers));
    let done: Vec<Seq> = answered.done.iter().map(|(w, _)| seq_of(w)).collect();
    assert_eq!((done, answered.again), (vec![0, 3], 2));
    // In its turn it is refused alone, and parked.
    let mut order = vec![];
    let done = drive_from(&mut run, now, Duration::from_secs(60), |seqs| {
        order.extend_from_slice(seqs);
        if seqs == [1] {
            BatchAnswer::HANDLED
        } else {
            reject()
        }
    });
    assert_eq!(order, [1, 2]);
    assert!(matches!(done[1], (2, Verdict::Park { .. })), "{done:?}");
}

#[test]
fn a_dead_letter_that_is_given_up_again_stops_nobody() {
    let now = Instant::now();
    let mut run = run(0, 1, OnExhausted::Stop);
    let letter = Origin::Letter { place: 1, id: 1 };
    let unit = Unit::One(event(&["A"]));
    run.put_letters(letter, [1].into(), unit, Ordering::Record);
    let later = now + Duration::from_secs(2 * 3600);
    let (call, batch) = run.call(now).unwrap();
    run.answered(now, call, batch, retry());
    let (call, batch) = run.call(later).unwrap();
    let answered = run.answered(later, call, batch, retry());
    assert!(
        matches!(answered.done[..], [(_, Verdict::Park { .. })]),
        "{answered:?}"
    );
    assert_eq!(run.stopped(), None);
}

impl HandlerRun {
    /// The next look at what is in doubt, whatever is held.
    fn look(&mut self, now: Instant) -> Option<(CallId, Vec<Waiting>)> {
        match self.next_call(now, &|_| true)? {
            Next::Look(call, batch) => Some((call, batch)),
            other => panic!("{other:?}"),
        }
    }

    /// Hands one unit over, at a time when its total time is over, and loses the answer to its commit.
    fn loses_an_answer(&mut self, now: Instant) {
        let (call, batch) = self.call(now).unwrap();
        assert!(self.answered(now, call, batch, retry()).done.is_empty());
        let now = now + Duration::from_secs(3600);
        let (call, batch) = self.call(now).unwrap();
        let answered = self.unheard(now, call, batch, "lost".to_owned());
        assert_eq!((answered.done.len(), answered.again), (0, 1));
    }
}

#[test]
fn what_may_be_finished_is_neither_handed_over_nor_parked_before_the_store_has_told() {
    for (finished, stop) in [(true, false), (false, false), (true, true), (false, true)] {
        let on_exhausted = match stop {
            true => OnExhausted::Stop,
            false => OnExhausted::Park,
        };
        let mut run = run(1, 1, on_exhausted);
        run.retry.attempts = 1;
        let start = Instant::now();
        run.loses_an_answer(start);
        let mut now = start + Duration::from_secs(3600);
        // The store is away; others go well meanwhile, which would count against it.
        for round in 0..20 {
            now += Duration::from_secs(60);
            run.successes += 1;
            let (call, batch) = run.look(now).unwrap();
            assert_eq!(seq_of(&batch[0]), 0, "round {round}");
            let answered = run.looked(now, call, batch, Err("refused".to_owned()));
            assert!(answered.done.is_empty());
            assert!(run.look(now).is_none(), "at once again");
        }
        now += Duration::from_secs(60);
        let (call, batch) = run.look(now).unwrap();
        let answered = run.looked(now, call, batch, Ok(vec![finished]));
        let verdicts: Vec<_> = answered.done.into_iter().map(|(_, v)| v).collect();
        if finished {
            assert_eq!(verdicts, [Verdict::Handled]);
            continue;
        }
        // As any other now: it was tried for too long.
        assert_eq!(verdicts, []);
        let (call, batch) = run.call(now).unwrap();
        let answered = run.answered(now, call, batch, retry());
        assert_eq!(run.stopped().is_some(), stop);
        assert_eq!(answered.done.len(), usize::from(!stop), "{answered:?}");
    }
}

#[test]
fn what_may_be_finished_holds_up_its_record_and_nothing_else() {
    let mut run = run(0, 1, OnExhausted::Park);
    run.concurrency = 8;
    put(&mut run, 0, "a");
    let now = Instant::now();
    let (call, batch) = run.call(now).unwrap();
    run.unheard(now, call, batch, "lost".to_owned());
    put(&mut run, 1, "a");
    put(&mut run, 2, "b");
    // Before it may be looked up, and meanwhile. Held, it is not set aside either.
    let (_, batch) = run.call(now).unwrap();
    assert_eq!(seq_of(&batch[0]), 2);
    assert!(run.next_call(now, &|_| true).is_none());
    let later = now + Duration::from_secs(1);
    let (look, batch) = run.look(later).unwrap();
    assert!(run.call(later).is_none());
    run.looked(later, look, batch, Ok(vec![true]));
    assert_eq!(seq_of(&run.call(later).unwrap().1[0]), 1);
}

#[test]
fn a_unit_of_which_the_store_said_nothing_stays_in_doubt() {
    let mut run = run(2, 2, OnExhausted::Park);
    let now = Instant::now();
    let (call, batch) = run.call(now).unwrap();
    assert_eq!(batch.len(), 2);
    run.unheard(now, call, batch, "lost".to_owned());
    let later = now + Duration::from_secs(1);
    let (call, batch) = run.look(later).unwrap();
    let answered = run.looked(later, call, batch, Ok(vec![true]));
    assert_eq!(answered.done.len(), 1);
    let (_, batch) = run.look(later + Duration::from_secs(1)).unwrap();
    assert_eq!(seq_of(&batch[0]), 1);
}

#[test]
fn a_handler_that_wants_few_calls_is_given_what_arrives_beside_one_with_the_rest() {
    let now = Instant::now();
    let mut run = run(1, 3, OnExhausted::Park).wanting_few_calls();
    run.concurrency = 8;
    // With nothing under way one event goes at once.
    let (first, batch) = run.call(now).unwrap();
    assert_eq!(seqs(&batch), [0]);
    put(&mut run, 1, "r1");
    assert!(run.call(now).is_none());
    // A full batch does not wait.
    put(&mut run, 2, "r2");
    put(&mut run, 3, "r3");
    put(&mut run, 4, "r4");
    let (_, batch) = run.call(now).unwrap();
    assert_eq!(seqs(&batch), [1, 2, 3]);
    // The rest waits, and is looked at again in time.
    assert!(run.call(now).is_none());
    let due = run.wake_at(now).unwrap();
    assert!(run.call(due - Duration::from_millis(1)).is_none());
    let (third, batch) = run.call(due).unwrap();
    assert_eq!(seqs(&batch), [4]);
    assert_eq!(run.wake_at(due), None);
    // Nor does it wait longer than what is under way.
    put(&mut run, 5, "r5");
    assert!(run.call(due).is_none());
    for call in [first, first + 1, third] {
        run.answered(due, call, Vec::new(), BatchAnswer::HANDLED);
    }
    let (_, batch) = run.call(due).unwrap();
    assert_eq!(seqs(&batch), [5]);
}

fn seqs(batch: &[Waiting]) -> Vec<Seq> {
    batch.iter().map(seq_of).collect()
}
