//! What tests and the target in `fuzz/` ask of the reading of responses. There only in tests and with `--cfg fuzzing`.

use bytes::Bytes;
use prost::Message as _;

use super::proto::{ConsumerEvent, FetchResponse, ProducerEvent};
use super::responses::{Responses, owed};
use crate::event::{RawEvent, ReplayId};

/// Reads bytes as a response with generated code and without it, as a stream that has brought `earlier` would.
pub fn read_in_both_ways(earlier: &[u8], bytes: &[u8]) {
    let mut responses = Responses::default();
    let _ = responses.read(Bytes::copy_from_slice(earlier));
    let frame = Bytes::copy_from_slice(bytes);
    let plain = responses.read_plain(&frame);
    let generated = FetchResponse::decode(frame);
    let Some(plain) = plain else {
        return;
    };
    assert!(generated.is_ok(), "what is read as a response is one");
    let generated = generated.unwrap_or_default();
    assert_eq!(plain.rpc_id, generated.rpc_id);
    assert_eq!(
        plain.pending_num_requested,
        owed(generated.pending_num_requested)
    );
    let latest = ReplayId::from_wire(&generated.latest_replay_id);
    assert_eq!(plain.latest_replay_id, latest);
    let events = generated.events.into_iter();
    let events: Vec<RawEvent> = events
        .map(|event| Responses::default().generated(event))
        .collect();
    assert_eq!(plain.events, events);
}

/// Responses as they come: with two events, with one that has neither a payload nor a place, and a keepalive.
pub fn sample_responses() -> Vec<Vec<u8>> {
    let event = |id: &str, payload: &'static [u8], replay_id: &'static [u8]| ConsumerEvent {
        event: Some(ProducerEvent {
            id: id.to_owned(),
            schema_id: "T2gsoDAd40J5FRpynIKZmQ".to_owned(),
            payload: Bytes::from_static(payload),
            headers: Vec::new(),
        }),
        replay_id: Bytes::from_static(replay_id),
    };
    let place = b"\0\0\0\0\0\x10\xdb\x4d\0\0";
    let one = event(
        "6f1f9b1a-6c7f-4b1e-9a51-0f7b7f2d8a10",
        b"\x02\x06abc",
        place,
    );
    let other = event("", b"", b"");
    let response = |(events, pending_num_requested)| FetchResponse {
        events,
        latest_replay_id: Bytes::from_static(b"\0\0\0\0\0\x10\xdb\x4e\0\0"),
        rpc_id: "1fc4a7b0-5f3e-4e8e-8f0a-5b6d1f2c3a4b".to_owned(),
        pending_num_requested,
    };
    let responses = [
        (vec![one.clone(), one], 98),
        (vec![other], 0),
        (Vec::new(), 100),
    ];
    let encoded = responses.map(|parts| response(parts).encode_to_vec());
    encoded.into()
}
