//! Failed calls as the platform words them: gRPC status, `error-code`, `rpc-id` and `type` trailers, and
//! a message that ends with the RPC ID (facts 2.2 and 6.2).

use std::fmt;

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// What all error codes begin with.
const PREFIX: &str = "sfdc.platform.eventbus.grpc.";

/// Marks a status that must reach the client as a stream reset without any status (see `reset`).
pub(super) const RESET_MARK: &str = "x-emulator-reset";

/// The calls of the service and the token endpoint, as faults, counts and the `type` trailer name them.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Call {
    /// The subscribe stream.
    Subscribe,
    /// One schema by ID.
    GetSchema,
    /// One topic by name.
    GetTopic,
    /// Unary publish.
    Publish,
    /// The publish stream.
    PublishStream,
    /// The managed subscription stream, which the emulator does not offer.
    ManagedSubscribe,
    /// The OAuth token endpoint.
    Token,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Every documented error code and the status it comes with: the observed one where facts 6.2 names one,
/// else the one suggested there.
pub const CODES: &[(&str, Code)] = &[
    ("service.unavailable", Code::Internal),
    ("service.auth.error", Code::Unauthenticated),
    ("service.auth.headers.invalid", Code::Unauthenticated),
    ("service.auth.refresh.invalid", Code::Unauthenticated),
    ("service.protection.triggered", Code::ResourceExhausted),
    (
        "service.protection.stream.limit.triggered",
        Code::ResourceExhausted,
    ),
    ("service.tenant.license", Code::PermissionDenied),
    ("concurrent.client.limit.exceeded", Code::ResourceExhausted),
    ("topic.not.found", Code::NotFound),
    ("topic.meta.permission", Code::PermissionDenied),
    ("topic.api.unavailable", Code::Unavailable),
    ("topic.validation.empty", Code::InvalidArgument),
    ("schema.meta.permission", Code::PermissionDenied),
    ("schema.api.unavailable", Code::Unavailable),
    ("schema.validation.failed", Code::InvalidArgument),
    (
        "subscription.fetch.replayid.corrupted",
        Code::InvalidArgument,
    ),
    (
        "subscription.fetch.replayid.validation.failed",
        Code::InvalidArgument,
    ),
    ("subscription.fetch.replay.repeated", Code::Internal),
    ("subscription.limit.exceeded", Code::ResourceExhausted),
    ("subscription.fetch.overflow", Code::ResourceExhausted),
    (
        "subscription.fetch.requested.events.invalid",
        Code::InvalidArgument,
    ),
    ("subscription.fetch.topic.mismatch", Code::InvalidArgument),
    ("subscription.fetch.request.invalid", Code::InvalidArgument),
    (
        "subscription.topic.cannot.subscribe",
        Code::PermissionDenied,
    ),
    ("subscription.internal.error", Code::Internal),
    ("publish.stream.sweeper.timeout", Code::DeadlineExceeded),
    ("publish.auth.refresh.invalid", Code::InvalidArgument),
    ("publish.event.count.invalid", Code::InvalidArgument),
    ("publish.topic.mismatch", Code::InvalidArgument),
    ("publish.topic.validation.empty", Code::InvalidArgument),
    ("managed.subscription.already.active", Code::AlreadyExists),
    (
        "managed.subscription.config.stopped",
        Code::FailedPrecondition,
    ),
    ("managed.subscription.config.deleted", Code::NotFound),
    (
        "managed.subscription.developer.name.not.found",
        Code::NotFound,
    ),
    (
        "managed.subscription.subscription.id.not.found",
        Code::NotFound,
    ),
    (
        "managed.subscription.subscription.id.invalid",
        Code::InvalidArgument,
    ),
    (
        "managed.subscription.id.or.developer.name.empty",
        Code::InvalidArgument,
    ),
    (
        "managed.subscription.fetch.request.events.invalid",
        Code::InvalidArgument,
    ),
    (
        "managed.subscription.fetch.request.invalid",
        Code::InvalidArgument,
    ),
    (
        "managed.subscription.fetch.request.commit.request.restricted",
        Code::InvalidArgument,
    ),
    (
        "managed.subscription.fetch.request.auth.request.restricted",
        Code::InvalidArgument,
    ),
];

/// The status of a code; INTERNAL for one nobody documents, for that is how trouble arrives there.
pub(super) fn status_of(code: &str) -> Code {
    let suffix = code.strip_prefix(PREFIX).unwrap_or(code);
    CODES
        .iter()
        .find(|(known, _)| *known == suffix)
        .map_or(Code::Internal, |(_, status)| *status)
}

/// One call on its way: its name and its ID, which every answer to it carries.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    pub(super) call: Call,
    pub(super) rpc_id: String,
}

impl Ticket {
    /// A ticket with a fresh RPC ID.
    pub(super) fn new(call: Call) -> Self {
        Self {
            call,
            rpc_id: uuid::Uuid::new_v4().to_string(),
        }
    }

    /// A documented failure, with the status that belongs to it.
    pub(super) fn refuse(&self, code: &str, detail: &str) -> Status {
        self.refuse_as(status_of(code), Some(code), detail)
    }

    /// A failure with any status, with or without a code.
    pub(super) fn refuse_as(&self, status: Code, code: Option<&str>, detail: &str) -> Status {
        let mut answer = Status::new(status, format!("{detail} rpcId: {}", self.rpc_id));
        let code = code.map(|code| match code.strip_prefix(PREFIX) {
            Some(_) => code.to_owned(),
            None => format!("{PREFIX}{code}"),
        });
        let trailers = [
            ("error-code", code),
            ("rpc-id", Some(self.rpc_id.clone())),
            ("type", Some(self.call.to_string())),
        ];
        for (key, value) in trailers {
            if let Some(value) = value.and_then(|value| MetadataValue::try_from(value).ok()) {
                answer.metadata_mut().insert(key, value);
            }
        }
        answer
    }

    /// A failure that reaches the client as a reset of its stream, without a status.
    pub(super) fn reset(&self) -> Status {
        let mut answer = Status::unavailable("reset");
        answer
            .metadata_mut()
            .insert(RESET_MARK, MetadataValue::from_static("1"));
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_call_names_its_code_its_type_and_its_rpc_id() {
        let ticket = Ticket::new(Call::Subscribe);
        let status = ticket.refuse("service.unavailable", "The service is unavailable.");
        let trailer = |key: &str| status.metadata().get(key).unwrap().to_str().unwrap();
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(
            trailer("error-code"),
            "sfdc.platform.eventbus.grpc.service.unavailable"
        );
        assert_eq!(trailer("type"), "Subscribe");
        assert!(
            status
                .message()
                .ends_with(&format!(" rpcId: {}", trailer("rpc-id")))
        );
    }
}
