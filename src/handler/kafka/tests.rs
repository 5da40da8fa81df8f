//! Options, and how a batch is divided; brokers themselves are in `tests/it/handlers/kafka/`.

use std::collections::BTreeMap;

use super::super::testing::{batch, config, keyed};
use super::*;

fn read(options: &str, variables: &[(&str, &str)]) -> Result<Settings, String> {
    let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
    let get = |name: &str| variables.get(name).map(|value| (*value).to_owned());
    Settings::read(&config("kafka", options), &get).map_err(|error| error.to_string())
}

fn problems(options: &str, variables: &[(&str, &str)]) -> String {
    read(options, variables).err().unwrap()
}

fn addresses(settings: &Settings) -> Vec<String> {
    settings.brokers.iter().map(ToString::to_string).collect()
}

/// A certificate in PEM and its key.
fn own() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["broker".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

#[test]
fn brokers_are_read_in_every_form() {
    for (text, expected, tls) in [
        ("a", vec!["a:9092"], false),
        ("a:1, b:2,", vec!["a:1", "b:2"], false),
        (
            "kafka://a:1,kafka://[::1]:2/",
            vec!["a:1", "[::1]:2"],
            false,
        ),
        ("kafka+ssl://a:1,kafka+ssl://b", vec!["a:1", "b:9092"], true),
        ("kafka+ssl://a:1,b:2", vec!["a:1", "b:2"], true),
    ] {
        let settings = read(&format!("brokers = '{text}'"), &[]).unwrap();
        assert_eq!(addresses(&settings), expected);
        assert_eq!(settings.dial.tls.is_some(), tls, "{text}");
    }
    for wrong in [
        ",",
        "http://a",
        "a:0",
        "a:x",
        "a b",
        "[::1",
        "u:p@a",
        "kafka://a,kafka+ssl://b",
    ] {
        let said = problems(&format!("brokers = '{wrong}'"), &[]);
        assert!(said.contains("`brokers` must"), "{wrong}: {said}");
    }
    for left_out in ["", "brokers = ' '"] {
        assert!(problems(left_out, &[]).contains("`brokers` is missing"));
    }
}

#[test]
fn every_wrong_option_is_said_at_once_and_shows_no_value() {
    let said = problems(
        "brokers = 'a:1'\ntopic = 'a/{topic}'\nformat = 'hidden'\nsasl = 'hidden'\nuser = 'hidden'\nca = 'hidden'\n\
         prefix = 'a b'\ntimeout = '0s'\npasword = 'hidden'",
        &[],
    );
    for part in [
        "`topic` may have letters",
        "`format` must be",
        "`sasl` must be",
        "`sasl` needs `password`",
        "`ca` is neither PEM text",
        "`ca` is for TLS",
        "`prefix` may have",
        "`timeout` must be above zero",
        "did you mean `password`?",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert!(!said.contains("hidden"), "{said}");
}

#[test]
fn a_password_is_not_sent_for_everybody_to_read() {
    let login = "sasl = 'plain'\nuser = 'u'\npassword = 'hidden'";
    for (brokers, sound) in [
        ("far.example", false),
        ("localhost", true),
        ("kafka+ssl://far.example", true),
    ] {
        let read = read(&format!("brokers = '{brokers}'\n{login}"), &[]);
        assert_eq!(read.is_ok(), sound, "{brokers}");
    }
    let said = problems("brokers = 'a'\nuser = 'hidden'", &[]);
    assert!(said.contains("`user` needs `sasl`"), "{said}");
}

#[test]
fn what_heroku_sets_is_enough() {
    let ((ca, _), (other, _), (cert, key)) = (own(), own(), own());
    let trusted = format!("{ca}\n{other}");
    let variables = [
        ("KAFKA_URL", "kafka+ssl://a:9096,kafka+ssl://b:9096"),
        ("KAFKA_TRUSTED_CERT", trusted.as_str()),
        ("KAFKA_CLIENT_CERT", &cert),
        ("KAFKA_CLIENT_CERT_KEY", &key),
        ("KAFKA_PREFIX", "columbia-123."),
    ];
    for options in ["", "brokers = 'kafka+ssl://a:9096,kafka+ssl://b:9096'"] {
        let settings = read(options, &variables).unwrap();
        assert_eq!(addresses(&settings), ["a:9096", "b:9096"]);
        assert_eq!(settings.prefix, "columbia-123.");
        let tls = settings.dial.tls.unwrap();
        assert!(tls.client_auth_cert_resolver.has_certs());
    }
    // Written by hand, it is not there twice.
    let settings = read("topic = 'columbia-123.orders'", &variables).unwrap();
    assert_eq!(settings.prefix, "");
    // Nothing of it goes to other brokers.
    let settings = read("brokers = 'kafka+ssl://elsewhere'", &variables).unwrap();
    assert_eq!(settings.prefix, "");
    let tls = settings.dial.tls.unwrap();
    assert!(!tls.client_auth_cert_resolver.has_certs());
    let settings = read("brokers = 'a'", &variables).unwrap();
    assert!(settings.dial.tls.is_none());
}

#[test]
fn names_are_not_looked_at_only_where_the_trusted_certificates_are_named() {
    let said = problems("brokers = 'kafka+ssl://a'\ntls_verify_host = false", &[]);
    assert!(
        said.contains("`tls_verify_host` = false needs `ca`"),
        "{said}"
    );
    let (ca, _) = own();
    let options = format!("brokers = 'kafka+ssl://a'\ntls_verify_host = false\nca = '''{ca}'''");
    assert!(read(&options, &[]).is_ok());
}

pub(super) fn handler(options: &str) -> KafkaHandler {
    KafkaHandler::new(read(options, &[]).unwrap())
}

pub(super) fn answers(answer: BatchAnswer) -> Vec<Answer> {
    match answer {
        BatchAnswer::Each(answers) => answers,
        BatchAnswer::All(answer) => panic!("one answer for all: {answer:?}"),
    }
}

#[tokio::test]
async fn brokers_that_are_away_are_a_retry_that_names_them() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let handler = handler(&format!("brokers = '127.0.0.1:{port}'"));
    let answers = answers(handler.handle(&batch(&["{}", "{}"])).await);
    assert_eq!(answers.len(), 2);
    let Answer::Retry(retry) = &answers[0] else {
        panic!("not a retry");
    };
    for part in [&format!("127.0.0.1:{port}"), "look at host and port"] {
        assert!(retry.reason.contains(part), "{}", retry.reason);
    }
    assert!(!retry.counts, "whatever becomes of other events");
    assert!(matches!(&answers[1], Answer::Retry(retry) if !retry.counts));
}

/// Where each part ends.
fn ends(parts: &[std::ops::Range<usize>]) -> Vec<usize> {
    let starts: Vec<usize> = parts.iter().map(|part| part.start).collect();
    let ends: Vec<usize> = parts.iter().map(|part| part.end).collect();
    assert_eq!(starts[1..], ends[..ends.len() - 1], "one after the other");
    ends
}

#[test]
fn an_event_of_a_record_that_another_partition_has_waits_for_it() {
    let place = |partition| Ok((Arc::from("t"), partition));
    let batch = keyed(&["a", "b", "a", "a", "", "b"]);
    let same = [place(1), place(2), place(1), place(1), place(0), place(2)];
    assert_eq!(ends(&stretches(&batch, &same)), [6]);
    let other = [place(1), place(2), place(1), place(3), place(0), place(2)];
    assert_eq!(ends(&stretches(&batch, &other)), [3, 6]);
    let missing = Err(Trouble::lasting("x"));
    let one = [
        place(1),
        missing.clone(),
        place(1),
        place(1),
        place(0),
        missing,
    ];
    assert_eq!(ends(&stretches(&batch, &one)), [6]);
}

#[test]
fn batches_are_bounded_and_one_record_is_one_however_large() {
    let record = |size| Record {
        key: None,
        value: vec![b'x'; size],
        headers: Vec::new(),
    };
    let parts = |sizes: &[usize]| {
        let records: Vec<Record> = sizes.iter().map(|size| record(*size)).collect();
        in_batches(&records, 900_000)
    };
    assert!(parts(&[]).is_empty());
    assert_eq!(ends(&parts(&[1, 2, 3])), [3]);
    assert_eq!(ends(&parts(&[2_000_000, 1, 500_000, 500_000])), [1, 3, 4]);
}

#[test]
fn what_a_topic_does_not_want_of_an_event_without_a_key_is_not_its_fault() {
    let mut record = Record {
        key: None,
        value: Vec::new(),
        headers: Vec::new(),
    };
    let refused = || Trouble::new(Kind::Refused, "no");
    let Answer::Retry(retry) = answer_to(refused(), &record) else {
        panic!("not a retry");
    };
    assert!(retry.reason.contains("compacted"), "{}", retry.reason);
    record.key = Some("k".into());
    assert!(matches!(
        answer_to(refused(), &record),
        Answer::Reject { .. }
    ));
}
