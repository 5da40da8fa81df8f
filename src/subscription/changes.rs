//! Changes of a stream's state on their way to the store, each with the call that it came from. A stream that breaks
//! and is back within the second between two writes would leave no trace in a place that keeps the last state only.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::state::State;
use crate::event::ReplayId;
use crate::store::StateReport;

/// While the store is away, the last so many are kept.
const MOST: usize = 16;

/// What the reader tells, and the delivery has stored. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Changes(Arc<Mutex<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<StateReport>,
    /// The stream's state now.
    last: Option<StateReport>,
}

impl Changes {
    /// The stream is in this state now, after a call of this name. It began, or is to begin, after this place.
    pub(super) fn told(&self, state: &State, rpc_id: Option<String>, replay_id: Option<ReplayId>) {
        self.queue().push(StateReport {
            rpc_id,
            replay_id,
            at: Some(SystemTime::now()),
            ..report(state)
        });
    }

    /// The call that opened the stream has this name, which only its first response told.
    pub(super) fn named(&self, rpc_id: &str) {
        let mut queue = self.queue();
        if let Some(mut last) = queue.last.clone()
            && last.state == State::Live.name()
            && last.rpc_id.is_none()
        {
            last.rpc_id = Some(rpc_id.to_owned());
            queue.push(last);
        }
    }

    /// True where something is to be stored.
    pub(super) fn wait(&self) -> bool {
        !self.queue().waiting.is_empty()
    }

    /// What is to be stored, oldest first, and at its end the state that people see, which is not the stream's
    /// where a handler takes nothing.
    pub(super) fn take(&self, shown: &State) -> Vec<StateReport> {
        let mut queue = self.queue();
        let mut reports: Vec<_> = queue.waiting.drain(..).collect();
        let shown = report(shown);
        let is_it = |one: &&StateReport| one.state == shown.state && one.detail == shown.detail;
        if reports.last().as_ref().is_none_or(|last| !is_it(last)) {
            let own = queue.last.as_ref().filter(is_it).cloned();
            reports.push(own.unwrap_or(shown));
        }
        reports
    }

    /// These could not be stored.
    pub(super) fn put_back(&self, reports: Vec<StateReport>) {
        let mut queue = self.queue();
        let room = MOST.saturating_sub(queue.waiting.len());
        for report in reports.into_iter().rev().take(room) {
            queue.waiting.push_front(report);
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing that can panic is done under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push(&mut self, report: StateReport) {
        if self.waiting.len() == MOST {
            self.waiting.pop_front();
        }
        self.waiting.push_back(report.clone());
        self.last = Some(report);
    }
}

/// A state that came from no call.
fn report(state: &State) -> StateReport {
    StateReport {
        state: state.name().to_owned(),
        detail: state.detail().map(str::to_owned),
        ..StateReport::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(detail: &str) -> State {
        State::Reconnecting {
            detail: detail.to_owned(),
        }
    }

    fn short(reports: &[StateReport]) -> Vec<(&str, Option<&str>)> {
        reports
            .iter()
            .map(|one| (one.state.as_str(), one.rpc_id.as_deref()))
            .collect()
    }

    #[test]
    fn a_break_that_is_over_is_told_all_the_same_and_the_state_shown_comes_last() {
        let changes = Changes::default();
        assert!(!changes.wait());
        changes.told(&State::Live, None, None);
        changes.told(&broken("reset"), Some("a".to_owned()), None);
        changes.told(&State::Live, None, "0a".parse().ok());
        assert!(changes.wait());
        let reports = changes.take(&State::Live);
        let states = [("live", None), ("reconnecting", Some("a")), ("live", None)];
        assert_eq!(short(&reports), states);
        assert_eq!(reports[2].replay_id, "0a".parse().ok());
        assert!(!changes.wait());
        let again = changes.take(&State::Live);
        assert_eq!(again, reports[2..]);
        // What a handler stopped came from no call.
        let stopped = State::Blocked {
            detail: "handler".to_owned(),
        };
        assert_eq!(short(&changes.take(&stopped)), [("blocked", None)]);
    }

    #[test]
    fn the_name_of_an_open_streams_call_is_added_once_it_is_known() {
        let changes = Changes::default();
        changes.named("too early");
        assert!(!changes.wait());
        changes.told(&State::Live, None, None);
        changes.take(&State::Live);
        changes.named("a");
        changes.named("b");
        assert_eq!(short(&changes.take(&State::Live)), [("live", Some("a"))]);
        changes.told(&broken("reset"), None, None);
        changes.named("c");
        let taken = changes.take(&broken("reset"));
        assert_eq!(short(&taken), [("reconnecting", None)]);
    }

    #[test]
    fn while_nothing_is_taken_the_last_are_kept() {
        let changes = Changes::default();
        for number in 0..100 {
            changes.told(&broken(&number.to_string()), None, None);
        }
        let mut reports = changes.take(&broken("99"));
        assert_eq!(reports.len(), MOST);
        assert_eq!(reports[0].detail.as_deref(), Some("84"));
        // They could not be stored, and it goes on.
        changes.told(&State::Live, None, None);
        changes.put_back(reports.clone());
        reports.remove(0);
        assert_eq!(changes.take(&broken("99"))[..MOST - 1], reports);
    }
}
