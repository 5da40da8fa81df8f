//! What one stream is owed: the credit account of a Subscribe call. Pure.

use crate::salesforce::pubsub::MAX_OUTSTANDING;

/// `num_requested` was not positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotPositive;

/// The credits of one stream (facts 3.2). The server owes at most 100 events; what is asked for beyond
/// that is silently dropped, but remembered as what the client thought it had asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Credits {
    pending: u32,
    asked: u64,
    delivered: u64,
    most_outstanding: u64,
}

impl Credits {
    /// Adds what a FetchRequest asks for.
    pub(super) fn add(&mut self, num_requested: i32) -> Result<(), NotPositive> {
        let num = u32::try_from(num_requested).map_err(|_| NotPositive)?;
        if num == 0 {
            return Err(NotPositive);
        }
        self.asked += u64::from(num);
        self.pending = self.pending.saturating_add(num).min(MAX_OUTSTANDING);
        self.most_outstanding = self
            .most_outstanding
            .max(self.asked.saturating_sub(self.delivered));
        Ok(())
    }

    /// Takes the credits of a response's events.
    pub(super) fn take(&mut self, events: usize) {
        let events = u32::try_from(events).unwrap_or(u32::MAX);
        self.pending = self.pending.saturating_sub(events);
        self.delivered += u64::from(events);
    }

    /// Events still owed: `pending_num_requested`.
    pub(super) fn pending(&self) -> u32 {
        self.pending
    }

    /// Events delivered so far.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// The most that the client ever had outstanding by its own count; beyond 100 it broke the rule.
    pub(super) fn most_outstanding(&self) -> u64 {
        self.most_outstanding
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credits_add_up_and_are_capped_at_a_hundred() {
        let mut credits = Credits::default();
        credits.add(60).unwrap();
        assert_eq!(credits.pending(), 60);
        credits.add(60).unwrap();
        assert_eq!(credits.pending(), 100);
        credits.take(30);
        assert_eq!((credits.pending(), credits.delivered()), (70, 30));
        credits.add(i32::MAX).unwrap();
        assert_eq!(credits.pending(), 100);
    }

    #[test]
    fn asking_for_nothing_or_less_is_refused() {
        let mut credits = Credits::default();
        for num in [0, -1, i32::MIN] {
            assert_eq!(credits.add(num), Err(NotPositive));
        }
        assert_eq!(credits.pending(), 0);
    }

    #[test]
    fn what_the_client_had_outstanding_is_remembered_beyond_the_cap() {
        let mut credits = Credits::default();
        credits.add(100).unwrap();
        credits.take(50);
        credits.add(50).unwrap();
        assert_eq!(credits.most_outstanding(), 100);
        credits.add(20).unwrap();
        assert_eq!(credits.most_outstanding(), 120);
    }
}
