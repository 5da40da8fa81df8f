//! An event as a stream sends it.

use bytes::Bytes;

use super::bus::{Delivery, replay_id};
use super::faults::FaultKind;
use crate::salesforce::pubsub::proto::{ConsumerEvent, ProducerEvent};

/// Bytes of a payload that no client takes in one message.
const OVERSIZE: usize = 20 * 1024 * 1024;

/// Puts an event, and what a fault makes of it, behind those of its response. `previous` is the place of
/// the event before it.
pub(super) fn put(
    delivery: &Delivery,
    fault: Option<FaultKind>,
    previous: u64,
    events: &mut Vec<ConsumerEvent>,
) {
    let event = &delivery.event;
    let mut sent = ConsumerEvent {
        event: Some(ProducerEvent {
            id: event.id.clone(),
            schema_id: event.schema_id.as_str().to_owned(),
            payload: event.payload.clone(),
            headers: Vec::new(),
        }),
        replay_id: replay_id(delivery.position),
    };
    let payload = match fault {
        Some(FaultKind::CorruptPayload) => {
            Some((0..40).map(|_| fastrand::u8(..)).collect::<Bytes>())
        }
        Some(FaultKind::Oversize) => Some(Bytes::from(vec![0; OVERSIZE])),
        _ => None,
    };
    if let (Some(payload), Some(event)) = (payload, &mut sent.event) {
        event.payload = payload;
    }
    match fault {
        Some(FaultKind::Duplicate) => events.push(sent.clone()),
        Some(FaultKind::LowerReplayId) => {
            sent.replay_id = replay_id(previous.saturating_sub(1));
        }
        Some(FaultKind::MissingReplayId) => sent.replay_id = Bytes::new(),
        _ => {}
    }
    events.push(sent);
}
