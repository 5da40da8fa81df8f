use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::salesforce::pubsub::fuzzing::{read_in_both_ways, sample_responses};
use crate::salesforce::pubsub::proto::{EventHeader, ProducerEvent};

fn responses() -> impl Strategy<Value = FetchResponse> {
    let bytes = |most| vec(any::<u8>(), 0..most).prop_map(Bytes::from);
    let header = (".{0,5}", bytes(5)).prop_map(|(key, value)| EventHeader { key, value });
    let headers = prop_oneof![8 => Just(Vec::new()), 1 => vec(header, 1..3)];
    let schema = prop_oneof![Just("one".to_owned()), Just("other".to_owned()), ".{0,30}"];
    let body = (".{0,40}", schema, bytes(300), headers);
    let body = body.prop_map(|(id, schema_id, payload, headers)| ProducerEvent {
        id,
        schema_id,
        payload,
        headers,
    });
    let event = (prop::option::weighted(0.9, body), bytes(12));
    let event = event.prop_map(|(event, replay_id)| ConsumerEvent { event, replay_id });
    let pending = prop_oneof![0..101, any::<i32>()];
    (vec(event, 0..8), bytes(12), ".{0,40}", pending).prop_map(
        |(events, latest_replay_id, rpc_id, pending_num_requested)| FetchResponse {
            events,
            latest_replay_id,
            rpc_id,
            pending_num_requested,
        },
    )
}

proptest! {
    #[test]
    fn a_response_is_read_as_generated_code_reads_it(
        earlier in responses(),
        response in responses(),
        more in vec(any::<u8>(), 0..6),
        (at, cut) in (any::<prop::sample::Index>(), 0usize..6),
    ) {
        let earlier = earlier.encode_to_vec();
        let whole = response.encode_to_vec();
        read_in_both_ways(&earlier, &whole);
        // And so is what comes of it where something else stands in it.
        let mut changed = whole.clone();
        let at = at.index(whole.len() + 1);
        let end = (at + cut).min(whole.len());
        changed.splice(at..end, more);
        read_in_both_ways(&earlier, &changed);
    }
}

#[test]
fn what_salesforce_sends_is_read_without_generated_code() {
    for response in sample_responses() {
        let frame = Bytes::from(response);
        let batch = Responses::default()
            .read_plain(&frame)
            .expect("it is plain");
        assert_eq!(batch, Responses::default().read(frame).unwrap());
        assert!(!batch.rpc_id.is_empty());
    }
}

#[test]
fn events_with_headers_or_with_fields_that_are_new_are_read_all_the_same() {
    let mut response = FetchResponse::decode(&*sample_responses()[0]).unwrap();
    let events = response.events.len();
    let body = response.events[0].event.as_mut().unwrap();
    body.headers.push(EventHeader {
        key: "traceparent".into(),
        value: Bytes::from_static(b"00-0af7"),
    });
    let mut frame = response.encode_to_vec();
    frame.extend([0x7a, 2, b'h', b'i']); // field 15, a text
    let frame = Bytes::from(frame);
    assert_eq!(Responses::default().read_plain(&frame), None);
    let batch = Responses::default().read(frame).unwrap();
    assert_eq!(batch.events.len(), events);
    assert_eq!(
        batch.events[0].id,
        response.events[0].event.as_ref().unwrap().id
    );
}

#[test]
fn bytes_that_are_no_response_are_an_error() {
    for bytes in [
        &b"\x0a\x05ab"[..],
        b"\x1a\x02\xff\xfe",
        b"\x00\x00",
        b"\xff",
    ] {
        let error = Responses::default()
            .read(Bytes::from_static(bytes))
            .unwrap_err();
        assert_eq!(error.code(), tonic::Code::Internal);
    }
}
