//! Events as HTTP messages: the three content modes of the HTTP Protocol Binding for CloudEvents, 1.0.2.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;

use aws_lc_rs::digest;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::super::EventBatch;
use super::super::written::repeat_key;
use crate::event::Event;

/// Structured content mode: one event, all of it in the body.
const ONE_EVENT: HeaderValue =
    HeaderValue::from_static("application/cloudevents+json; charset=utf-8");

/// Batched content mode: a JSON array of such events.
const SEVERAL_EVENTS: HeaderValue =
    HeaderValue::from_static("application/cloudevents-batch+json; charset=utf-8");

/// What names a message, for a receiver that wants to know one it has seen before.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// What the names of headers begin with that carry attributes of an event.
pub(super) const ATTRIBUTE: &str = "ce-";

/// How events are put into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// One event is all of the body; several that come together are a batch.
    Structured,
    /// One event's data is the body, its attributes are headers; several that come together are a batch.
    Binary,
    /// The body is an array, of one event too.
    Batched,
}

/// A message to be posted.
#[derive(Debug)]
pub(super) struct Message {
    /// Of this message alone; those of the configuration come on top.
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    /// The same for the same events of the same subscription, and for no others.
    pub(super) key: String,
}

impl Message {
    /// Makes one message of all events of a batch.
    pub(super) fn new(mode: Mode, batch: &EventBatch) -> Self {
        let mut headers = HeaderMap::new();
        let (content_type, body) = match (mode, &batch.events[..]) {
            (Mode::Structured, [event]) => (ONE_EVENT, event.cloud_event().to_json()),
            (Mode::Binary, [event]) => {
                let content_type = put_attributes(event, &mut headers);
                (content_type, event.decoded.data.to_vec())
            }
            (_, events) => {
                let mut body = b"[".to_vec();
                for (number, event) in events.iter().enumerate() {
                    if number > 0 {
                        body.push(b',');
                    }
                    event.cloud_event().append_json(&mut body);
                }
                body.push(b']');
                (SEVERAL_EVENTS, body)
            }
        };
        let key = key(&batch.subscription, &batch.events);
        headers.insert(header::CONTENT_TYPE, content_type);
        // Names of subscriptions and identities are plain texts.
        if let Ok(value) = HeaderValue::from_str(&key) {
            headers.insert(IDEMPOTENCY_KEY, value);
        }
        Self { headers, body, key }
    }
}

/// The subscription's name, because subscriptions may share topics, and the event's identity, or a digest of all
/// identities.
fn key(subscription: &str, events: &[Arc<Event>]) -> String {
    let [event] = events else {
        let mut digest = digest::Context::new(&digest::SHA256);
        for event in events {
            digest.update(event.identity().as_str().as_bytes());
            digest.update(b"\n");
        }
        return format!("{subscription}:{}", hex::encode(digest.finish()));
    };
    repeat_key(subscription, event)
}

/// Puts each attribute of an event into a header, and gives the type of its data, which has a header of its own.
fn put_attributes(event: &Event, headers: &mut HeaderMap) -> HeaderValue {
    let mut content_type = HeaderValue::from_static("application/json");
    let Ok(()) = event
        .cloud_event()
        .each_attribute(|name, value| -> Result<(), Infallible> {
            // Neither fails: names of attributes are small letters and digits, encoded values are ASCII.
            let name = HeaderName::try_from(format!("{ATTRIBUTE}{name}"));
            if let (Ok(name), Ok(value)) =
                (name, HeaderValue::try_from(encoded(&value.to_string())))
            {
                match name.as_str() {
                    "ce-datacontenttype" => content_type = value,
                    _ => drop(headers.insert(name, value)),
                }
            }
            Ok(())
        });
    content_type
}

/// Percent-encodes what may not stand in a header's value (section 3.1.3.2): space, double quote, percent, and
/// all outside of printable ASCII, as bytes of UTF-8.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && !matches!(byte, b'"' | b'%') {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::super::super::testing::batch;
    use super::*;

    /// What a receiver has to do (the same section).
    fn decoded(text: &str) -> String {
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();
        while let [first, tail @ ..] = rest {
            rest = tail;
            if *first == b'%' {
                let (digits, tail) = rest.split_at(2);
                bytes.extend(hex::decode(digits).unwrap());
                rest = tail;
            } else {
                bytes.push(*first);
            }
        }
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn values_are_encoded_as_in_the_examples_of_the_binding() {
        for (plain, wanted) in [
            ("Euro \u{20ac} \u{1f600}", "Euro%20%E2%82%AC%20%F0%9F%98%80"),
            ("100%", "100%25"),
            ("a\"b", "a%22b"),
            ("a\r\nb\u{7f}", "a%0D%0Ab%7F"),
            ("//host/00D/data/X?y=[z]~'", "//host/00D/data/X?y=[z]~'"),
            ("", ""),
        ] {
            assert_eq!(encoded(plain), wanted);
        }
    }

    proptest! {
        #[test]
        fn every_value_is_a_header_and_comes_back(text in any::<String>()) {
            let value = HeaderValue::try_from(encoded(&text)).unwrap();
            prop_assert_eq!(decoded(value.to_str().unwrap()), text);
        }
    }

    #[test]
    fn binary_mode_carries_what_structured_mode_does() {
        let mut batch = batch(&[r#"{"Amount__c":12.5}"#]);
        let mut event = Event::clone(&batch.events[0]);
        event.raw.id = "Bestellung \u{df} \"7\"\r\nce-type: x".into();
        event.key = Some("50 % off".into());
        event.replayed = true;
        event.partial = true;
        batch.events = vec![Arc::new(event)];
        let binary = Message::new(Mode::Binary, &batch);
        let structured = Message::new(Mode::Structured, &batch);
        let body: Value = serde_json::from_slice(&structured.body).unwrap();
        let attributes = body.as_object().unwrap();

        assert_eq!(binary.body, br#"{"Amount__c":12.5}"#);
        assert_eq!(binary.headers[header::CONTENT_TYPE], "application/json");
        assert!(!binary.headers.contains_key("ce-datacontenttype"));
        assert_eq!(binary.headers["ce-subject"], "50%20%25%20off");
        let mut seen = 0;
        for (name, value) in &binary.headers {
            let Some(name) = name.as_str().strip_prefix(ATTRIBUTE) else {
                continue;
            };
            let wanted = match &attributes[name] {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            assert_eq!(decoded(value.to_str().unwrap()), wanted, "{name}");
            seen += 1;
        }
        // All but the data and the type of its content.
        assert_eq!(seen, attributes.len() - 2);
    }

    #[test]
    fn each_mode_has_its_type_of_content_and_several_events_are_always_a_batch() {
        let (one, two) = (batch(&["1"]), batch(&["1", "2"]));
        for (mode, events, content_type) in [
            (Mode::Structured, &one, &ONE_EVENT),
            (
                Mode::Binary,
                &one,
                &HeaderValue::from_static("application/json"),
            ),
            (Mode::Batched, &one, &SEVERAL_EVENTS),
            (Mode::Structured, &two, &SEVERAL_EVENTS),
            (Mode::Binary, &two, &SEVERAL_EVENTS),
            (Mode::Batched, &two, &SEVERAL_EVENTS),
        ] {
            let message = Message::new(mode, events);
            assert_eq!(message.headers[header::CONTENT_TYPE], content_type);
            if content_type == SEVERAL_EVENTS {
                let body: Vec<Value> = serde_json::from_slice(&message.body).unwrap();
                assert_eq!(body.len(), events.events.len());
            }
        }
    }

    #[test]
    fn a_key_is_that_of_the_events_and_of_their_subscription() {
        let key = |events: &EventBatch| Message::new(Mode::Structured, events).key;
        let mut other = batch(&["1"]);
        let identity = other.events[0].identity();
        assert_eq!(key(&other), format!("orders:{identity}"));
        other.subscription = "invoices".into();
        assert_eq!(key(&other), format!("invoices:{identity}"));

        let (two, three) = (batch(&["1", "2"]), batch(&["1", "2", "3"]));
        assert_eq!(key(&two), key(&two.clone()));
        assert_ne!(key(&two), key(&three));
        assert!(key(&two).starts_with("orders:"));
    }
}
