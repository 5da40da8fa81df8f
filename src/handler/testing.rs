//! What the tests of several handlers share.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::EventBatch;
use crate::config::{
    BackoffConfig, FieldsConfig, FilterConfig, HandlerConfig, OnExhausted, RetryConfig,
};
use crate::event::{Decoded, Event, OrgId, RawEvent, ReplayId, SchemaId, Shown, Source};

/// The configuration of a handler `h` with these options, in TOML.
pub(super) fn config(kind: &str, options: &str) -> HandlerConfig {
    HandlerConfig {
        name: "h".into(),
        kind: kind.into(),
        retry: RetryConfig {
            attempts: 8,
            backoff: BackoffConfig {
                initial: Duration::from_millis(500),
                max: Duration::from_secs(60),
            },
            total: Duration::from_secs(12 * 3600),
        },
        on_exhausted: OnExhausted::Park,
        filter: FilterConfig::default(),
        fields: FieldsConfig::default(),
        options: toml::from_str(options).unwrap(),
    }
}

/// Platform events `event-0`, `event-1`, … with these `data` texts.
pub(super) fn batch(data: &[&str]) -> EventBatch {
    let source = Arc::new(Source::new(
        OrgId::parse("00D58000000arpqEAA").unwrap(),
        "acme.my.salesforce.com",
        "Order__e".parse().unwrap(),
    ));
    let events = data.iter().enumerate().map(|(n, data)| {
        Arc::new(Event {
            source: source.clone(),
            raw: RawEvent {
                id: format!("event-{n}").into(),
                schema_id: SchemaId::new("schema"),
                payload: Bytes::from_static(b"payload"),
                replay_id: ReplayId::from_wire(&[0, n as u8]),
            },
            decoded: Decoded {
                record_name: "Order__e".into(),
                header: None,
                data: Bytes::copy_from_slice(data.as_bytes()),
                ignored_bits: 0,
            },
            received_at: SystemTime::UNIX_EPOCH,
            epoch: 1,
            replayed: false,
            partial: false,
            shown: Shown::Whole,
            known_as: OnceLock::new(),
            key: None,
        })
    });
    EventBatch {
        subscription: "orders".into(),
        events: events.collect(),
        strict: false,
    }
}

/// As many with these keys, and without where one is empty.
pub(super) fn keyed(keys: &[&str]) -> EventBatch {
    let mut batch = batch(&vec!["{}"; keys.len()]);
    for (event, key) in batch.events.iter_mut().zip(keys) {
        Arc::make_mut(event).key = (!key.is_empty()).then(|| (*key).into());
    }
    batch
}
