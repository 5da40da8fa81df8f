//! What a process that runs `orgstream run` records.
//!
//! Labels have values from small sets: names in the configuration, and the words that each help text or
//! `docs/METRICS.md` names.

use metrics::Unit;

use super::{Kind, Metric};

/// Bounds for calls to handlers: webhooks to long transactions.
const HANDLER_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];
/// Bounds for calls to the store; few, for there are many operations, and each snapshot has all.
const STORE_SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0];
/// Bounds for the legs of an event's way: from a hand-over within the process to hours behind an outage.
const LEG_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
    1800.0, 7200.0, 43200.0,
];

table! {
    EVENTS_RECEIVED = "events_received_total", Kind::Counter, Count, ["subscription"],
        "Events received from the bus.";
    EVENTS_FINISHED = "events_finished_total", Kind::Counter, Count, ["subscription", "outcome"],
        "Events that are done with: handled by every handler that wants them, parked for at least one, filtered because no handler wants them, or a repeat of one in flight after a reconnect.";
    EVENTS_PARKED = "events_parked_total", Kind::Counter, Count, ["subscription", "handler", "reason"],
        "Events parked as dead letters, by the handler that could not handle them (none where they could not be decoded).";
    DEAD_LETTERS_OPEN = "dead_letters_open", Kind::Gauge, Count, ["subscription"],
        "Dead letters that are neither handled nor discarded.";
    DEAD_LETTERS_OLDEST = "dead_letters_oldest_timestamp_seconds", Kind::Gauge, Seconds, ["subscription"],
        "When the event of the oldest open dead letter was received; NaN where none is open, and where another worker runs the subscription.";
    DEAD_LETTERS_RESOLVED = "dead_letters_resolved_total", Kind::Counter, Count, ["subscription", "outcome"],
        "Dead letters that are open no more: handled after all, or discarded by a person.";
    LAG = "lag_seconds", Kind::Gauge, Seconds, ["subscription"],
        "Age of the oldest received unfinished event; while the stream is not live, and where nobody runs the subscription, at least the time since it was last caught up; a stream that is silent for longer than silence_limit is not live; NaN where another worker runs it.";
    LAG_LEG = "lag_leg_seconds", Kind::Histogram(LEG_SECONDS), Seconds, ["subscription", "leg"],
        "Time that each event spent on a leg of its way: bus (commit to receipt; change events only), wait (receipt to first hand-over), handler (first hand-over to finished, retries included), position (finished to position stored).";
    LAST_MESSAGE = "last_message_timestamp_seconds", Kind::Gauge, Seconds, ["subscription"],
        "When the last event or keepalive was received; before the first, when the stream was first opened; NaN before that, and where another worker runs the subscription.";
    POSITION_KEPT = "position_kept_seconds", Kind::Gauge, Seconds, ["subscription"],
        "How long the bus still keeps what follows the position; below zero where it is older than that; NaN where another worker runs the subscription.";
    IN_FLIGHT_EVENTS = "in_flight_events", Kind::Gauge, Count, ["subscription"],
        "Events received and above the position.";
    IN_FLIGHT_BYTES = "in_flight_bytes", Kind::Gauge, Bytes, ["subscription"],
        "Bytes of the events received and above the position.";
    CREDITS_OUTSTANDING = "credits_outstanding", Kind::Gauge, Count, ["subscription"],
        "Events asked for and not delivered yet.";
    STREAM_STATE = "stream_state", Kind::Gauge, Count, ["subscription", "state"],
        "1 for the state that the subscription's stream is in, 0 for the others; elsewhere where another worker runs it.";
    RECONNECTS = "reconnects_total", Kind::Counter, Count, ["subscription", "reason"],
        "Times a stream ended and was opened again, by what ended it.";
    HANDLER_TIME = "handler_seconds", Kind::Histogram(HANDLER_SECONDS), Seconds, ["subscription", "handler"],
        "Time from handing a batch to a handler to its answer.";
    HANDLER_RETRIES = "handler_retries_total", Kind::Counter, Count, ["subscription", "handler"],
        "Events that a handler asked to be handed over again.";
    HANDLER_EVENTS = "handler_events_total", Kind::Counter, Count, ["subscription", "handler", "outcome"],
        "What became of events at a handler, each answer counted: handled, retried, rejected, exhausted, or filtered because the handler does not want them.";
    HANDLER_DOWN = "handler_down", Kind::Gauge, Count, ["subscription", "handler"],
        "1 while a handler fails for everything, so that its events wait for it and none is parked.";
    APPEND_SKIPPED = "append_skipped_total", Kind::Counter, Count, ["subscription", "handler"],
        "Events that a `postgres` handler did not append, because its table has them already.";
    DECODE_FAILURES = "decode_failures_total", Kind::Counter, Count, ["subscription", "reason"],
        "Events that could not be decoded.";
    SCHEMA_FETCHES = "schema_fetches_total", Kind::Counter, Count, ["outcome"],
        "Calls of GetSchema.";
    SCHEMA_LOOKUPS = "schema_lookups_total", Kind::Counter, Count, ["source"],
        "Schemas looked for, by where they were found: memory, store, folder or org.";
    POSITION_WRITES = "position_writes_total", Kind::Counter, Count, ["outcome"],
        "Writes of positions to the store.";
    STORE_TIME = "store_seconds", Kind::Histogram(STORE_SECONDS), Seconds, ["operation"],
        "Time of a call to the store; transact holds the handler's own time within its transaction.";
    STORE_ERRORS = "store_errors_total", Kind::Counter, Count, ["operation", "kind"],
        "Calls to the store that failed: unavailable, not_migrated, fenced (another worker has taken over), refused, config, or abandoned because nobody waited any longer.";
    STORE_CONNECTIONS = "store_connections", Kind::Gauge, Count, ["pool", "state"],
        "Connections to the store's database that are open: idle or in_use.";
    STORE_CONNECTIONS_MAX = "store_connections_max", Kind::Gauge, Count, ["pool"],
        "Connections to the store's database that this process may open, by what they are for: calls of the store, the lease (heartbeats), and transactions of handlers, once one had any.";
    LEASE_HELD = "lease_held", Kind::Gauge, Count, ["subscription"],
        "1 where this process holds the subscription's lease.";
    LEASE_CHANGES = "lease_changes_total", Kind::Counter, Count, ["subscription", "change"],
        "Leases taken, released in order, or lost to another worker.";
    HOLES = "holes_total", Kind::Counter, Count, ["subscription", "kind"],
        "Holes recorded: stretches of the bus that were not seen (lost) or changes that came without content (gap).";
    TOKEN_REFRESHES = "token_refreshes_total", Kind::Counter, Count, ["outcome"],
        "Sign-ins to the org, the first included.";
    TOKEN_OBTAINED = "token_obtained_timestamp_seconds", Kind::Gauge, Seconds, [],
        "When the access token in use was obtained.";
    DELIVERIES_ALLOCATED = "deliveries_allocated", Kind::Gauge, Count, [],
        "Events that the org may be delivered in 24 hours, over all its subscribers.";
    DELIVERIES_REMAINING = "deliveries_remaining", Kind::Gauge, Count, [],
        "What is left of the org's event deliveries.";
    DELIVERIES_EXHAUSTED = "deliveries_exhausted_timestamp_seconds", Kind::Gauge, Seconds, [],
        "When the org's event deliveries will be used up, if they go on as in the last hour; NaN where they will not be.";
    IGNORED_BITMAP_BITS = "ignored_bitmap_bits_total", Kind::Counter, Count, [],
        "Bits in bitmaps of change events that name no field of the schema.";
    PROCESS_MEMORY = "process_resident_memory_bytes", Kind::Gauge, Bytes, [],
        "Memory of this process that is in RAM.";
    PROCESS_CPU = "process_cpu_seconds_total", Kind::Counter, Seconds, [],
        "Time that this process had a processor, in user and system mode together.";
    PROCESS_START = "process_start_time_seconds", Kind::Gauge, Seconds, [],
        "When this process was started.";
    PROCESS_FDS = "process_open_fds", Kind::Gauge, Count, [],
        "File descriptors that this process has open: files, sockets and pipes.";
    BUILD_INFO = "build_info", Kind::Gauge, Count, ["version", "commit"],
        "1 for the version that runs; the commit is empty where the build was not told.";
}

/// What connections to the store's database are for.
const POOLS: &[&str] = &["calls", "lease", "handlers"];

/// What the labels may be whose values are words of ours: name of the metric without its prefix, label, words.
pub const VALUES: &[(&str, &str, &[&str])] = &[
    (
        "events_finished_total",
        "outcome",
        &["handled", "parked", "filtered", "repeat"],
    ),
    (
        "events_parked_total",
        "reason",
        &[
            "rejected",
            "exhausted",
            "parked_behind",
            "undecodable",
            "schema_refused",
            "schema_unavailable",
        ],
    ),
    (
        "dead_letters_resolved_total",
        "outcome",
        &["handled", "discarded"],
    ),
    (
        "lag_leg_seconds",
        "leg",
        &["bus", "wait", "handler", "position"],
    ),
    (
        "stream_state",
        "state",
        &[
            "connecting",
            "live",
            "paused",
            "reconnecting",
            "blocked",
            "stopped",
            "elsewhere",
        ],
    ),
    (
        "handler_events_total",
        "outcome",
        &["handled", "retried", "rejected", "exhausted", "filtered"],
    ),
    (
        "decode_failures_total",
        "reason",
        &["undecodable", "schema_refused", "schema_unavailable"],
    ),
    (
        "schema_fetches_total",
        "outcome",
        &["fetched", "unavailable", "refused"],
    ),
    (
        "schema_lookups_total",
        "source",
        &["memory", "store", "folder", "org"],
    ),
    (
        "position_writes_total",
        "outcome",
        &["written", "failed", "fenced"],
    ),
    (
        "store_errors_total",
        "kind",
        &[
            "unavailable",
            "not_migrated",
            "fenced",
            "refused",
            "config",
            "abandoned",
        ],
    ),
    ("store_connections", "pool", POOLS),
    ("store_connections", "state", &["idle", "in_use"]),
    ("store_connections_max", "pool", POOLS),
    (
        "lease_changes_total",
        "change",
        &["taken", "released", "lost"],
    ),
    ("holes_total", "kind", &["lost", "gap"]),
    (
        "token_refreshes_total",
        "outcome",
        &["signed_in", "refused", "unavailable"],
    ),
];
