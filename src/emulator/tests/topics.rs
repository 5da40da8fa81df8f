use tonic::Code;

use super::*;
use crate::salesforce::pubsub::proto::{SchemaRequest, TopicInfo, TopicRequest};

async fn topic(org: &Org, name: &str) -> Result<TopicInfo, Status> {
    let request = org.signed(TopicRequest {
        topic_name: name.to_owned(),
    });
    Ok(org.client.clone().get_topic(request).await?.into_inner())
}

async fn schema(org: &Org, id: &str) -> Result<String, Status> {
    let request = org.signed(SchemaRequest {
        schema_id: id.to_owned(),
    });
    let info = org.client.clone().get_schema(request).await?.into_inner();
    assert_eq!(info.schema_id, id);
    Ok(info.schema_json)
}

#[tokio::test]
async fn get_topic_tells_permissions_and_the_newest_schema_and_none_for_channels() {
    let org = Org::start().await;
    let orders = topic(&org, ORDERS).await.unwrap();
    assert!(orders.can_publish && orders.can_subscribe);
    assert_eq!(orders.tenant_guid, "CORE/prod/00D5g000004emu1EAA");
    assert_eq!(
        schema(&org, &orders.schema_id).await.unwrap(),
        order_schema()
    );
    let accounts = topic(&org, ACCOUNTS).await.unwrap();
    assert!(!accounts.can_publish && accounts.can_subscribe);
    let channel = topic(&org, "/data/ChangeEvents").await.unwrap();
    assert_eq!(channel.schema_id, "");
    org.set(|settings| settings.denied_topics = vec![ORDERS.to_owned()]);
    assert!(!topic(&org, ORDERS).await.unwrap().can_subscribe);
    let denied = fetch(ORDERS, ReplayPreset::Latest, 1);
    let status = org.subscribe(denied).await.unwrap().failure().await;
    assert_eq!(code(&status), "subscription.topic.cannot.subscribe");
}

#[tokio::test]
async fn unknown_topics_are_refused_in_either_of_the_ways_real_orgs_do() {
    let org = Org::start().await;
    let status = topic(&org, "/event/None__e").await.unwrap_err();
    assert_eq!(
        (status.code(), code(&status).as_str()),
        (Code::NotFound, "topic.not.found")
    );
    org.set(|settings| settings.unknown_topic = UnknownTopic::PermissionDenied);
    let status = topic(&org, "/event/None__e").await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_blank_or_unknown_schema_id_fails_validation() {
    let org = Org::start().await;
    for id in ["", "unknown"] {
        let status = schema(&org, id).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(code(&status), "schema.validation.failed");
    }
}

#[tokio::test]
async fn events_keep_the_schema_they_were_written_with_beside_newer_ones() {
    let org = Org::start().await;
    let old = topic(&org, ORDERS).await.unwrap().schema_id;
    org.publish_orders(0..1);
    let newer = order_schema().replace("Number__c", "No__c");
    let new = org.emulator.add_schema(Some(ORDERS), &newer, None).unwrap();
    org.emulator.publish(ORDERS, json!({"No__c": "1"})).unwrap();
    assert_eq!(topic(&org, ORDERS).await.unwrap().schema_id, new.as_str());
    let earliest = fetch(ORDERS, ReplayPreset::Earliest, 5);
    let mut stream = org.subscribe(earliest).await.unwrap();
    let responses = stream.events(2).await;
    let events = responses.iter().flat_map(|r| &r.events);
    let ids: Vec<_> = events
        .map(|e| e.event.as_ref().unwrap().schema_id.clone())
        .collect();
    assert_eq!(ids, [old.as_str(), new.as_str()]);
    assert_eq!(schema(&org, &old).await.unwrap(), order_schema());
    assert_eq!(schema(&org, new.as_str()).await.unwrap(), newer);
}

#[tokio::test]
async fn an_event_has_one_replay_id_on_its_topic_and_on_every_channel() {
    let org = Org::start().await;
    let member = Member {
        topic: ACCOUNTS.to_owned(),
        enriched_fields: Vec::new(),
    };
    org.emulator
        .set_channel("/data/Sales__chn", vec![member])
        .unwrap();
    org.publish_orders(0..1);
    let published = org
        .emulator
        .publish(ACCOUNTS, json!({"Phone": "1"}))
        .unwrap();
    for name in [ACCOUNTS, "/data/ChangeEvents", "/data/Sales__chn"] {
        let earliest = fetch(name, ReplayPreset::Earliest, 5);
        let mut stream = org.subscribe(earliest).await.unwrap();
        let responses = stream.events(1).await;
        assert_eq!(
            hex::encode(&responses[0].events[0].replay_id),
            published.replay_id
        );
        assert_eq!(ids(&responses), std::slice::from_ref(&published.id));
    }
}

#[tokio::test]
async fn change_events_get_bitmaps_and_header_defaults_from_field_names() {
    let org = Org::start().await;
    let fields = json!({"Phone": null, "BillingAddress": {"Street": "Main St"}});
    org.emulator.publish(ACCOUNTS, fields).unwrap();
    let earliest = fetch(ACCOUNTS, ReplayPreset::Earliest, 5);
    let mut stream = org.subscribe(earliest).await.unwrap();
    let responses = stream.events(1).await;
    let event = decoded(&org.emulator, &responses[0].events[0]);
    let header = &event["ChangeEventHeader"];
    assert_eq!(header["entityName"], "Account");
    assert_eq!(header["changeType"], "UPDATE");
    assert_eq!(
        header["changedFields"],
        json!(["Phone", "LastModifiedDate", "BillingAddress.Street"])
    );
    assert_eq!(header["nulledFields"], json!(["Phone"]));
    assert!(header["commitNumber"].as_i64().unwrap() > 1 << 53);
    assert_eq!(header["commitTimestamp"].as_i64().unwrap() % 1000, 0);
    assert_eq!(event["BillingAddress"], json!({"Street": "Main St"}));
}

#[tokio::test]
async fn the_events_of_a_transaction_share_its_key_and_may_leave_out_sequence_numbers() {
    let org = Org::start().await;
    let event = |sequence_number| TransactionEvent {
        topic: ACCOUNTS.to_owned(),
        event: json!({"Phone": "1"}),
        sequence_number,
        ..TransactionEvent::default()
    };
    let transaction = TransactionJson {
        transaction_key: None,
        events: vec![event(None), event(Some(5)), event(None)],
    };
    org.emulator.publish_transaction(&transaction).unwrap();
    let earliest = fetch("/data/ChangeEvents", ReplayPreset::Earliest, 5);
    let mut stream = org.subscribe(earliest).await.unwrap();
    let responses = stream.events(3).await;
    let headers: Vec<_> = responses
        .iter()
        .flat_map(|response| &response.events)
        .map(|event| decoded(&org.emulator, event)["ChangeEventHeader"].clone())
        .collect();
    let numbers: Vec<_> = headers
        .iter()
        .map(|h| h["sequenceNumber"].as_i64())
        .collect();
    assert_eq!(numbers, [Some(1), Some(5), Some(6)]);
    assert!(
        headers
            .iter()
            .all(|h| h["transactionKey"] == headers[0]["transactionKey"])
    );
}

#[tokio::test]
async fn enriched_siblings_share_a_replay_id_and_can_be_split_over_responses() {
    let org = Org::start().await;
    let sales = "/data/Sales__chn";
    let member = Member {
        topic: ACCOUNTS.to_owned(),
        enriched_fields: vec!["Industry".to_owned()],
    };
    org.emulator.set_channel(sales, vec![member]).unwrap();
    org.set(|settings| settings.split_siblings = true);
    let (one, two) = ("0015g0000000001AAA", "0015g0000000002AAA");
    let enriched = json!({one: {"Industry": "Banking"}, two: {"Industry": "Energy"}});
    let request = PublishJson {
        topic: ACCOUNTS.to_owned(),
        events: vec![json!({"ChangeEventHeader": {"recordIds": [one, two]}, "Phone": "1"})],
        enriched: enriched.as_object().unwrap().clone(),
        ..PublishJson::default()
    };
    let place = org.emulator.publish_json(&request).unwrap()[0]
        .replay_id
        .clone();
    let own = fetch(ACCOUNTS, ReplayPreset::Earliest, 5);
    let merged = org.subscribe(own).await.unwrap().events(1).await;
    let merged = decoded(&org.emulator, &merged[0].events[0]);
    assert_eq!(merged["ChangeEventHeader"]["recordIds"], json!([one, two]));
    assert!(merged.get("Industry").is_none());

    let mut stream = org
        .subscribe(fetch(sales, ReplayPreset::Earliest, 5))
        .await
        .unwrap();
    let responses = stream.events(2).await;
    assert_eq!(responses.len(), 2, "split over two responses");
    for (response, (record, industry)) in responses.iter().zip([(one, "Banking"), (two, "Energy")])
    {
        assert_eq!(hex::encode(&response.events[0].replay_id), place);
        let event = decoded(&org.emulator, &response.events[0]);
        let header = &event["ChangeEventHeader"];
        assert_eq!(header["recordIds"], json!([record]));
        assert_eq!(
            header["changedFields"],
            json!(["Phone", "LastModifiedDate"])
        );
        assert_eq!(event["Industry"], industry);
    }
}

#[tokio::test]
async fn a_channel_that_enriches_unmerges_whatever_the_publisher_says_and_keeps_the_events_id() {
    let org = Org::start().await;
    let sales = "/data/Sales__chn";
    let member = Member {
        topic: ACCOUNTS.to_owned(),
        enriched_fields: vec!["Industry".to_owned()],
    };
    org.emulator.set_channel(sales, vec![member]).unwrap();
    let (one, two) = ("0015g0000000001AAA", "0015g0000000002AAA");
    let event =
        |records: &[&str]| json!({"ChangeEventHeader": {"recordIds": records}, "Phone": "1"});
    let mut request = PublishJson {
        topic: ACCOUNTS.to_owned(),
        events: vec![event(&[one, two])],
        ids: vec!["first".to_owned()],
        ..PublishJson::default()
    };
    org.emulator.publish_json(&request).unwrap();
    // Enriched for one of its records only, and an event of one record.
    let industry = json!({two: {"Industry": "Energy"}});
    request.enriched = industry.as_object().unwrap().clone();
    request.events = vec![event(&[one, two]), event(&[two])];
    request.ids = vec!["second".to_owned(), "third".to_owned()];
    org.emulator.publish_json(&request).unwrap();
    let latest = org.emulator.publish(ACCOUNTS, event(&[one])).unwrap();

    let mut stream = org
        .subscribe(fetch(sales, ReplayPreset::Earliest, 10))
        .await
        .unwrap();
    let responses = stream.events(6).await;
    let ids = ids(&responses);
    assert_eq!([&ids[0], &ids[2], &ids[4]], ["first", "second", "third"]);
    assert_eq!(ids[5], latest.id);
    assert!(![&ids[0], &ids[2]].contains(&&ids[1]) && ids[1] != ids[3]);
    let events = responses.iter().flat_map(|response| &response.events);
    let events: Vec<_> = events.map(|event| decoded(&org.emulator, event)).collect();
    let industries: Vec<_> = events.iter().map(|event| event.get("Industry")).collect();
    let energy = json!("Energy");
    assert_eq!(
        industries,
        [None, None, None, Some(&energy), Some(&energy), None]
    );
    for (event, record) in events.iter().zip([one, two, one, two, two, one]) {
        assert_eq!(event["ChangeEventHeader"]["recordIds"], json!([record]));
    }
}
