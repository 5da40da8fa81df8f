//! An event as a record of Kafka, by the Kafka binding of CloudEvents 1.0.

use std::convert::Infallible;

use super::records::Record;
use crate::event::Event;
use crate::handler::written::repeat_key;

/// What a record's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Structured mode: the whole event as JSON.
    Json,
    /// Binary mode: the payload as it came off the bus, the attributes beside it.
    Avro,
}

/// The record of an event.
pub(super) fn record(format: Format, subscription: &str, event: &Event) -> Record {
    let cloud_event = event.cloud_event();
    // What a reader knows a repeat by, whatever other subscriptions write to the topic.
    let repeat = (
        "idempotency-key".to_owned(),
        repeat_key(subscription, event),
    );
    let content_type = |name: &str| ("content-type".to_owned(), name.to_owned());
    let (value, headers) = match format {
        Format::Json => (
            cloud_event.to_json(),
            vec![
                content_type("application/cloudevents+json; charset=UTF-8"),
                repeat,
            ],
        ),
        Format::Avro => {
            let mut headers = vec![content_type("application/avro"), repeat];
            let Ok(()) = cloud_event.each_attribute(|name, value| {
                // It says what the data is, which here is not JSON.
                if name != "datacontenttype" {
                    headers.push((format!("ce_{name}"), value.to_string()));
                }
                Ok::<(), Infallible>(())
            });
            (event.raw.payload.to_vec(), headers)
        }
    };
    Record {
        // The attribute `partitionkey`.
        key: cloud_event.subject().map(str::to_owned),
        value,
        headers,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::batch;
    use super::*;

    fn headers(record: &Record) -> Vec<(&str, &str)> {
        let headers = record.headers.iter();
        headers.map(|(n, v)| (n.as_str(), v.as_str())).collect()
    }

    #[test]
    fn a_structured_record_is_the_whole_event() {
        let batch = batch(&[r#"{"a":1}"#]);
        let record = record(Format::Json, "orders", &batch.events[0]);
        let value: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
        assert_eq!(value["data"]["a"], 1);
        assert_eq!(record.key, None);
        assert_eq!(
            headers(&record),
            [
                (
                    "content-type",
                    "application/cloudevents+json; charset=UTF-8"
                ),
                ("idempotency-key", "orders:event-0:0000"),
            ]
        );
    }

    #[test]
    fn a_binary_record_is_the_payload_with_the_attributes_beside_it() {
        let mut batch = batch(&["{}"]);
        std::sync::Arc::make_mut(&mut batch.events[0]).key = Some("k1".into());
        let record = record(Format::Avro, "orders", &batch.events[0]);
        assert_eq!(record.value, b"payload");
        assert_eq!(record.key.as_deref(), Some("k1"));
        let headers = headers(&record);
        for header in [
            ("content-type", "application/avro"),
            ("ce_specversion", "1.0"),
            ("ce_dataschema", "urn:salesforce:avro:schema"),
            ("ce_partitionkey", "k1"),
        ] {
            assert!(headers.contains(&header), "{header:?} in {headers:?}");
        }
        assert!(
            !headers
                .iter()
                .any(|(name, _)| *name == "ce_datacontenttype")
        );
    }
}
