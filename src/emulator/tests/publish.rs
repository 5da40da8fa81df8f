use tonic::Code;

use super::*;
use crate::avro::Schema;
use crate::salesforce::pubsub::proto::{ErrorCode, ProducerEvent, PublishRequest, PublishResponse};

fn order(id: &str, number: &str) -> ProducerEvent {
    let schema = Schema::parse(&order_schema()).unwrap();
    let fields = json!({"CreatedDate": 1, "CreatedById": "005", "Number__c": number});
    ProducerEvent {
        id: id.to_owned(),
        schema_id: schema.fingerprint().as_str().to_owned(),
        payload: schema.encode_json(&fields).unwrap().into(),
        headers: Vec::new(),
    }
}

async fn publish(
    org: &Org,
    topic: &str,
    events: Vec<ProducerEvent>,
) -> Result<PublishResponse, Status> {
    let request = org.signed(PublishRequest {
        topic_name: topic.to_owned(),
        events,
        ..PublishRequest::default()
    });
    Ok(org.client.clone().publish(request).await?.into_inner())
}

#[tokio::test]
async fn each_published_event_has_its_own_result_and_good_ones_are_on_the_bus() {
    let org = Org::start().await;
    let bad = ProducerEvent {
        payload: vec![1, 2, 3].into(),
        ..order("bad", "x")
    };
    let unknown = ProducerEvent {
        schema_id: "unknown".to_owned(),
        ..order("unknown", "x")
    };
    let large = order("large", &"x".repeat(1_000_001));
    let events = vec![order("1", "a"), bad, unknown, large, order("2", "b")];
    let response = publish(&org, ORDERS, events).await.unwrap();
    let failed: Vec<_> = response
        .results
        .iter()
        .map(|r| {
            r.error
                .as_ref()
                .is_some_and(|e| e.code == i32::from(ErrorCode::Publish))
        })
        .collect();
    assert_eq!(failed, [false, true, true, true, false]);
    let keys: Vec<_> = response
        .results
        .iter()
        .map(|r| r.correlation_key.as_str())
        .collect();
    assert_eq!(keys, ["1", "bad", "unknown", "large", "2"]);
    assert_eq!(response.schema_id, order("", "").schema_id);

    let earliest = fetch(ORDERS, ReplayPreset::Earliest, 5);
    let received = org.subscribe(earliest).await.unwrap().events(2).await;
    assert_eq!(ids(&received), ["1", "2"]);
    let last = &received.last().unwrap().latest_replay_id;
    assert_eq!(*last, response.results[4].replay_id);
}

#[tokio::test]
async fn a_blank_id_is_echoed_as_it_came_and_the_event_gets_one_of_its_own() {
    let org = Org::start().await;
    let response = publish(&org, ORDERS, vec![order("", "a")]).await.unwrap();
    assert_eq!(response.results[0].error, None);
    assert_eq!(response.results[0].correlation_key, "");
    let earliest = fetch(ORDERS, ReplayPreset::Earliest, 5);
    let received = org.subscribe(earliest).await.unwrap().events(1).await;
    assert_eq!(ids(&received)[0].len(), 36);
}

#[tokio::test]
async fn requests_that_break_a_rule_are_refused_whole() {
    let org = Org::start().await;
    let one = || vec![order("1", "a")];
    for (topic, events, expected, status) in [
        (
            ORDERS,
            Vec::new(),
            "publish.event.count.invalid",
            Code::InvalidArgument,
        ),
        (
            "",
            one(),
            "publish.topic.validation.empty",
            Code::InvalidArgument,
        ),
        ("/event/None__e", one(), "topic.not.found", Code::NotFound),
        (
            ACCOUNTS,
            one(),
            "topic.meta.permission",
            Code::PermissionDenied,
        ),
        (
            "/data/ChangeEvents",
            one(),
            "topic.meta.permission",
            Code::PermissionDenied,
        ),
    ] {
        let refused = publish(&org, topic, events).await.unwrap_err();
        assert_eq!(
            (code(&refused).as_str(), refused.code()),
            (expected, status)
        );
    }
    let large = (0..5).map(|_| order("1", &"x".repeat(900_000))).collect();
    let refused = publish(&org, ORDERS, large).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(org.emulator.state().events, 0);
}

#[tokio::test]
async fn a_publish_can_be_accepted_and_then_fail() {
    let org = Org::start().await;
    org.emulator.fault(Fault {
        code: Some("service.unavailable".to_owned()),
        ..Fault::once(Call::Publish, FaultKind::AcceptThenFail)
    });
    let refused = publish(&org, ORDERS, vec![order("1", "a")])
        .await
        .unwrap_err();
    assert_eq!(code(&refused), "service.unavailable");
    assert_eq!(org.emulator.state().events, 1);
    org.emulator
        .fault(Fault::once(Call::Publish, FaultKind::RejectEvent));
    let response = publish(&org, ORDERS, vec![order("2", "a")]).await.unwrap();
    assert!(response.results[0].error.is_some());
    assert_eq!(org.emulator.state().events, 1);
}

#[tokio::test]
async fn a_publish_stream_answers_each_request_and_ends_when_idle_or_off_topic() {
    let org = Org::start().await;
    org.set(|settings| settings.publish_stream_idle_ms = 500);
    let open = async || {
        let (requests, queue) = mpsc::channel(4);
        let call = org.signed(ReceiverStream::new(queue));
        let responses = org.client.clone().publish_stream(call).await.unwrap();
        (requests, responses.into_inner())
    };
    let request = |topic: &str, id: &str| PublishRequest {
        topic_name: topic.to_owned(),
        events: vec![order(id, "a")],
        ..PublishRequest::default()
    };
    let (requests, mut responses) = open().await;
    requests.send(request(ORDERS, "1")).await.unwrap();
    requests.send(request("", "2")).await.unwrap();
    for key in ["1", "2"] {
        let response = responses.message().await.unwrap().unwrap();
        assert_eq!(response.results[0].correlation_key, key);
    }
    let idle = responses.message().await.unwrap_err();
    assert_eq!(code(&idle), "publish.stream.sweeper.timeout");
    let (requests, mut responses) = open().await;
    requests.send(request(ORDERS, "3")).await.unwrap();
    requests.send(request(ACCOUNTS, "4")).await.unwrap();
    responses.message().await.unwrap().unwrap();
    let refused = responses.message().await.unwrap_err();
    assert_eq!(code(&refused), "publish.topic.mismatch");
}

#[tokio::test]
async fn managed_subscriptions_are_not_offered() {
    let org = Org::start().await;
    let call = org.signed(tokio_stream::empty());
    let refused = org
        .client
        .clone()
        .managed_subscribe(call)
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code(), Code::Unimplemented);
}
