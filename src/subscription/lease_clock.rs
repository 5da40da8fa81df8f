//! Whether the lease holds, by this process's own clock (design 3.1, rule 11).

use std::time::Instant;

use tokio::sync::watch;

/// The side that renews the lease.
#[derive(Debug)]
pub struct LeaseKeeper(watch::Sender<Option<Instant>>);

/// The side that works under it. Asked before anything is handed out or asked for: a process that was
/// stopped and wakes up late finds here, without the database, that its time is up.
#[derive(Debug, Clone)]
pub struct LeaseClock(watch::Receiver<Option<Instant>>);

/// A lease that holds until `until`; `None` for ever, where a lock of the operating system stands for it.
pub fn lease_clock(until: Option<Instant>) -> (LeaseKeeper, LeaseClock) {
    let (sender, receiver) = watch::channel(until);
    (LeaseKeeper(sender), LeaseClock(receiver))
}

impl LeaseKeeper {
    /// It was renewed, and holds until then. `until` counts from before the store was asked, less a margin.
    pub fn renewed(&self, until: Option<Instant>) {
        self.0.send_replace(until);
    }
}

impl LeaseClock {
    /// True while nobody else can have taken over.
    pub fn holds(&self, now: Instant) -> bool {
        self.0.borrow().is_none_or(|until| now < until)
    }

    /// Ends when the lease was renewed since the last call; never, where nobody renews it any more.
    pub async fn renewed(&mut self) {
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
        let now = Instant::now();
        let (keeper, mut clock) = lease_clock(Some(now));
        assert!(!clock.holds(now));
        let later = now + Duration::from_secs(5);
        keeper.renewed(Some(later));
        clock.renewed().await;
        assert!(clock.holds(now));
        assert!(!clock.holds(later));
    }

    #[test]
    fn a_lease_for_ever_always_holds() {
        let (_keeper, clock) = lease_clock(None);
        assert!(clock.holds(Instant::now() + Duration::from_secs(1_000_000)));
    }
}
