//! Options and answers; the SQL is tried in `tests/it/append.rs` and `tests/it/handlers/postgres`.

use super::*;
use crate::handler::testing::{batch, config};
use crate::handler::{OptionProblem, Registry};

const ELSEWHERE: &str = "database_url = 'postgres://hidden:hidden@localhost:1/hidden'";

fn handler(options: &str) -> PostgresHandler {
    let config = config("postgres", options);
    settings::read(&config).unwrap().0
}

fn refusal(options: &str) -> String {
    let config = config("postgres", options);
    settings::read(&config).err().unwrap().to_string()
}

fn built(options: &str) -> Arc<dyn Handler> {
    Registry::builtin()
        .build(&config("postgres", options))
        .unwrap()
}

#[test]
fn the_mode_alone_is_enough_for_rows() {
    for mode in ["append", "notify"] {
        let handler = handler(&format!("mode = '{mode}'"));
        let Job::Append(append) = &handler.job else {
            panic!("{handler:?}");
        };
        assert_eq!(append.table().to_string(), "\"orgstream_events\"");
        assert_eq!(handler.timeout, Duration::from_secs(30));
    }
}

#[test]
fn a_call_gets_one_event_unless_more_are_asked_for() {
    let events = |more: &str| {
        let handler = handler(&format!("mode = 'call'\nfunction = 'crm.on_event'\n{more}"));
        TransactionalHandler::batch_limits(&handler).events
    };
    assert_eq!(events(""), 1);
    assert_eq!(events("batch = true"), 100);
    assert_eq!(events("batch_events = 20"), 20);
    assert_eq!(events("batch = true\nbatch_events = 7"), 7);
}

#[test]
fn options_that_cannot_work_are_refused_with_a_reason() {
    for (options, reason) in [
        (
            "",
            "`mode` is missing: give it \"append\", \"call\" or \"notify\"",
        ),
        (
            "mode = 'mirror'",
            "`mode` must be \"append\", \"call\" or \"notify\"",
        ),
        (
            "mode = 'append'\ntable = 'orgstream.rows'",
            "the store's own",
        ),
        ("mode = 'append'\ntable = 'a b'", "the name of a table"),
        ("mode = 'append'\ntabel = 'x'", "did you mean `table`?"),
        (
            "mode = 'append'\nchannel = 'x'",
            "`channel` goes with mode notify",
        ),
        ("mode = 'notify'\nchannel = 'a b'", "the name of a channel"),
        ("mode = 'call'", "`function` is missing"),
        ("mode = 'call'\nfunction = 'f()'", "the name of a function"),
        (
            "mode = 'call'\nfunction = 'f'\ntable = 't'",
            "`table` goes with mode append and notify",
        ),
        (
            "mode = 'append'\nbatch = true",
            "`batch` goes with mode call",
        ),
        (
            "mode = 'append'\nmax_connections = 2",
            "`max_connections` goes with `database_url`",
        ),
        (
            "mode = 'append'\ndatabase_url = 'mysql://hidden'",
            "`database_url` must be postgres://",
        ),
        (
            "mode = 'append'\ndatabase_url = ''",
            "`database_url` is blank",
        ),
        (
            "mode = 'append'\ndatabase_url = 'postgres://u:hidden@h:port/d'",
            "`database_url` cannot be used: invalid port",
        ),
    ] {
        let said = refusal(options);
        assert!(said.contains(reason), "{options}: {said}");
        assert!(!said.contains("hidden"), "{options}: {said}");
    }
}

#[test]
fn what_is_wrong_is_said_at_once() {
    let said = refusal("mode = 'call'\ntable = 'a b'\nbatch = 'x'\ndatabase_url = 'x'\nzzz = 1");
    for key in [
        "`function`",
        "`table`",
        "`batch`",
        "`database_url`",
        "`zzz`",
    ] {
        assert!(said.contains(key), "{key}: {said}");
    }
}

#[tokio::test]
async fn beside_the_store_it_wants_a_transaction_of_the_stores() {
    let handler = built("mode = 'append'");
    assert!(handler.transactional().is_some());
    let answer = handler.handle(&batch(&["{}"])).await;
    assert!(matches!(answer, BatchAnswer::All(Answer::Retry(_))));
}

#[tokio::test]
async fn a_database_of_its_own_that_is_away_keeps_the_events_and_the_reason_holds_no_secret() {
    for mode in ["mode = 'append'", "mode = 'call'\nfunction = 'f'"] {
        let handler = built(&format!("{mode}\n{ELSEWHERE}"));
        assert!(handler.transactional().is_none());
        let BatchAnswer::All(Answer::Retry(retry)) = handler.handle(&batch(&["{}"])).await else {
            panic!("port 1 answers");
        };
        assert!(
            retry.reason.contains("localhost:1") && retry.reason.contains("database_url"),
            "{}",
            retry.reason
        );
        let checked = handler.check().await.unwrap_err();
        assert_eq!(checked, retry.reason);
        assert!(!checked.contains("hidden"), "{checked}");
        handler.close(Duration::from_secs(1)).await;
        let answer = handler.handle(&batch(&["{}"])).await;
        assert!(matches!(answer, BatchAnswer::All(Answer::Retry(_))));
    }
}

#[test]
fn nothing_secret_is_in_the_debug_form() {
    let config = config("postgres", &format!("mode = 'append'\n{ELSEWHERE}"));
    let (handler, connections) = settings::read(&config).unwrap();
    let handler = Elsewhere::new(handler, connections.unwrap());
    let shown = format!("{handler:?}");
    assert!(!shown.contains("hidden"), "{shown}");
}

#[test]
fn an_error_that_is_no_events_fault_keeps_the_events() {
    let Job::Append(append) = handler("mode = 'append'").job else {
        panic!("no append");
    };
    for error in [
        sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into()),
        sqlx::Error::PoolTimedOut,
    ] {
        assert!(matches!(append.answer_to(&error), Answer::Retry(_)));
    }
}

#[test]
fn the_documentation_names_every_key() {
    let config = config("postgres", "zzz = 1");
    let Err(HandlerConfigError::Options { problems, .. }) = settings::read(&config) else {
        panic!("zzz is known");
    };
    let mut known = problems
        .into_iter()
        .find_map(|problem| match problem {
            OptionProblem::Unknown { known, .. } => Some(known),
            _ => None,
        })
        .unwrap();
    known.sort_unstable();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/CONFIGURATION.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, section) = text.split_once("\n`postgres` writes each event").unwrap();
    let (_, table) = section.split_once("| --- | --- | --- |\n").unwrap();
    let mut documented: Vec<&str> = table
        .lines()
        .take_while(|line| line.starts_with('|'))
        .filter_map(|row| row.split('`').nth(1))
        .collect();
    documented.sort_unstable();
    assert_eq!(documented, known);
}
