//! What a seed stands for: subscriptions, handlers, traffic, and trouble over time. Pure: one seed is one
//! plan, on every machine.

use std::fmt;
use std::time::Duration;

use super::cluster::Shutdown;

mod random;

/// Everything that a seed decides.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Daemons that run side by side.
    pub(crate) workers: usize,
    /// They reach Postgres through PgBouncer in transaction mode, where that is installed.
    pub(crate) pooled: bool,
    pub(crate) subscriptions: Vec<Subscription>,
    pub(crate) traffic: Traffic,
    /// At the end handlers are well, and a person sees to everything that is parked.
    pub(crate) tidy: bool,
    /// Most events in one response; none where the org decides.
    pub(crate) events_per_response: Option<u32>,
    /// Trouble, by time since the first event.
    pub(crate) steps: Vec<(Duration, Step)>,
}

/// What there is to stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Feed {
    /// Change events of accounts.
    Accounts,
    /// A platform event with a field that orders it.
    Orders,
    /// A platform event without one.
    Notices,
    /// Every change event of the org.
    Changes,
    /// A custom channel with an enriched field: one update of several accounts is several events under one
    /// replay ID.
    Sales,
}

impl Feed {
    pub(crate) fn topic(self) -> &'static str {
        match self {
            Self::Accounts => "/data/AccountChangeEvent",
            Self::Orders => "/event/Order__e",
            Self::Notices => "/event/Notice__e",
            Self::Changes => "/data/ChangeEvents",
            Self::Sales => "/data/Sales__chn",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Accounts => "accounts",
            Self::Orders => "orders",
            Self::Notices => "notices",
            Self::Changes => "changes",
            Self::Sales => "sales",
        }
    }

    pub(crate) fn is_channel(self) -> bool {
        matches!(self, Self::Changes | Self::Sales)
    }
}

/// One subscription.
#[derive(Debug, Clone)]
pub(crate) struct Subscription {
    pub(crate) feed: Feed,
    /// `record`, `strict` or `none`.
    pub(crate) ordering: &'static str,
    pub(crate) concurrency: usize,
    pub(crate) max_in_flight: usize,
    /// Transactions are handed over whole.
    pub(crate) grouped: bool,
    /// `earliest` or `latest`.
    pub(crate) start: &'static str,
    /// `earliest` or `latest`.
    pub(crate) on_expired: &'static str,
    pub(crate) handlers: Vec<Handler>,
}

impl Subscription {
    /// Its name at first.
    pub(crate) fn name(&self) -> &'static str {
        self.feed.name()
    }

    /// Its name once it was renamed.
    pub(crate) fn new_name(&self) -> String {
        format!("new-{}", self.name())
    }

    /// The names that it may have in the store.
    pub(crate) fn names(&self) -> [String; 2] {
        [self.name().to_owned(), self.new_name()]
    }
}

/// One handler of a subscription.
#[derive(Debug, Clone)]
pub(crate) struct Handler {
    pub(crate) name: &'static str,
    pub(crate) kind: HandlerKind,
    pub(crate) attempts: u32,
    /// How long one call may take.
    pub(crate) timeout: Duration,
}

/// Where events go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandlerKind {
    /// Our recorder.
    Webhook,
    /// Rows in the same Postgres, written together with the position.
    Append,
}

/// What is published.
#[derive(Debug, Clone)]
pub(crate) struct Traffic {
    pub(crate) seed: u64,
    /// How many records, and how many keys.
    pub(crate) records: usize,
    /// Events at most.
    pub(crate) most: usize,
    /// For how long.
    pub(crate) length: Duration,
    /// Longest pause between two calls.
    pub(crate) pause: Duration,
    /// Of a thousand events, how many are poison of some kind.
    pub(crate) poison: u32,
}

/// How a handler behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// 200 at once.
    Well,
    /// 200 after so long.
    Slow(Duration),
    /// This status for everything.
    Failing(u16),
    /// No answer.
    Hanging,
    /// 503 for every so many-th request.
    Flaky(u32),
    /// 422 for every so many-th event.
    Refusing(u32),
}

/// What is done to a line of TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Open, and nothing is carried.
    Hang,
    /// Ended.
    Cut,
}

/// Trouble of one kind, made at a time. What lasts ends by itself.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// SIGKILL, and a new process after a while.
    Kill { worker: usize, back_after: Duration },
    /// SIGTERM, and a new process a while after its end.
    Terminate { worker: usize, back_after: Duration },
    /// One worker less for a while, and then one more: SIGTERM, and a start long after.
    Scale { worker: usize, away: Duration },
    /// SIGSTOP, and SIGCONT after a while.
    Freeze { worker: usize, length: Duration },
    /// Postgres ends and comes back.
    RestartPostgres(Shutdown),
    /// Every process of Postgres stands still.
    FreezePostgres(Duration),
    /// Postgres takes no writes.
    ReadOnly(Duration),
    /// One worker's way to Postgres.
    StoreLine {
        worker: usize,
        trouble: Trouble,
        length: Duration,
    },
    /// One worker's way to the org: half-open TCP, or none.
    OrgLine {
        worker: usize,
        trouble: Trouble,
        length: Duration,
    },
    /// A fault of the emulator, as its admin API takes it.
    Fault(serde_json::Value),
    /// Every access token expires; new sign-ins fail so often.
    ExpireTokens { failing: u32 },
    /// Every access token is revoked, and streams end.
    RevokeTokens,
    /// The schema of a topic changes, and getting schemas fails so often.
    ChangeSchema { orders: bool, failing: u32 },
    /// The stream is away for so long, and retention ends before it is back.
    ExpireBus { length: Duration },
    /// A new line of positions.
    ResetBus,
    /// A handler behaves in a way.
    Behave {
        subscription: usize,
        handler: usize,
        mode: Mode,
        length: Duration,
    },
    /// A person asks for another attempt at everything that is parked.
    Retry,
    /// A person pauses a subscription, and resumes it.
    Pause {
        subscription: usize,
        length: Duration,
    },
    /// A person has everything that is still on the bus handed over again: to all handlers, or beside the live
    /// stream to the first.
    Replay { subscription: usize, beside: bool },
    /// A side replay of everything, with an end, to one handler.
    ReplayTo { subscription: usize, handler: usize },
    /// A person gives up what was rejected.
    Discard,
    /// A deployment under which a subscription has another name.
    Rename { subscription: usize },
    /// The org's delivery allocation is used up for so long.
    Exhaust { length: Duration },
}

impl Plan {
    /// Whether a subscription's events are handed over again because a person asked for it.
    pub(crate) fn replays(&self, subscription: usize) -> bool {
        self.steps.iter().any(|(_, step)| match step {
            Step::Replay {
                subscription: of, ..
            }
            | Step::ReplayTo {
                subscription: of, ..
            } => *of == subscription,
            _ => false,
        })
    }

    /// Whether a person gives parked events up while all goes on.
    pub(crate) fn discards(&self) -> bool {
        self.steps.iter().any(|(_, step)| *step == Step::Discard)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let traffic = &self.traffic;
        writeln!(
            f,
            "plan of seed {}: {} worker(s){}{}; at most {} events of {} records in {:?}, {} of 1000 poison, {:?} \
             events in a response",
            self.seed,
            self.workers,
            if self.pooled { " behind PgBouncer" } else { "" },
            if self.tidy { ", tidied at the end" } else { "" },
            traffic.most,
            traffic.records,
            traffic.length,
            traffic.poison,
            self.events_per_response
        )?;
        for s in &self.subscriptions {
            writeln!(
                f,
                "  {} {}: ordering {}, concurrency {}, max_in_flight {}{}, start {}, on_expired {}",
                s.name(),
                s.feed.topic(),
                s.ordering,
                s.concurrency,
                s.max_in_flight,
                if s.grouped { ", by transaction" } else { "" },
                s.start,
                s.on_expired
            )?;
            for h in &s.handlers {
                writeln!(
                    f,
                    "    {}: {:?}, {} attempts, timeout {:?}",
                    h.name, h.kind, h.attempts, h.timeout
                )?;
            }
        }
        for (at, step) in &self.steps {
            writeln!(f, "  {:>6} ms  {step:?}", at.as_millis())?;
        }
        Ok(())
    }
}
