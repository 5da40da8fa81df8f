//! No position is written by a worker whose epoch has passed: shown by the database's own record of who
//! changed a subscription's row.

use std::collections::BTreeMap;

use super::account::Case;
use super::trouble::PERSON;

/// Looks through the changes of a subscription's row.
pub(crate) fn fenced(case: &Case, broken: &mut Vec<String>) {
    // Which process took each epoch.
    let mut owners: BTreeMap<i64, &str> = BTreeMap::new();
    let mut newest = 0;
    for write in &case.writes {
        let (before, after) = (&write.before, &write.after);
        let mut wrong = |what: &str| {
            broken.push(format!("{}: {what}: {write:?}", case.name));
        };
        let moved = before.position != after.position || before.write_number != after.write_number;
        if write.writer == PERSON && after.epoch > before.epoch && before.position == after.position
        {
            // Whoever ran it is fenced off.
            newest = after.epoch;
            continue;
        }
        if !write.writer.starts_with("worker-") {
            wrong("nobody knows who wrote this");
        }
        if after.epoch < before.epoch || after.epoch < newest {
            wrong("the epoch went back");
        }
        newest = newest.max(after.epoch);
        if after.epoch != before.epoch {
            if owners.insert(after.epoch, &write.writer).is_some() {
                wrong("the epoch was taken twice");
            }
            continue;
        }
        if let (Some(one), Some(other)) = (&before.holder, &after.holder)
            && one != other
        {
            wrong("it changed hands without a new epoch");
        }
        if moved && owners.get(&after.epoch) != Some(&write.writer.as_str()) {
            wrong("the position was written by a process that does not hold the epoch");
        }
        if moved && after.write_number <= before.write_number {
            wrong("a write came after a newer one");
        }
        // One that the bus has forgotten is given up.
        let given_up = after.position.is_none()
            && before
                .position
                .is_some_and(|position| position <= case.gone_up_to);
        if after.position < before.position && !given_up {
            wrong("the position went back");
        }
    }
}
