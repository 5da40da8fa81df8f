//! Repeats: how many, of what, and by whom.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{Answered, Case, HandlerCase, Key, Line, successes};

/// A row for each event, and none twice.
pub(super) fn once_each(
    case: &Case,
    handler: &HandlerCase,
    handled: &[Key<'_>],
    broken: &mut Vec<String>,
) {
    let mut seen = HashSet::new();
    for key in handled.iter().filter(|key| !seen.insert(**key)) {
        broken.push(format!(
            "{}/{}: {key:?} is in the table more than once",
            case.name, handler.name
        ));
    }
}

/// How long an answer may be on its way to a busy daemon.
pub(super) const AN_ANSWER_TAKES_US: i64 = 300_000;

/// When each epoch began.
fn beginnings(case: &Case) -> BTreeMap<i64, i64> {
    let takeovers = case
        .writes
        .iter()
        .filter(|w| w.after.epoch != w.before.epoch);
    takeovers.map(|w| (w.after.epoch, w.at_us)).collect()
}

/// What comes again of an epoch, under whichever later one, is bounded by what was in flight when that was followed, and
/// what it had finished since the last position write before.
pub(super) fn repeats(
    case: &Case,
    handler: &HandlerCase,
    line: &mut Line,
    broken: &mut Vec<String>,
) {
    let mut handled: HashMap<Key<'_>, BTreeSet<i64>> = HashMap::new();
    // By the epoch whose work was done again: the last before that had handled the event.
    let mut repeated: BTreeMap<i64, usize> = BTreeMap::new();
    for answer in successes(handler).filter(|answer| !answer.replayed) {
        let epochs = handled.entry((answer.place, &answer.record)).or_default();
        let before = epochs.range(..answer.epoch).next_back().copied();
        match before {
            _ if epochs.contains(&answer.epoch) => line.again += 1,
            Some(before) => *repeated.entry(before).or_default() += 1,
            // The first time; or by a worker that was followed, which is counted as late.
            None => {}
        }
        epochs.insert(answer.epoch);
    }
    let beginnings = beginnings(case);
    for epoch in beginnings.keys() {
        let Some((_, followed)) = beginnings.range(epoch + 1..).next() else {
            continue;
        };
        let allowed = case.max_in_flight + finished_since_write(case, handler, *epoch, *followed);
        let count = repeated.remove(epoch).unwrap_or(0);
        line.repeats += count;
        line.repeats_allowed += allowed;
        if count > allowed && !case.replays {
            broken.push(format!(
                "{}/{}: {count} repeats of what was handled in epoch {epoch}, where {allowed} are allowed",
                case.name, handler.name
            ));
        }
    }
    for (epoch, count) in repeated {
        broken.push(format!(
            "{}/{}: {count} repeats of what was handled in epoch {epoch}, whose beginning or end nobody saw",
            case.name, handler.name
        ));
    }
    let allowed = case.interruptions * case.under_way();
    if line.again > allowed && !case.replays {
        broken.push(format!(
            "{}/{}: {} repeats within one epoch, where {allowed} are allowed",
            case.name, handler.name, line.again
        ));
    }
}

/// What a handler has handled, and a write of the position knew of, is never handed to it again. The write
/// after the next one knows: it began when that was done.
pub(super) fn known(case: &Case, handler: &HandlerCase, broken: &mut Vec<String>) {
    if case.replays {
        return;
    }
    let beginnings = beginnings(case);
    let mut first: HashMap<Key<'_>, &Answered> = HashMap::new();
    let mut answers: Vec<&Answered> = handler.answers.iter().collect();
    answers.sort_by_key(|answer| answer.at_us);
    for answer in answers {
        let key = (answer.place, answer.record.as_str());
        if let Some(before) = first.get(&key)
            && before.epoch < answer.epoch
        {
            let next = beginnings.range(before.epoch + 1..).next();
            let followed = next.map_or(i64::MAX, |(_, at)| *at);
            let since = before.at_us + AN_ANSWER_TAKES_US;
            let wrote = case.writes.iter().filter(|w| {
                w.after.epoch == before.epoch
                    && w.after.write_number > w.before.write_number
                    && (since..followed).contains(&w.at_us)
            });
            if wrote.count() >= 2 {
                broken.push(format!(
                    "{}/{}: {key:?} was handled in epoch {}, two writes followed, and it was handed over again \
                     in epoch {}",
                    case.name, handler.name, before.epoch, answer.epoch
                ));
            }
        }
        if answer.status == 200 && !first.contains_key(&key) {
            first.insert(key, answer);
        }
    }
}

/// What a handler handled under an epoch before that was followed, and no write of the position can have known of: the
/// last one began when the last but one was done, at the earliest.
fn finished_since_write(case: &Case, handler: &HandlerCase, epoch: i64, followed: i64) -> usize {
    let earlier = case.writes.iter().filter(|w| {
        w.at_us < followed
            && w.after.write_number != w.before.write_number
            && w.after.write_number > 0
    });
    let mut times: Vec<i64> = earlier.map(|w| w.at_us).collect();
    times.pop();
    let since = times.pop().unwrap_or(0);
    successes(handler)
        .filter(|answer| answer.epoch == epoch && (since..=followed).contains(&answer.at_us))
        .count()
}

/// A worker that was followed hands nothing over any more, but for what was under way.
pub(super) fn late(case: &Case, handler: &HandlerCase, line: &mut Line, broken: &mut Vec<String>) {
    let beginnings = beginnings(case);
    let followed = |answer: &&Answered| {
        let next = beginnings.range(answer.epoch + 1..).next();
        next.is_some_and(|(_, began)| *began < answer.came_us)
    };
    line.late = handler.answers.iter().filter(followed).count();
    let allowed = case.pauses * case.under_way();
    if line.late > allowed {
        broken.push(format!(
            "{}/{}: {} events handed over by a worker that another had followed, where {allowed} are allowed",
            case.name, handler.name, line.late
        ));
    }
}
