//! What test events are like.

use super::*;
use crate::config::FieldsConfig;
use crate::event::Attribute;

fn maker(topic: &str, key: Option<&str>) -> Maker {
    let mut subscription = SubscriptionConfig::new("s", topic.parse().unwrap());
    subscription.key = key.map(str::to_owned);
    Maker::new(&subscription, None, None, None).unwrap()
}

#[test]
fn events_are_those_of_the_topic_and_can_be_told_from_an_orgs() {
    for topic in [
        "/data/AccountChangeEvent",
        "/data/Invoice__ChangeEvent",
        "/data/ChangeEvents",
        "/event/Order__e",
        "/event/LoginEventStream",
        "/event/Orders__chn",
    ] {
        let mut maker = maker(topic, None);
        let record = maker.new_record();
        assert!(record.len() == 18 && record.starts_with("000t"));
        let made = maker.sound(&record).unwrap();
        let json = made.event.cloud_event().to_json();
        let event: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(event["topic"], topic);
        assert_eq!(event["orgid"], NO_ORG);
        let id = event["id"].as_str().unwrap();
        assert!(id.starts_with(&format!("{}0:", maker.mark())), "{id}");
        assert!(event.to_string().contains(&maker.canary()), "{event}");
        assert_eq!(maker.has_records(), topic.starts_with("/data"));
    }
}

#[test]
fn the_entity_and_the_key_are_the_subscriptions() {
    let mut changes = maker("/data/Invoice__ChangeEvent", None);
    let made = changes.sound("000t").unwrap();
    let header = made.event.decoded.header.as_deref().unwrap();
    assert_eq!(header.entity_name, "Invoice__c");
    assert_eq!(made.records, [Box::<str>::from("000t")]);
    let mut orders = maker("/event/Payment__e", Some("Invoice__c"));
    let made = orders.sound("000t").unwrap();
    assert_eq!(made.event.key.as_deref(), Some("000t"));
    assert_eq!(made.records, [Box::<str>::from("000t")]);
}

#[test]
fn odd_events_decode_and_the_largest_is_as_large_as_an_event_may_be() {
    for topic in ["/data/AccountChangeEvent", "/event/Order__e"] {
        let mut maker = maker(topic, None);
        let oddities = maker.oddities();
        assert_eq!(
            oddities.len(),
            if topic.starts_with("/data") { 8 } else { 4 }
        );
        for oddity in oddities {
            let record = maker.new_record();
            let made = maker.odd(oddity, &record).unwrap();
            let json = made.event.cloud_event().to_json();
            assert!(serde_json::from_slice::<Value>(&json).is_ok(), "{oddity:?}");
        }
        let largest = maker.largest("000t").unwrap().unwrap();
        let size = largest.event.raw.payload.len();
        assert!((LARGEST - 100..LARGEST + 100).contains(&size), "{size}");
    }
}

/// Events of accounts as a handler with these `fields` is shown them.
fn shown_to(fields: FieldsConfig) -> Maker {
    let mut handler = HandlerConfig::new("log");
    handler.fields = fields;
    maker("/data/AccountChangeEvent", None).shown_to(&handler)
}

#[test]
fn what_a_handler_is_not_shown_is_not_in_its_events() {
    let all = maker("/data/AccountChangeEvent", None).kinds[0]
        .texts
        .clone();
    for fields in [
        FieldsConfig {
            mask: all.clone(),
            ..FieldsConfig::default()
        },
        FieldsConfig {
            without: all,
            ..FieldsConfig::default()
        },
    ] {
        let mut maker = shown_to(fields);
        let made = maker.sound("000t").unwrap();
        let json = made.event.cloud_event().to_json();
        let json = String::from_utf8(json).unwrap();
        assert!(!json.contains(&maker.canary()), "{json}");
        assert!(made.event.raw.payload.is_empty());
        assert!(maker.largest("000t").unwrap().is_none());
    }
}

#[test]
fn the_largest_event_is_large_in_what_the_handler_is_shown() {
    let first = maker("/data/AccountChangeEvent", None).kinds[0].texts[0].clone();
    let mut maker = shown_to(FieldsConfig {
        mask: vec![first],
        ..FieldsConfig::default()
    });
    let largest = maker.largest("000t").unwrap().unwrap();
    assert!((LARGEST - 100..LARGEST + 100).contains(&largest.size));
    let shown = largest.event.decoded.data.len();
    assert!(shown > LARGEST - 5_000, "{shown}");
}

#[test]
fn what_a_user_gives_is_in_the_events_and_in_no_reason() {
    let subscription = SubscriptionConfig::new("s", "Order__e".parse().unwrap());
    let sound = json!({"City__c": "Springfield", "Amount__c": 5});
    let mut maker = Maker::new(&subscription, None, Some(&sound), None).unwrap();
    let made = maker.sound("").unwrap();
    let data: Value = serde_json::from_slice(&made.event.decoded.data).unwrap();
    assert_eq!(data["City__c"], "Springfield");
    assert!(maker.secrets().contains(&"Springfield".to_owned()));
    let unknown = json!({"Cty__c": "x"});
    let mut maker = Maker::new(&subscription, None, Some(&unknown), None).unwrap();
    let error = maker.sound("").unwrap_err();
    assert!(error.contains("no field Cty__c"), "{error}");
}

#[test]
fn a_schema_in_the_folder_comes_before_ours() {
    let folder = tempfile::tempdir().unwrap();
    let text = r#"{"type":"record","name":"Order__e","fields":[{"name":"Own__c","type":["null","string"]}]}"#;
    std::fs::write(folder.path().join("Order__e.avsc"), text).unwrap();
    let subscription = SubscriptionConfig::new("s", "Order__e".parse().unwrap());
    let mut maker = Maker::new(&subscription, Some(folder.path()), None, None).unwrap();
    let made = maker.sound("").unwrap();
    let data: Value = serde_json::from_slice(&made.event.decoded.data).unwrap();
    assert!(data["Own__c"].as_str().unwrap().starts_with("canary"));
}

#[test]
fn attributes_by_themselves_are_those_of_the_json() {
    for topic in ["/data/AccountChangeEvent", "/event/Order__e"] {
        let mut maker = maker(topic, None);
        let odd = maker.oddities().into_iter().map(Some).chain([None]);
        for oddity in odd.collect::<Vec<_>>() {
            let made = match oddity {
                Some(oddity) => maker.odd(oddity, "000t").unwrap(),
                None => maker.sound("000t").unwrap(),
            };
            let event = made.event.cloud_event();
            let mut json: serde_json::Map<String, Value> =
                serde_json::from_slice(&event.to_json()).unwrap();
            assert!(json.remove("data").is_some());
            let mut shown = serde_json::Map::new();
            let Ok(()) = event.each_attribute(|name, value| {
                let value = match value {
                    Attribute::Text(text) => text.into(),
                    Attribute::Integer(number) => number.into(),
                    Attribute::Boolean(truth) => truth.into(),
                };
                shown.insert(name.to_owned(), value);
                Ok::<(), std::convert::Infallible>(())
            });
            assert_eq!(shown, json);
        }
    }
}
