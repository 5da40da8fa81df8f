//! The `kafka` handler against a broker, and against a cluster that can be told to go wrong.
//!
//! `noida-db` keeps what it has, through restarts, and keeps repeats out by sequence numbers; it has one broker and does
//! not fence old epochs. The mock cluster of librdkafka has several brokers, other leaders and any error, and keeps
//! nothing out. `kcat` reads both.

mod broker;
mod listener;
mod mock;

use serde_json::Value;

use super::endurance::endure;
use super::throughput::measure;
use super::trouble::Bench;
use crate::support::eventually;
use broker::{Broker, Gated, texts};
use listener::Papers;
use mock::Mock;

#[tokio::test]
async fn ten_thousand_events_are_written_through_kills_and_restarts() {
    if let Some(broker) = Broker::start().await {
        broker.create(&[]);
        endure(Gated::new(broker).await).await;
    }
}

#[tokio::test]
async fn a_broker_that_is_away_and_a_missing_topic_keep_events_waiting_until_they_are_mended() {
    let Some(mut broker) = Broker::prepare() else {
        return;
    };
    // Not started yet: a wrong address is the same.
    let handler = format!("{}\ntopic = \"{}\"", broker.handler(), broker::TOPIC);
    let mut bench = Bench::start(&handler).await;
    bench.publish(6).await;
    bench
        .says_down(&[
            "no connection to Kafka at 127.0.0.1",
            "look at host and port of `brokers`",
        ])
        .await;
    broker.up().await;
    let (code, text) = bench.check().await;
    assert!(
        code == 1 && text.contains("there is no such topic"),
        "{text}"
    );
    broker.create(&[]);
    broker.has(6).await;
    let (code, text) = bench.check().await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("kept by one broker only"), "{text}");
    bench.publish(6).await;
    broker.has(12).await;
    bench.nothing_parked().await;
}

#[tokio::test]
async fn a_missing_topic_keeps_events_waiting_and_is_not_created() {
    let Some(broker) = Broker::start().await else {
        return;
    };
    let mut bench = Bench::start(&broker.handler()).await;
    bench.publish(6).await;
    let missing = [
        "UNKNOWN_TOPIC_OR_PARTITION",
        "--create --topic orgstream.AccountChangeEvent",
    ];
    bench.says_down(&missing).await;
    broker.create(&[]);
    broker.has(6).await;
    bench.nothing_parked().await;
}

#[tokio::test]
async fn an_event_that_is_too_large_is_parked_and_holds_its_record_only() {
    let Some(broker) = Broker::start().await else {
        return;
    };
    broker.create(&[("max.message.bytes", "4000")]);
    let mut bench = Bench::start(&broker.handler()).await;
    bench.publish(3).await;
    bench.publish_named(&"x".repeat(5_000)).await;
    // More than one batch of Kafka takes here.
    bench.publish(12).await;
    broker.has(15).await;
    let errors = bench.parks(1).await;
    assert!(errors[0].contains("raise max.message.bytes"), "{errors:?}");
    // Parks behind: the record is held.
    bench.publish_named("15").await;
    bench.parks(2).await;
}

/// The answers to what was written come late: what is sent again is kept out by its sequence numbers.
#[tokio::test]
async fn what_is_sent_again_because_no_answer_came_is_there_once() {
    let Some(broker) = Broker::start().await else {
        return;
    };
    broker.create(&[]);
    let handler = broker.handler().replace("3s", "30s");
    let mut bench = Bench::start(&format!("{handler}\nconnect_timeout = \"1s\"")).await;
    bench.publish(3).await;
    broker.has(3).await;
    broker.server.signal("STOP");
    bench.publish(3).await;
    // A third of `timeout`, and more.
    tokio::time::sleep(std::time::Duration::from_secs(12)).await;
    broker.server.signal("CONT");
    broker.has(6).await;
    bench.publish(3).await;
    broker.has(9).await;
    bench.nothing_parked().await;
}

#[tokio::test]
async fn a_full_disk_and_a_missing_right_keep_events_waiting_until_they_are_mended() {
    let Some(mut mock) = Mock::start(1) else {
        return;
    };
    let mut bench = Bench::start(&mock.handler()).await;
    bench.publish(3).await;
    mock.reader.has(3).await;
    for (code, parts, now) in [
        (56, ["KAFKA_STORAGE_ERROR", "its disk is full or broken"], 6),
        (
            29,
            ["TOPIC_AUTHORIZATION_FAILED", "--add --operation Write"],
            9,
        ),
        (19, ["NOT_ENOUGH_REPLICAS", "min.insync.replicas"], 12),
    ] {
        mock.refuse_batches(code);
        bench.publish(3).await;
        bench.says_down(&parts).await;
        mock.tell("clear 0");
        mock.reader.has(now).await;
    }
    mock.tell(&format!("refuse {} 29", broker::TOPIC));
    let handler = format!("{}\ntopic = \"{}\"", mock.handler(), broker::TOPIC);
    let (code, text) = Bench::start(&handler).await.check().await;
    assert!(
        code == 1 && text.contains("the user may not write to it"),
        "{text}"
    );
    bench.nothing_parked().await;
}

#[tokio::test]
async fn an_event_that_the_topic_does_not_want_is_parked_alone() {
    let Some(mut mock) = Mock::start(1) else {
        return;
    };
    let mut bench = Bench::start(&mock.handler()).await;
    mock.tell("errors 0 87");
    bench.publish(1).await;
    let errors = bench.parks(1).await;
    assert!(errors[0].contains("INVALID_RECORD"), "{errors:?}");
}

#[tokio::test]
async fn a_partition_whose_leader_changes_is_followed_without_loss_or_repeat() {
    let Some(mut mock) = Mock::start(3) else {
        return;
    };
    let mut bench = Bench::start(&mock.handler()).await;
    bench.publish(3).await;
    mock.reader.has(3).await;
    for (round, leader) in [2, 3, 1, 3].into_iter().enumerate() {
        for partition in 0..3 {
            mock.tell(&format!("leader {} {partition} {leader}", broker::TOPIC));
        }
        bench.publish(3).await;
        mock.reader.has(6 + 3 * round).await;
    }
    // The leader of all is away, and another takes over.
    mock.tell("down 3");
    bench.publish(3).await;
    for partition in 0..3 {
        mock.tell(&format!("leader {} {partition} 2", broker::TOPIC));
    }
    mock.reader.has(18).await;
    bench.nothing_parked().await;
}

#[tokio::test]
async fn while_one_broker_of_several_is_away_its_partitions_wait_and_the_others_go_on() {
    let Some(mut mock) = Mock::start(3) else {
        return;
    };
    for partition in 0..3 {
        mock.tell(&format!(
            "leader {} {partition} {}",
            broker::TOPIC,
            partition + 1
        ));
    }
    let mut bench = Bench::start(&mock.handler()).await;
    bench.publish(30).await;
    mock.reader.has(30).await;
    let partitions = mock.reader.records().await;
    let filled: Vec<usize> = (0..3).filter(|p| !partitions[*p].is_empty()).collect();
    assert!(filled.len() > 1, "the records are in one partition");
    mock.tell(&format!("down {}", filled[0] + 1));
    bench.publish(3).await;
    let others = partitions[filled[1]].len();
    eventually("another partition to go on", async || {
        let now = mock.reader.records().await;
        (now[filled[1]].len() > others).then_some(())
    })
    .await;
    let next = if filled[0] == 0 { 2 } else { 1 };
    mock.tell(&format!("leader {} {} {next}", broker::TOPIC, filled[0]));
    mock.reader.has(33).await;
    bench.nothing_parked().await;
}

#[tokio::test]
async fn brokers_that_forget_who_we_are_get_a_new_identity() {
    let Some(mut mock) = Mock::start(1) else {
        return;
    };
    let mut bench = Bench::start(&mock.handler()).await;
    bench.publish(3).await;
    mock.reader.has(3).await;
    // OUT_OF_ORDER_SEQUENCE_NUMBER, UNKNOWN_PRODUCER_ID, INVALID_PRODUCER_EPOCH
    mock.tell("errors 0 45 59 47 45 59 47");
    bench.publish(6).await;
    mock.reader.has(9).await;
    bench.nothing_parked().await;
}

#[tokio::test]
async fn avro_goes_as_it_came_with_the_attributes_in_headers() {
    let Some(mock) = Mock::start(1) else {
        return;
    };
    let mut bench = Bench::start(&format!("{}\nformat = \"avro\"", mock.handler())).await;
    bench.publish(1).await;
    let record = eventually("a record", async || {
        let records = mock.reader.records().await;
        records.into_iter().flatten().next()
    })
    .await;
    let headers = texts(&record["headers"]);
    let header = |name: &str| {
        let mut pairs = headers.chunks(2);
        pairs.find(|pair| pair[0] == name).map(|pair| pair[1])
    };
    assert_eq!(header("content-type"), Some("application/avro"));
    assert_eq!(header("ce_specversion"), Some("1.0"));
    assert_eq!(
        header("ce_type"),
        Some("com.salesforce.cdc.Account.update.v1")
    );
    assert!(header("ce_dataschema").is_some_and(|id| id.starts_with("urn:salesforce:avro:")));
    assert_eq!(record["key"].as_str(), header("ce_partitionkey"));
    let payload = record["payload"].as_str().unwrap();
    assert!(serde_json::from_str::<Value>(payload).is_err(), "not JSON");
}

/// As Apache Kafka on Heroku: certificates of a CA of its own on both sides, none of which names a host.
#[tokio::test]
async fn over_tls_the_chain_is_verified_and_the_name_where_it_is_wanted() {
    let Some(broker) = Broker::start().await else {
        return;
    };
    broker.create(&[]);
    let papers = Papers::new();
    let port = papers.listen(broker.server.port, None).await;
    let ca = papers.ca_file(broker.server.dir.path());
    let (cert, key) = &papers.client;
    let secure = broker::handler(&format!("kafka+ssl://127.0.0.1:{port}"));
    let trusting = format!("{secure}\nca_file = \"{}\"", ca.display());
    let shown = format!("{trusting}\nclient_cert = '''{cert}'''\nclient_key = '''{key}'''");
    let nameless = format!("{shown}\ntls_verify_host = false");
    let mut bench = Bench::start(&nameless).await;
    bench.publish(6).await;
    broker.has(6).await;
    let (other, other_ca) = (Papers::new(), tempfile::tempdir().unwrap());
    let elsewhere = other.ca_file(other_ca.path());
    let wrong_ca = nameless.replace(ca.to_str().unwrap(), elsewhere.to_str().unwrap());
    let bare = broker::handler(&format!("127.0.0.1:{port}"));
    for (handler, part) in [
        (&secure, "name its CA in `ca`"),
        (&wrong_ca, "name its CA in `ca`"),
        (&shown, "set `tls_verify_host = false`"),
        (
            &format!("{trusting}\ntls_verify_host = false"),
            "`client_cert` and `client_key`",
        ),
        (&bare, "kafka+ssl://"),
    ] {
        let (code, text) = Bench::start(handler).await.check().await;
        assert!(code == 1 && text.contains(part), "{part} in {text}");
    }
}

#[tokio::test]
async fn a_refused_login_keeps_events_waiting_until_it_is_right() {
    let Some(broker) = Broker::start().await else {
        return;
    };
    broker.create(&[]);
    let papers = Papers::new();
    let port = papers.listen(broker.server.port, Some("\0us\0right")).await;
    let ca = papers.ca_file(broker.server.dir.path());
    let handler = format!(
        "{}\nca_file = \"{}\"\ntls_verify_host = false",
        broker::handler(&format!("kafka+ssl://127.0.0.1:{port}")),
        ca.display()
    );
    let login = |mechanism: &str, password: &str| {
        format!("{handler}\nsasl = \"{mechanism}\"\nuser = \"us\"\npassword = \"{password}\"")
    };
    let mut bench = Bench::start(&login("plain", "wrong")).await;
    bench.publish(3).await;
    let refused = [
        "SASL_AUTHENTICATION_FAILED",
        "look at `user` and `password`",
    ];
    bench.says_down(&refused).await;
    bench.nothing_parked().await;
    let (code, text) = Bench::start(&login("scram-sha-512", "right"))
        .await
        .check()
        .await;
    assert!(code == 1 && text.contains("it knows PLAIN"), "{text}");
    let (code, text) = Bench::start(&handler).await.check().await;
    assert!(code == 1 && text.contains("`sasl`"), "{text}");
    let mut bench = Bench::start(&login("plain", "right")).await;
    bench.publish(3).await;
    broker.has(3).await;
}

#[tokio::test]
#[ignore = "a bench: run scripts/bench-handlers"]
async fn bench_kafka() {
    let start = async || {
        let broker = Broker::start().await?;
        broker.create(&[]);
        Some(Gated::new(broker).await)
    };
    measure("kafka", start).await;
}
