//! Options, subjects and messages; the server itself is in `tests/it/handlers/nats.rs`.

use super::super::testing::{batch, config};
use super::*;

fn problems(options: &str) -> String {
    NatsHandler::from_config(&config("nats", options))
        .unwrap_err()
        .to_string()
}

#[test]
fn every_wrong_option_is_said_at_once_and_shows_no_value() {
    let said = problems(
        "url = 'http://hidden'\nsubject = 'a..{topic}'\nuser = 'hidden'\nnkey = 'hidden'\ncredentials = 'hidden'\n\
         ca_file = '/no/such/file'\npaswort = 'hidden'",
    );
    for part in [
        "`url` must be nats://",
        "`subject` must not have an empty level",
        "`user` needs `password`",
        "`nkey` must be the seed",
        "`credentials` must be the whole text",
        "`ca_file` cannot be read",
        "did you mean `password`?",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert!(!said.contains("hidden"), "{said}");
}

#[test]
fn a_secret_does_not_stand_in_the_address() {
    for url in [
        "nats://hidden@localhost",
        "tls://a:hidden@localhost,nats://other",
    ] {
        let said = problems(&format!("url = '{url}'"));
        assert!(said.contains("`url` must not hold a user name"), "{said}");
        assert!(!said.contains("hidden"), "{said}");
    }
}

#[test]
fn there_is_one_way_to_sign_in() {
    let said = problems("url = 'nats://a'\ntoken = 'hidden'\nuser = 'a'\npassword = 'hidden'");
    assert!(said.contains("more than one way to sign in"), "{said}");
    assert!(!said.contains("hidden"), "{said}");
}

#[test]
fn subjects_have_levels_and_no_wildcards() {
    for wrong in ["a.*", "a.>", ".a", "a.", "a..b", "$JS.{topic}", "a b", ""] {
        assert!(read_subject(wrong).is_err(), "{wrong}");
    }
    for (right, any) in [
        ("orgstream.{topic}", "orgstream.*"),
        ("{org}.x-{entity}.{subscription}", "*.*.*"),
        ("plain", "plain"),
    ] {
        assert_eq!(any_subject(&read_subject(right).unwrap()), any);
    }
}

#[test]
fn a_stream_knows_an_event_by_subscription_identity_and_subject() {
    let batch = batch(&["{}"]);
    assert_eq!(
        message_id(&batch.subscription, "by.Account", &batch.events[0]),
        "orders:event-0:0000:by.Account"
    );
}

#[test]
fn what_is_too_large_is_rejected_and_what_has_no_room_waits() {
    let error = |code: u64, text: &str| -> async_nats::jetstream::Error {
        let error = serde_json::json!({"code": 400, "err_code": code, "description": text});
        serde_json::from_value(error).unwrap()
    };
    let Answer::Reject { reason } =
        refused("h:1", &error(10054, "message size exceeds maximum allowed"))
    else {
        panic!("not rejected");
    };
    assert!(
        reason.contains("max_msg_size") && reason.contains("h:1"),
        "{reason}"
    );
    for code in [10077, 10047, 10023, 10028, 10002, 10109, 10999] {
        let Answer::Retry(retry) = refused("h:1", &error(code, "maximum bytes exceeded")) else {
            panic!("{code} is no retry");
        };
        assert!(
            retry.reason.contains("maximum bytes exceeded"),
            "{}",
            retry.reason
        );
    }
}

#[test]
fn a_stream_without_room_is_not_held_against_the_event_that_it_has_none_for() {
    let answered = |code: u64, description: &str| {
        let said = serde_json::json!({"code": 503, "err_code": code, "description": description});
        refused("h:4222", &serde_json::from_value(said).unwrap())
    };
    for (code, description) in [
        (10077, "maximum bytes exceeded"),
        (10023, "insufficient resources"),
        (10047, "insufficient storage resources available"),
        (10028, "insufficient memory resources available"),
        (10002, "resource limits exceeded for account"),
        (10109, "invalid operation on sealed stream"),
    ] {
        let Answer::Retry(retry) = answered(code, description) else {
            panic!("{description}");
        };
        assert!(retry.reason.contains(description), "{}", retry.reason);
        assert!(!retry.counts, "{description}");
    }
    let Answer::Retry(retry) = answered(10071, "wrong last sequence") else {
        panic!("not a retry");
    };
    assert!(retry.counts, "nobody knows whose fault that is");
    let larger = answered(10054, "message size exceeds maximum allowed");
    assert!(matches!(larger, Answer::Reject { .. }), "{larger:?}");
}

#[tokio::test]
async fn a_server_that_is_away_is_a_retry_that_names_it() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let config = config("nats", &format!("url = 'nats://127.0.0.1:{port}'"));
    let handler = NatsHandler::from_config(&config).unwrap();
    let BatchAnswer::Each(answers) = handler.handle(&batch(&["{}", "{}"])).await else {
        panic!("one answer for all");
    };
    let Answer::Retry(retry) = &answers[0] else {
        panic!("not a retry");
    };
    assert!(
        retry.reason.contains(&format!("127.0.0.1:{port}")),
        "{}",
        retry.reason
    );
    assert!(
        retry.reason.contains("look at host and port"),
        "{}",
        retry.reason
    );
    assert!(!retry.counts);
    assert!(matches!(&answers[1], Answer::Retry(retry) if !retry.counts));
}
