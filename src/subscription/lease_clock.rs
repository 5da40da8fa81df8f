//! Whether the lease holds, by this process's own clock (design 3.1, rule 11).

use tokio::sync::watch;

use super::sleepless::Moment;

/// What the keeper last said.
#[derive(Debug)]
struct Term {
    /// It holds until then; `None` for ever.
    until: Option<Moment>,
    /// Why it was not renewed the last time.
    trouble: Option<String>,
    /// Another worker has it.
    lost: bool,
}

/// The side that renews the lease.
#[derive(Debug)]
pub struct LeaseKeeper(watch::Sender<Term>);

/// The side that works under it. Asked before anything is handed out or asked for: a process that was
/// stopped and wakes up late finds here, without the database, that its time is up.
#[derive(Debug, Clone)]
pub struct LeaseClock(watch::Receiver<Term>);

/// A lease that holds until `until`; `None` for ever, where a lock of the operating system stands for it.
pub fn lease_clock(until: Option<Moment>) -> (LeaseKeeper, LeaseClock) {
    let (sender, receiver) = watch::channel(Term {
        until,
        trouble: None,
        lost: false,
    });
    (LeaseKeeper(sender), LeaseClock(receiver))
}

impl LeaseKeeper {
    /// It was renewed, and holds until then. `until` counts from before the store was asked, less a margin.
    pub fn renewed(&self, until: Option<Moment>) {
        self.0.send_modify(|term| {
            term.until = until;
            term.trouble = None;
        });
    }

    /// It could not be renewed, for this reason. It holds for as long as it was going to.
    pub fn failed(&self, why: &str) {
        self.0.send_if_modified(|term| {
            term.trouble = Some(why.to_owned());
            false
        });
    }

    /// Another worker has taken over: it never holds again.
    pub fn lost(&self) {
        self.0.send_modify(|term| term.lost = true);
    }

    /// True while nobody else can have taken over.
    pub fn holds(&self) -> bool {
        self.0.borrow().holds(Moment::now())
    }
}

impl Term {
    fn holds(&self, now: Moment) -> bool {
        !self.lost && self.until.is_none_or(|until| now < until)
    }
}

impl LeaseClock {
    /// True while nobody else can have taken over.
    pub fn holds(&self) -> bool {
        self.holds_at(Moment::now())
    }

    fn holds_at(&self, now: Moment) -> bool {
        self.0.borrow().holds(now)
    }

    /// True once another worker has taken over.
    pub fn is_lost(&self) -> bool {
        self.0.borrow().lost
    }

    /// Why nothing may be handed out, for a person; `None` while it holds.
    pub fn trouble(&self) -> Option<String> {
        let term = self.0.borrow();
        if term.holds(Moment::now()) {
            return None;
        }
        let why = term.trouble.as_deref().unwrap_or("not heard of yet");
        Some(format!(
            "the lease ran out and cannot be renewed, so nothing is handed out: {why}"
        ))
    }

    /// Ends when the lease was renewed or lost since the last call; never, where nobody keeps it any more.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_lease_that_ran_out_holds_again_once_it_is_renewed() {
        let now = Moment::now();
        let (keeper, mut clock) = lease_clock(Some(now));
        assert!(!clock.holds_at(now));
        keeper.failed("the database is away");
        assert!(clock.trouble().unwrap().ends_with("is away"));
        let later = now + Duration::from_secs(60);
        keeper.renewed(Some(later));
        clock.changed().await;
        assert!(clock.holds());
        assert_eq!(clock.trouble(), None);
        assert!(!clock.holds_at(later));
    }

    #[tokio::test]
    async fn a_lease_that_is_lost_never_holds_again() {
        let (keeper, mut clock) = lease_clock(None);
        keeper.lost();
        clock.changed().await;
        keeper.renewed(None);
        assert!(clock.is_lost());
        assert!(!clock.holds());
    }

    #[test]
    fn a_lease_for_ever_always_holds() {
        let (_keeper, clock) = lease_clock(None);
        assert!(clock.holds_at(Moment::now() + Duration::from_secs(1_000_000)));
    }
}
