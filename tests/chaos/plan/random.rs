//! From a seed to its plan.

use std::time::Duration;

use fastrand::Rng;

use super::super::cluster::Shutdown;
use super::{Feed, Handler, HandlerKind, Mode, Plan, Step, Subscription, Traffic, Trouble};

fn millis(random: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(random.u64(range))
}

fn pick<T: Copy>(random: &mut Rng, from: &[T]) -> T {
    from[random.usize(..from.len())]
}

impl Plan {
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
        let mut more = Rng::with_seed(!seed);
        for step in more_steps(&mut more, workers, &subscriptions, (forgetful, replays)) {
            let at = Duration::from_millis(more.u64(200..length.as_millis() as u64));
            steps.push((at, step));
        }
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

/// What joined later, by numbers of its own: the rest of a seed's plan stays what it was.
fn more_steps(
    random: &mut Rng,
    workers: usize,
    subscriptions: &[Subscription],
    (forgetful, replays): (bool, bool),
) -> Vec<Step> {
    let mut steps = Vec::new();
    if random.u8(..3) == 0 {
        steps.push(Step::Scale {
            worker: random.usize(..workers),
            away: millis(random, 2_000..5_000),
        });
    }
    if random.u8(..5) == 0 {
        steps.push(Step::Discard);
    }
    let subscription = random.usize(..subscriptions.len());
    // A renamed subscription's rows are no longer known in an append table, should they come again.
    if random.u8(..5) == 0 && !forgetful && !replays {
        steps.push(Step::Rename { subscription });
    }
    if replays {
        for beside in [false, true] {
            if random.bool() {
                steps.push(Step::Replay {
                    subscription,
                    beside,
                });
            }
        }
        if random.bool() {
            let handlers = subscriptions[subscription].handlers.len();
            steps.push(Step::ReplayTo {
                subscription,
                handler: random.usize(..handlers),
            });
        }
    }
    steps
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
