//! What to do about a failed call: one table, by code and then by status (facts 6.1 to 6.3).

use tonic::Code;

/// What to do about a failed call. Decided in one place, [`super::PubSubError::recovery`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Recovery {
    /// Passing trouble: back off, reconnect, resume from memory.
    Reconnect,
    /// As `Reconnect`, with a long pause: the org protects itself.
    ReconnectSlowly,
    /// Get a new access token and try again at once; back off if that is refused too.
    SignInAgain,
    /// As `SignInAgain`, because a refused token can look so; but refused again, it is `Block`
    /// ([`Recovery::refused_again`]).
    SignInAgainOnce,
    /// The 24-hour delivery allocation is used up: stay away for long.
    WaitForAllocation,
    /// The position is not on the bus any more: do as `on_expired_replay_id` says, and record a hole.
    ApplyExpiredReplayPolicy,
    /// A person has to change something: state `blocked`, say the cure, try again slowly.
    Block,
}

impl Recovery {
    /// What to do where the same answer came for a session that was signed in just now.
    #[must_use]
    pub fn refused_again(self) -> Self {
        match self {
            Self::SignInAgain => Self::Reconnect,
            Self::SignInAgainOnce => Self::Block,
            other => other,
        }
    }
}

/// One class of failure.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) recovery: Recovery,
    pub(super) reason: &'static str,
    pub(super) cure: Option<&'static str>,
}

const fn retry(recovery: Recovery, reason: &'static str) -> Row {
    Row {
        recovery,
        reason,
        cure: None,
    }
}

const fn cured(recovery: Recovery, reason: &'static str, cure: &'static str) -> Row {
    Row {
        recovery,
        reason,
        cure: Some(cure),
    }
}

use Recovery::{
    ApplyExpiredReplayPolicy, Block, Reconnect, ReconnectSlowly, SignInAgain, SignInAgainOnce,
    WaitForAllocation,
};

const UNAVAILABLE: Row = retry(Reconnect, "unavailable");
const UNKNOWN: Row = retry(Reconnect, "unknown");
/// Cured by a new sign-in; the words are for a session that the org refuses however often it is new.
const AUTH: Row = cured(
    SignInAgain,
    "auth",
    "Signing in works, but the Pub/Sub API refuses the session: check that the app does not issue JSON Web Token \
     (JWT)-based access tokens, that `salesforce.instance_url` and `salesforce.org_id` (where given) are those of the \
     org signed in to, that Setup > Session Settings does not lock sessions to the IP address they came from where \
     this machine's changes, and that the user has the permission \"API Enabled\"",
);
const PROTECTION: Row = retry(ReconnectSlowly, "protection");
/// A request that orgstream should not have sent. It stands still and says so, rather than guess.
const OURS: Row = cured(
    Block,
    "fault",
    "This request should never have been sent: please report it as a fault of orgstream, with the rpc-id",
);
const TOPIC: Row = cured(
    Block,
    "topic",
    "Check the topic's spelling (case matters) and that it exists in the org signed in to: for a change event, select \
     the object in Setup > Change Data Capture; for a platform event, see Setup > Platform Events",
);
const PERMISSION: Row = cured(
    Block,
    "permission",
    "Give the user of this login a permission set with Read on the platform event, or View All on the object of the \
     change event (View All Data and View All Users for /data/ChangeEvents), and the app the scope \"Manage user data \
     via APIs (api)\"; it takes effect within 10 minutes",
);
const MANAGED: Row = cured(
    Block,
    "managed_subscription",
    "Check the managed subscription in the org (Tooling API object ManagedEventSubscription): it must exist, for at \
     least 5 minutes, and its state must be RUN",
);

/// Every code of the `error-code` trailer, without the prefix that all share (facts 6.2).
pub(super) const CODES: &[(&str, Row)] = &[
    ("service.unavailable", UNAVAILABLE),
    ("service.auth.error", AUTH),
    (
        "service.auth.headers.invalid",
        cured(
            Block,
            "configuration",
            "The org's address or ID is not accepted: check `salesforce.login_url`, and with a ready access token \
             `salesforce.instance_url` and `salesforce.org_id`",
        ),
    ),
    // Only a client that renews its token inside a stream gets these; ours does not.
    ("service.auth.refresh.invalid", AUTH),
    ("service.protection.triggered", PROTECTION),
    ("service.protection.stream.limit.triggered", PROTECTION),
    (
        "service.tenant.license",
        cured(
            Block,
            "license",
            "This org's edition or licences do not include the Pub/Sub API (Enterprise, Performance, Unlimited and \
             Developer do): check `salesforce.login_url`, or ask Salesforce",
        ),
    ),
    (
        "concurrent.client.limit.exceeded",
        cured(
            ReconnectSlowly,
            "client_limit",
            "Too many clients publish and subscribe in this org: stop some, or let one subscription feed several handlers",
        ),
    ),
    ("topic.not.found", TOPIC),
    // As two other programs spell it.
    ("topic.notfound", TOPIC),
    ("topic.meta.permission", PERMISSION),
    ("topic.api.unavailable", UNAVAILABLE),
    ("topic.validation.empty", OURS),
    ("schema.meta.permission", PERMISSION),
    ("schema.api.unavailable", UNAVAILABLE),
    ("schema.validation.failed", OURS),
    (
        "subscription.fetch.replayid.corrupted",
        retry(ApplyExpiredReplayPolicy, "replay_id_expired"),
    ),
    ("subscription.fetch.replayid.validation.failed", OURS),
    (
        "subscription.fetch.replay.repeated",
        retry(Reconnect, "replay_repeated"),
    ),
    (
        "subscription.limit.exceeded",
        cured(
            WaitForAllocation,
            "allocation",
            "The org's event deliveries of the last 24 hours are used up, over all its subscribers: stop other \
             subscribers or buy more; events are kept for 72 hours meanwhile",
        ),
    ),
    ("subscription.fetch.overflow", retry(Reconnect, "overflow")),
    ("subscription.fetch.requested.events.invalid", OURS),
    ("subscription.fetch.topic.mismatch", OURS),
    ("subscription.fetch.request.invalid", OURS),
    ("subscription.topic.cannot.subscribe", PERMISSION),
    ("subscription.internal.error", UNAVAILABLE),
    ("publish.stream.sweeper.timeout", retry(Reconnect, "idle")),
    ("publish.auth.refresh.invalid", OURS),
    ("publish.event.count.invalid", OURS),
    ("publish.topic.mismatch", OURS),
    ("publish.topic.validation.empty", OURS),
    // Its slot may be held for 15 minutes after a lost connection.
    (
        "managed.subscription.already.active",
        retry(ReconnectSlowly, "already_active"),
    ),
    ("managed.subscription.config.stopped", MANAGED),
    ("managed.subscription.config.deleted", MANAGED),
    ("managed.subscription.developer.name.not.found", MANAGED),
    ("managed.subscription.subscription.id.not.found", MANAGED),
    ("managed.subscription.subscription.id.invalid", OURS),
    ("managed.subscription.id.or.developer.name.empty", OURS),
    ("managed.subscription.fetch.request.events.invalid", OURS),
    ("managed.subscription.fetch.request.invalid", OURS),
    (
        "managed.subscription.fetch.request.commit.request.restricted",
        OURS,
    ),
    (
        "managed.subscription.fetch.request.auth.request.restricted",
        OURS,
    ),
];

/// What a status means without a code that is known (facts 6.3). Two hazards: a response beyond our own
/// decode limit (tonic says OutOfRange) comes again with every reconnect, so the limit stands far above
/// what the platform sends; and an Unavailable on Publish may be a request that was too large, so those
/// are measured before they are sent.
const STATUSES: &[(Code, Row)] = &[
    (Code::Unavailable, UNAVAILABLE),
    (Code::Internal, UNAVAILABLE),
    (Code::Unknown, UNAVAILABLE),
    (Code::Aborted, UNAVAILABLE),
    (Code::Cancelled, retry(Reconnect, "cancelled")),
    (Code::DeadlineExceeded, retry(Reconnect, "timeout")),
    (Code::OutOfRange, retry(Reconnect, "message_too_large")),
    (Code::ResourceExhausted, PROTECTION),
    (
        Code::AlreadyExists,
        retry(ReconnectSlowly, "already_active"),
    ),
    (Code::Unauthenticated, AUTH),
    (
        Code::PermissionDenied,
        Row {
            recovery: SignInAgainOnce,
            ..PERMISSION
        },
    ),
    (Code::NotFound, TOPIC),
    (
        Code::Unimplemented,
        cured(
            Block,
            "configuration",
            "No Pub/Sub API answers there: set `salesforce.pubsub_endpoint` (SALESFORCE_PUBSUB_ENDPOINT) to \
             https://api.pubsub.salesforce.com:7443, or to port 443 where 7443 is blocked",
        ),
    ),
];

/// These mean what they mean even beside a code that is not known: a topic's absence is spelt in several
/// ways (facts 6.2), and a refused token is refused whatever it is called. Any other unknown code is
/// retried.
const SURE_STATUSES: [Code; 2] = [Code::NotFound, Code::Unauthenticated];

/// The row for a failed call.
pub(super) fn row(code: Option<&str>, status: Code) -> &'static Row {
    if let Some(code) = code {
        if let Some(row) = row_of_code(code) {
            return row;
        }
        if !SURE_STATUSES.contains(&status) {
            return &UNKNOWN;
        }
    }
    STATUSES
        .iter()
        .find(|(known, _)| *known == status)
        .map_or(&UNKNOWN, |(_, row)| row)
}

/// The longest known suffix decides: `managed.subscription.fetch.request.invalid` ends in another code.
fn row_of_code(code: &str) -> Option<&'static Row> {
    let ends_in = |suffix: &str| match code.strip_suffix(suffix) {
        Some(head) => head.is_empty() || head.ends_with('.'),
        None => false,
    };
    CODES
        .iter()
        .filter(|(suffix, _)| ends_in(suffix))
        .max_by_key(|(suffix, _)| suffix.len())
        .map(|(_, row)| row)
}
