//! The recovery table, against expectations written down from the facts.

use tonic::{Code, Status};

use super::super::error::CODE_PREFIX;
use super::super::recovery::CODES;
use super::super::{PubSubError, Recovery, Rpc};
use crate::salesforce::auth::AuthError;
use Recovery::{
    ApplyExpiredReplayPolicy, Block, Reconnect, ReconnectSlowly, SignInAgain, SignInAgainOnce,
    WaitForAllocation,
};

/// Every row of facts 6.2 with the status it comes with and the class it must have, written down
/// from there and not from the table above.
const CODES_EXPECTED: &[(&str, Code, Recovery)] = &[
    ("service.unavailable", Code::Internal, Reconnect),
    ("service.auth.error", Code::Unauthenticated, SignInAgain),
    ("service.auth.headers.invalid", Code::Unauthenticated, Block),
    (
        "service.auth.refresh.invalid",
        Code::Unauthenticated,
        SignInAgain,
    ),
    (
        "service.protection.triggered",
        Code::ResourceExhausted,
        ReconnectSlowly,
    ),
    (
        "service.protection.stream.limit.triggered",
        Code::ResourceExhausted,
        ReconnectSlowly,
    ),
    ("service.tenant.license", Code::PermissionDenied, Block),
    (
        "concurrent.client.limit.exceeded",
        Code::ResourceExhausted,
        ReconnectSlowly,
    ),
    ("topic.not.found", Code::NotFound, Block),
    ("topic.not.found", Code::PermissionDenied, Block),
    ("topic.notfound", Code::NotFound, Block),
    ("subscription.topic.notfound", Code::NotFound, Block),
    ("topic.meta.permission", Code::PermissionDenied, Block),
    ("topic.api.unavailable", Code::Unavailable, Reconnect),
    ("topic.validation.empty", Code::InvalidArgument, Block),
    ("schema.meta.permission", Code::PermissionDenied, Block),
    ("schema.api.unavailable", Code::Unavailable, Reconnect),
    ("schema.validation.failed", Code::InvalidArgument, Block),
    (
        "subscription.fetch.replayid.corrupted",
        Code::InvalidArgument,
        ApplyExpiredReplayPolicy,
    ),
    (
        "subscription.fetch.replayid.validation.failed",
        Code::InvalidArgument,
        Block,
    ),
    (
        "subscription.fetch.replay.repeated",
        Code::Internal,
        Reconnect,
    ),
    (
        "subscription.limit.exceeded",
        Code::ResourceExhausted,
        WaitForAllocation,
    ),
    (
        "subscription.fetch.overflow",
        Code::ResourceExhausted,
        Reconnect,
    ),
    (
        "subscription.fetch.requested.events.invalid",
        Code::InvalidArgument,
        Block,
    ),
    (
        "subscription.fetch.topic.mismatch",
        Code::InvalidArgument,
        Block,
    ),
    (
        "subscription.fetch.request.invalid",
        Code::InvalidArgument,
        Block,
    ),
    (
        "subscription.topic.cannot.subscribe",
        Code::PermissionDenied,
        Block,
    ),
    ("subscription.internal.error", Code::Internal, Reconnect),
    (
        "publish.stream.sweeper.timeout",
        Code::DeadlineExceeded,
        Reconnect,
    ),
    ("publish.auth.refresh.invalid", Code::InvalidArgument, Block),
    ("publish.event.count.invalid", Code::InvalidArgument, Block),
    ("publish.topic.mismatch", Code::InvalidArgument, Block),
    (
        "publish.topic.validation.empty",
        Code::InvalidArgument,
        Block,
    ),
    (
        "managed.subscription.already.active",
        Code::AlreadyExists,
        ReconnectSlowly,
    ),
    (
        "managed.subscription.config.stopped",
        Code::FailedPrecondition,
        Block,
    ),
    ("managed.subscription.config.deleted", Code::NotFound, Block),
    (
        "managed.subscription.developer.name.not.found",
        Code::NotFound,
        Block,
    ),
    (
        "managed.subscription.subscription.id.not.found",
        Code::NotFound,
        Block,
    ),
    (
        "managed.subscription.subscription.id.invalid",
        Code::InvalidArgument,
        Block,
    ),
    (
        "managed.subscription.id.or.developer.name.empty",
        Code::InvalidArgument,
        Block,
    ),
    (
        "managed.subscription.fetch.request.events.invalid",
        Code::InvalidArgument,
        Block,
    ),
    (
        "managed.subscription.fetch.request.invalid",
        Code::InvalidArgument,
        Block,
    ),
    (
        "managed.subscription.fetch.request.commit.request.restricted",
        Code::InvalidArgument,
        Block,
    ),
    (
        "managed.subscription.fetch.request.auth.request.restricted",
        Code::InvalidArgument,
        Block,
    ),
    // Unknown codes retry and never reposition.
    (
        "subscription.fetch.replayid.moved",
        Code::InvalidArgument,
        Reconnect,
    ),
    ("something.new", Code::PermissionDenied, Reconnect),
    ("something.new", Code::FailedPrecondition, Reconnect),
    ("something.new", Code::NotFound, Block),
    ("something.new", Code::Unauthenticated, SignInAgain),
    ("notopic.not.found", Code::Internal, Reconnect),
];

/// Every row of facts 6.3, and the one row of 6.2 that has no code.
const STATUSES_EXPECTED: &[(&str, Code, Recovery)] = &[
    ("RST_STREAM, HTTP/2 NO_ERROR", Code::Unavailable, Reconnect),
    (
        "RST_STREAM code 0 without a status",
        Code::Internal,
        Reconnect,
    ),
    ("server RST INTERNAL_ERROR", Code::Internal, Reconnect),
    (
        "response ended prematurely, connection reset",
        Code::Unavailable,
        Reconnect,
    ),
    ("ping not answered", Code::Unavailable, Reconnect),
    (
        "upstream connect error, reset before headers",
        Code::Unavailable,
        Reconnect,
    ),
    ("our own decode limit", Code::OutOfRange, Reconnect),
    ("failed to read message", Code::Cancelled, Reconnect),
    (
        "refused on an auth-like path",
        Code::PermissionDenied,
        SignInAgainOnce,
    ),
    (
        "managed subscription idle for 1800 s",
        Code::DeadlineExceeded,
        Reconnect,
    ),
    (
        "too many connections",
        Code::ResourceExhausted,
        ReconnectSlowly,
    ),
    ("bad token", Code::Unauthenticated, SignInAgain),
    ("unknown topic", Code::NotFound, Block),
    ("not a Pub/Sub API", Code::Unimplemented, Block),
    (
        "no code, so no lost position",
        Code::InvalidArgument,
        Reconnect,
    ),
    ("anything else", Code::DataLoss, Reconnect),
];

fn error(code: Option<&str>, status: Code) -> PubSubError {
    let mut answer = Status::new(status, "words that nobody may match on: replayid.corrupted");
    if let Some(code) = code {
        let value = format!("{CODE_PREFIX}{code}").parse().unwrap();
        answer.metadata_mut().insert("error-code", value);
    }
    PubSubError::from_status(Rpc::Subscribe, &answer, "bus.example:443")
}

#[test]
fn every_code_has_its_class() {
    for &(code, status, recovery) in CODES_EXPECTED {
        let error = error(Some(code), status);
        assert_eq!(error.recovery(), recovery, "{code} with {status:?}");
    }
    for (code, _) in CODES {
        assert!(
            CODES_EXPECTED.iter().any(|(expected, ..)| expected == code),
            "{code} is in the table and in no expectation"
        );
    }
}

#[test]
fn every_status_without_a_code_has_its_class() {
    for &(symptom, status, recovery) in STATUSES_EXPECTED {
        assert_eq!(error(None, status).recovery(), recovery, "{symptom}");
    }
}

#[test]
fn whatever_may_need_a_person_says_what_to_change() {
    let expectations = CODES_EXPECTED
        .iter()
        .map(|&(code, status, _)| error(Some(code), status))
        .chain(
            STATUSES_EXPECTED
                .iter()
                .map(|&(_, status, _)| error(None, status)),
        );
    for error in expectations {
        let acts = matches!(error.recovery(), Block | SignInAgain | SignInAgainOnce);
        assert!(!acts || error.cure().is_some(), "{error}");
        assert!(!error.reason().is_empty());
    }
}

#[test]
fn a_refused_sign_in_says_its_cure_in_its_text_and_nowhere_twice() {
    let error = PubSubError::from(AuthError::Refused {
        reason: "invalid_client".to_owned(),
        cure: "Copy the consumer key".to_owned(),
    });
    assert_eq!(error.recovery(), Block);
    assert_eq!(error.to_string().matches("Copy the").count(), 1);
    assert_eq!(error.cure(), None);
}

#[test]
fn a_second_refusal_backs_off_or_blocks() {
    assert_eq!(SignInAgain.refused_again(), Reconnect);
    assert_eq!(SignInAgainOnce.refused_again(), Block);
    assert_eq!(WaitForAllocation.refused_again(), WaitForAllocation);
}
