//! What `orgstream web` computes from the store: right when every worker is dead. No label says which process
//! gave it, for none did.

use metrics::Unit;

use super::{Kind, Metric};

table! {
    UP = "stored_up", Kind::Gauge, Count, [],
        "1 where the store answered this scrape; 0 where it did not, and every other stored metric is missing.";
    LAG = "stored_lag_seconds", Kind::Gauge, Seconds, ["subscription"],
        "Lag as the store knows it: while nobody reports that the subscription is live and caught up, at least the time since it last was.";
    CAUGHT_UP = "stored_caught_up_timestamp_seconds", Kind::Gauge, Seconds, ["subscription"],
        "Last moment with a live stream and nothing unfinished; NaN before the first.";
    POSITION_KEPT = "stored_position_kept_seconds", Kind::Gauge, Seconds, ["subscription"],
        "How long the bus still keeps what follows the stored position; below zero where it is older than that; NaN where there is no position yet.";
    DEAD_LETTERS_OPEN = "stored_dead_letters_open", Kind::Gauge, Count, ["subscription"],
        "Dead letters in the store that are neither handled nor discarded.";
    HOLES_OPEN = "stored_holes_open", Kind::Gauge, Count, ["subscription"],
        "Holes that nobody has acknowledged.";
    STATE = "stored_state", Kind::Gauge, Count, ["subscription", "state"],
        "1 for the state of the subscription, in the words of `orgstream status`, 0 for the others.";
    HELD = "stored_held", Kind::Gauge, Count, ["subscription"],
        "1 where a living worker holds the subscription's lease.";
    EPOCH = "stored_epoch", Kind::Gauge, Count, ["subscription"],
        "How often the subscription has changed hands, rewinds included: grows with each worker that takes it, also with one that was started anew.";
    PAUSED = "stored_paused", Kind::Gauge, Count, ["subscription"],
        "1 where a person paused the subscription.";
    DELIVERIES_ALLOCATED = "stored_deliveries_allocated", Kind::Gauge, Count, [],
        "Events that the org may be delivered in 24 hours, over all its subscribers, by the last reading.";
    DELIVERIES_REMAINING = "stored_deliveries_remaining", Kind::Gauge, Count, [],
        "What is left of the allocation, by the last reading.";
    DELIVERIES_EXHAUSTED = "stored_deliveries_exhausted_timestamp_seconds", Kind::Gauge, Seconds, [],
        "When the allocation will be used up, if deliveries go on as in the last hour; NaN where it will not be.";
    WORKERS_ALIVE = "workers_alive", Kind::Gauge, Count, [],
        "Workers that live, by their heartbeats.";
    SNAPSHOT_TIME = "worker_snapshot_timestamp_seconds", Kind::Gauge, Seconds, ["dyno"],
        "When a living worker last posted its metrics. They are left out once they are old.";
}
