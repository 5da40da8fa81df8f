//! Which events of a batch may be under way together.

use std::collections::HashMap;

use crate::event::{Event, SmolStr};
use crate::handler::EventBatch;

/// The events of a batch, by number, in rounds: an event is in a later round than those before it whose order it
/// keeps, so that it goes out when they are there. Within a round they are in bus order.
pub(super) fn rounds(batch: &EventBatch) -> Vec<Vec<usize>> {
    let mut rounds: Vec<Vec<usize>> = Vec::new();
    // The round after that of the record's last event, and of the last event that concerns all records.
    let mut next_of: HashMap<&str, usize> = HashMap::new();
    let mut next_of_all = 0;
    for (number, event) in batch.events.iter().enumerate() {
        let round = if batch.strict || is_entity_wide(event) {
            next_of_all = rounds.len() + 1;
            rounds.len()
        } else {
            let after = records(event).filter_map(|record| next_of.get(record).copied());
            after.max().unwrap_or(0).max(next_of_all)
        };
        next_of.extend(records(event).map(|record| (record, round + 1)));
        if round == rounds.len() {
            rounds.push(Vec::new());
        }
        rounds[round].push(number);
    }
    rounds
}

/// What the event's order goes by. Events without any record keep the order of each other.
fn records(event: &Event) -> impl Iterator<Item = &str> {
    let ids = event.record_ids();
    let key = event.key.as_deref();
    let none = (ids.is_empty() && key.is_none()).then_some("");
    ids.iter().map(SmolStr::as_str).chain(key).chain(none)
}

fn is_entity_wide(event: &Event) -> bool {
    let header = event.decoded.header.as_ref();
    header.is_some_and(|header| header.is_entity_wide())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::testing::keyed;

    #[test]
    fn events_of_different_records_go_together_and_those_of_one_after_each_other() {
        assert_eq!(rounds(&keyed(&["a", "b", "c"])), [[0, 1, 2]]);
        let mixed = keyed(&["a", "b", "a", "c", "a", "b"]);
        assert_eq!(rounds(&mixed), [vec![0, 1, 3], vec![2, 5], vec![4]]);
        // Without a record they are in one order.
        assert_eq!(rounds(&keyed(&["", "a", ""])), [vec![0, 1], vec![2]]);
    }

    #[test]
    fn where_all_are_in_one_order_each_goes_alone() {
        let mut batch = keyed(&["a", "b"]);
        batch.strict = true;
        assert_eq!(rounds(&batch), [[0], [1]]);
    }
}
