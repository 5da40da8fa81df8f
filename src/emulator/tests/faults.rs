use tonic::Code;

use super::*;
use crate::salesforce::pubsub::proto::{SchemaRequest, TopicRequest};

async fn earliest(org: &Org) -> Subscription {
    let request = fetch(ORDERS, ReplayPreset::Earliest, 100);
    org.subscribe(request).await.unwrap()
}

#[tokio::test]
async fn every_documented_code_can_be_caused_at_any_call_with_its_status() {
    let org = Org::start().await;
    for (suffix, status) in CODES {
        org.emulator.fault(Fault::error(Call::GetTopic, suffix));
        org.emulator.fault(Fault::error(Call::Subscribe, suffix));
        let request = org.signed(TopicRequest {
            topic_name: ORDERS.to_owned(),
        });
        let refused = org.client.clone().get_topic(request).await.unwrap_err();
        assert_eq!(
            (code(&refused).as_str(), refused.code()),
            (*suffix, *status)
        );
        let refused = earliest(&org).await.failure().await;
        assert_eq!(
            (code(&refused).as_str(), refused.code()),
            (*suffix, *status)
        );
    }
    assert!(org.emulator.state().faults.is_empty());
}

#[tokio::test]
async fn a_stream_can_fail_reset_or_end_after_some_events() {
    let org = Org::start().await;
    org.publish_orders(0..10);
    let unavailable = Fault::error(Call::Subscribe, "service.unavailable");
    org.emulator.fault(unavailable.after_events(4));
    let mut stream = earliest(&org).await;
    stream.events(4).await;
    assert_eq!(
        code(&stream.next().await.unwrap_err()),
        "service.unavailable"
    );

    org.emulator
        .fault(Fault::once(Call::Subscribe, FaultKind::Reset).after_events(6));
    let mut stream = earliest(&org).await;
    stream.events(6).await;
    let reset = stream.next().await.unwrap_err();
    assert_eq!(reset.code(), Code::Internal);
    assert!(reset.metadata().get("rpc-id").is_none());

    org.emulator
        .fault(Fault::once(Call::Subscribe, FaultKind::End).after_events(2));
    let mut stream = earliest(&org).await;
    stream.events(2).await;
    assert_eq!(stream.next().await.unwrap(), None);
    let mut stream = earliest(&org).await;
    stream.events(10).await;
}

#[tokio::test]
async fn calls_can_be_reset_and_connections_dropped_or_frozen() {
    let org = Org::start().await;
    let get_topic = || {
        let request = org.signed(TopicRequest {
            topic_name: ORDERS.to_owned(),
        });
        let mut client = org.client.clone();
        async move { client.get_topic(request).await }
    };
    org.emulator
        .fault(Fault::once(Call::GetTopic, FaultKind::Reset));
    assert!(
        get_topic()
            .await
            .unwrap_err()
            .metadata()
            .get("rpc-id")
            .is_none()
    );
    get_topic().await.unwrap();
    let mut stream = earliest(&org).await;
    org.emulator
        .fault(Fault::once(Call::GetTopic, FaultKind::Disconnect));
    get_topic().await.unwrap_err();
    stream.failure().await;
    get_topic().await.unwrap();
    org.emulator.freeze_connections();
    let frozen = tokio::time::timeout(Duration::from_millis(100), get_topic()).await;
    assert!(frozen.is_err());
    org.emulator.drop_connections();
    let recovered = async {
        while get_topic().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, recovered).await.unwrap();
}

#[tokio::test]
async fn a_silent_stream_stays_open_and_sends_neither_events_nor_keepalives() {
    let org = Org::start().await;
    org.set(|settings| settings.keepalive_ms = 20);
    let mut stream = earliest(&org).await;
    stream.next().await.unwrap();
    org.emulator
        .fault(Fault::once(Call::Subscribe, FaultKind::Silence));
    org.publish_orders(0..1);
    let quiet = async { while stream.next().await.unwrap().unwrap().events.is_empty() {} };
    assert!(
        tokio::time::timeout(Duration::from_millis(200), quiet)
            .await
            .is_err()
    );
    assert_eq!(org.emulator.state().streams.len(), 1);
}

#[tokio::test]
async fn events_can_come_corrupted_repeated_out_of_order_or_without_a_replay_id() {
    let org = Org::start().await;
    let published = org.publish_orders(0..4);
    for kind in [
        FaultKind::CorruptPayload,
        FaultKind::Duplicate,
        FaultKind::MissingReplayId,
        FaultKind::LowerReplayId,
    ] {
        let fault = Fault::once(Call::Subscribe, kind);
        org.emulator.fault(fault.after_events(1));
        let mut stream = earliest(&org).await;
        let count = if kind == FaultKind::Duplicate { 5 } else { 4 };
        let responses = stream.events(count).await;
        let events: Vec<_> = responses.iter().flat_map(|r| &r.events).collect();
        match kind {
            FaultKind::CorruptPayload => {
                let schema = crate::avro::Schema::parse(&order_schema()).unwrap();
                let payload = &events[1].event.as_ref().unwrap().payload;
                assert!(schema.decode(payload).is_err());
            }
            FaultKind::Duplicate => assert_eq!(events[1], events[2]),
            FaultKind::MissingReplayId => assert!(events[1].replay_id.is_empty()),
            _ => assert!(events[1].replay_id < events[0].replay_id),
        }
        assert_eq!(hex::encode(&events[0].replay_id), published[0].replay_id);
    }
    org.emulator
        .fault(Fault::once(Call::Subscribe, FaultKind::Oversize));
    let too_large = earliest(&org).await.failure().await;
    assert_eq!(too_large.code(), Code::OutOfRange);
}

#[tokio::test]
async fn a_repeated_event_never_comes_without_a_credit_of_its_own() {
    let org = Org::start().await;
    org.publish_orders(0..6);
    org.emulator
        .fault(Fault::once(Call::Subscribe, FaultKind::Duplicate).until_cleared());
    for credits in 1..6 {
        let request = fetch(ORDERS, ReplayPreset::Earliest, credits);
        let mut stream = org.subscribe(request).await.unwrap();
        let responses = stream.events(credits as usize).await;
        assert_eq!(responses.last().unwrap().pending_num_requested, 0);
        let ids = ids(&responses);
        assert_eq!(credits > 1, ids.windows(2).any(|two| two[0] == two[1]));
    }
}

#[tokio::test]
async fn lookups_of_a_topic_or_a_schema_can_be_accepted_and_then_fail() {
    let org = Org::start().await;
    for call in [Call::GetTopic, Call::GetSchema] {
        org.emulator.fault(Fault {
            kind: FaultKind::AcceptThenFail,
            ..Fault::error(call, "service.unavailable")
        });
    }
    let mut client = org.client.clone();
    let topic = org.signed(TopicRequest {
        topic_name: ORDERS.to_owned(),
    });
    let refused = client.get_topic(topic).await.unwrap_err();
    assert_eq!(code(&refused), "service.unavailable");
    let schema = crate::avro::Schema::parse(&order_schema()).unwrap();
    let schema = org.signed(SchemaRequest {
        schema_id: schema.fingerprint().as_str().to_owned(),
    });
    let refused = client.get_schema(schema).await.unwrap_err();
    assert_eq!(code(&refused), "service.unavailable");
}

#[tokio::test]
async fn get_schema_can_fail_be_late_hang_or_answer_what_is_not_json() {
    let org = Org::start().await;
    let id = crate::avro::Schema::parse(&order_schema())
        .unwrap()
        .fingerprint();
    let get = || {
        let request = org.signed(SchemaRequest {
            schema_id: id.as_str().to_owned(),
        });
        let mut client = org.client.clone();
        async move { client.get_schema(request).await }
    };
    org.emulator
        .fault(Fault::once(Call::GetSchema, FaultKind::ExpiredToken));
    let refused = get().await.unwrap_err();
    assert_eq!(code(&refused), "service.auth.error");
    org.emulator
        .fault(Fault::once(Call::GetSchema, FaultKind::CorruptPayload));
    let json = get().await.unwrap().into_inner().schema_json;
    assert!(serde_json::from_str::<Value>(&json).is_err());
    org.emulator.fault(Fault {
        delay_ms: Some(100),
        ..Fault::once(Call::GetSchema, FaultKind::Delay)
    });
    let asked = std::time::Instant::now();
    get().await.unwrap();
    assert!(asked.elapsed() >= Duration::from_millis(100));
    org.emulator
        .fault(Fault::once(Call::GetSchema, FaultKind::Hang));
    assert!(
        tokio::time::timeout(Duration::from_millis(100), get())
            .await
            .is_err()
    );
    assert_eq!(org.emulator.calls(Call::GetSchema), 4);
}
