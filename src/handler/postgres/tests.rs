//! Options, and what a batch becomes as rows; the SQL is tried in `tests/it/append.rs`.

use super::*;
use crate::handler::Registry;
use crate::handler::testing::{batch, config};

fn refusal(options: &str) -> String {
    let built = PostgresHandler::from_config(&config("postgres", options));
    built.unwrap_err().to_string()
}

#[test]
fn the_mode_alone_is_enough() {
    let handler = PostgresHandler::from_config(&config("postgres", "mode = 'append'")).unwrap();
    assert_eq!(handler.table.to_string(), "\"orgstream_events\"");
    assert_eq!(handler.timeout, Duration::from_secs(30));
    let registered = Registry::builtin().build(&config("postgres", "mode = 'append'"));
    assert!(registered.unwrap().transactional().is_some());
}

#[test]
fn options_that_cannot_work_are_refused_with_a_reason() {
    for (options, reason) in [
        ("", "`mode` is missing: give it \"append\""),
        ("mode = 'mirror'", "`mode` must be \"append\""),
        (
            "mode = 'append'\ntable = 'orgstream.rows'",
            "the store's own",
        ),
        ("mode = 'append'\ntable = 'a b'", "the name of a table"),
        (
            "mode = 'append'\nurl = 'postgres://other'",
            "the store's database",
        ),
        ("mode = 'append'\ntabel = 'x'", "did you mean `table`?"),
    ] {
        let said = refusal(options);
        assert!(said.contains(reason), "{options}: {said}");
    }
}

#[tokio::test]
async fn called_without_a_transaction_it_takes_nothing() {
    let handler = Registry::builtin()
        .build(&config("postgres", "mode = 'append'"))
        .unwrap();
    let answer = handler.handle(&batch(&["{}"])).await;
    assert!(matches!(answer, BatchAnswer::All(Answer::Retry(_))));
}

#[test]
fn an_error_that_is_no_events_fault_keeps_the_events() {
    let handler = PostgresHandler::from_config(&config("postgres", "mode = 'append'")).unwrap();
    for error in [
        sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into()),
        sqlx::Error::PoolTimedOut,
    ] {
        assert!(matches!(handler.answer_to(&error), Answer::Retry(_)));
    }
}
