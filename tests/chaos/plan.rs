//! What a seed stands for: subscriptions, handlers, traffic, and trouble over time. Pure: one seed is one
//! plan, on every machine.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

use super::cluster::Shutdown;

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
    pub(crate) fn name(&self) -> &'static str {
        self.feed.name()
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
    /// The org's delivery allocation is used up for so long.
    Exhaust { length: Duration },
}

fn millis(random: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(random.u64(range))
}

fn pick<T: Copy>(random: &mut Rng, from: &[T]) -> T {
    from[random.usize(..from.len())]
}

impl Plan {
    /// Whether a subscription's events are handed over again because a person asked for it.
    pub(crate) fn replays(&self, subscription: usize) -> bool {
        self.steps.iter().any(|(_, step)| {
            matches!(step, Step::Replay { subscription: of, .. } if *of == subscription)
        })
    }

    /// The plan of a seed.
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let workers = pick(&mut random, &[1, 2, 2, 3]);
        let pooled = random.u8(..4) == 0;
        let tidy = random.u8(..3) > 0;
        // Where the bus forgets, most of a run may be lost, which shows little else.
        let forgetful = random.u8(..4) == 0;
        // Nor do repeats tell much where everything is handed over again.
        let replays = random.u8(..4) == 0;
        let mut feeds = vec![
            Feed::Accounts,
            Feed::Orders,
            Feed::Notices,
            Feed::Changes,
            Feed::Sales,
        ];
        random.shuffle(&mut feeds);
        feeds.truncate(random.usize(1..=3));
        let subscriptions: Vec<_> = feeds
            .into_iter()
            .map(|feed| subscription(&mut random, feed))
            .collect();
        let length = millis(&mut random, 6_000..10_000);
        let traffic = Traffic {
            seed: random.u64(..),
            records: random.usize(2..25),
            most: random.usize(300..1_500),
            length,
            pause: millis(&mut random, 4..40),
            poison: pick(&mut random, &[0, 5, 20, 40]),
        };
        let events_per_response = pick(&mut random, &[None, None, Some(1), Some(7)]);
        let mut steps: Vec<_> = (0..random.usize(5..14))
            .map(|_| {
                let at = Duration::from_millis(random.u64(200..length.as_millis() as u64));
                (
                    at,
                    step(&mut random, workers, &subscriptions, (forgetful, replays)),
                )
            })
            .collect();
        steps.sort_by_key(|(at, _)| *at);
        Self {
            seed,
            workers,
            pooled,
            subscriptions,
            traffic,
            tidy,
            events_per_response,
            steps,
        }
    }
}

fn subscription(random: &mut Rng, feed: Feed) -> Subscription {
    let ordering = pick(
        random,
        &["record", "record", "record", "record", "strict", "none"],
    );
    let handlers = ["a", "b"]
        .into_iter()
        .take(random.usize(1..=2))
        .map(|name| handler(random, name))
        .collect();
    let change_events = feed.topic().starts_with("/data/");
    Subscription {
        feed,
        grouped: change_events && random.u8(..4) == 0,
        ordering,
        concurrency: pick(random, &[1, 2, 8, 16]),
        max_in_flight: pick(random, &[10, 50, 200, 1_000]),
        start: pick(random, &["earliest", "earliest", "latest"]),
        on_expired: pick(random, &["earliest", "earliest", "latest"]),
        handlers,
    }
}

fn handler(random: &mut Rng, name: &'static str) -> Handler {
    let kind = if name == "b" && random.u8(..3) > 0 {
        HandlerKind::Append
    } else {
        HandlerKind::Webhook
    };
    Handler {
        name,
        kind,
        attempts: random.u32(2..6),
        timeout: millis(random, 1_000..3_000),
    }
}

fn step(
    random: &mut Rng,
    workers: usize,
    subscriptions: &[Subscription],
    (forgetful, replays): (bool, bool),
) -> Step {
    let worker = random.usize(..workers);
    let trouble = pick(random, &[Trouble::Hang, Trouble::Cut]);
    match random.u8(..34) {
        0..=4 => Step::Kill {
            worker,
            back_after: millis(random, 0..1_500),
        },
        5..=7 => Step::Terminate {
            worker,
            back_after: millis(random, 0..800),
        },
        // Shorter than the lease, and longer.
        8..=10 => Step::Freeze {
            worker,
            length: if random.bool() {
                millis(random, 300..1_500)
            } else {
                millis(random, 2_500..5_000)
            },
        },
        11..=12 => Step::RestartPostgres(pick(random, &[Shutdown::Fast, Shutdown::Immediate])),
        13..=14 => Step::FreezePostgres(millis(random, 300..4_000)),
        15..=16 => Step::StoreLine {
            worker,
            trouble,
            length: millis(random, 300..5_000),
        },
        17 => Step::OrgLine {
            worker,
            trouble,
            length: millis(random, 300..3_000),
        },
        18..=22 => Step::Fault(fault(random)),
        23 => Step::ExpireTokens {
            failing: random.u32(..4),
        },
        25 if random.bool() => Step::Pause {
            subscription: random.usize(..subscriptions.len()),
            length: millis(random, 100..2_500),
        },
        24 if replays => Step::Replay {
            subscription: random.usize(..subscriptions.len()),
            beside: random.bool(),
        },
        24 => Step::RevokeTokens,
        25 => Step::ChangeSchema {
            orders: random.bool(),
            failing: random.u32(..4),
        },
        26 if forgetful => Step::ExpireBus {
            length: millis(random, 100..800),
        },
        27 if forgetful => Step::ResetBus,
        26 => Step::Retry,
        27 => Step::ReadOnly(millis(random, 300..4_000)),
        28 => Step::Exhaust {
            length: millis(random, 200..2_000),
        },
        _ => behave(random, subscriptions),
    }
}

fn behave(random: &mut Rng, subscriptions: &[Subscription]) -> Step {
    let subscription = random.usize(..subscriptions.len());
    let handler = random.usize(..subscriptions[subscription].handlers.len());
    let mode = match random.u8(..6) {
        0 | 1 => Mode::Slow(millis(random, 20..400)),
        2 => Mode::Failing(pick(random, &[500, 503, 429, 401, 404])),
        3 => Mode::Hanging,
        4 => Mode::Flaky(random.u32(2..9)),
        _ => Mode::Refusing(random.u32(5..40)),
    };
    Step::Behave {
        subscription,
        handler,
        mode,
        length: millis(random, 300..4_000),
    }
}

/// Trouble with the org that the emulator makes.
fn fault(random: &mut Rng) -> serde_json::Value {
    use serde_json::json;
    let after = random.u64(..60);
    match random.u8(..11) {
        0 => json!({"rpc": "Subscribe", "kind": "reset", "times": 2, "after_events": after}),
        1 => json!({"rpc": "Subscribe", "kind": "end", "times": 2, "after_events": after}),
        2 => json!({"rpc": "Subscribe", "kind": "disconnect", "times": 1, "after_events": after}),
        3 => json!({"rpc": "Subscribe", "kind": "silence", "times": 2, "after_events": after}),
        4 => json!({"rpc": "Subscribe", "kind": "half_open", "times": 1, "after_events": after}),
        5 => json!({"rpc": "Subscribe", "kind": "accept_then_fail", "times": 3,
                    "code": "service.unavailable"}),
        6 => {
            json!({"rpc": "Subscribe", "kind": "error", "times": 3, "code": "service.unavailable"})
        }
        7 => {
            json!({"rpc": "Subscribe", "kind": "expired_token", "times": 1, "after_events": after})
        }
        8 => json!({"rpc": "Subscribe", "kind": "oversize", "times": 1}),
        9 => json!({"rpc": "Subscribe", "kind": "delay", "times": 5, "after_events": after,
                    "delay_ms": random.u64(50..600)}),
        _ => json!({"rpc": "Subscribe", "kind": "hang", "times": 1}),
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
