//! Dead letters as people deal with them: what is shown of one, which stand in whose way, what follows from
//! giving one up. `orgstream dead-letters` and the status page do the same with it.

pub(crate) mod discard;
pub(crate) mod json;
pub(crate) mod shown;
pub(crate) mod ways;

use serde_json::value::RawValue;

use crate::avro::Schema;
use crate::store::{LetterSummary, StoredDeadLetter};

/// That there is none of this number.
pub(crate) fn unknown(id: i64) -> String {
    format!("there is no parked event {id}; `orgstream dead-letters list --state any` shows all")
}

/// That one is not open any more.
pub(crate) fn settled(id: i64, state: &str) -> String {
    format!("parked event {id} is {state} already")
}

/// That nobody could be given one, and what to do about it.
pub(crate) fn orphan(letter: &LetterSummary) -> String {
    let handler = letter.handler.as_deref().unwrap_or_default();
    format!(
        "{} is not tried: `{}` has no handler `{handler}` any more; configure one of that name, or discard it",
        letter.placed.id, letter.subscription
    )
}

/// Its state, and whether it is about to be tried again.
pub(crate) fn state(stored: &StoredDeadLetter) -> String {
    match stored.retry_asked_at {
        Some(_) => format!("{}, retry asked", stored.state),
        None => stored.state.clone(),
    }
}

/// What it is about: the first record, else the kind of event, else the publisher's ID.
pub(crate) fn event_name(stored: &StoredDeadLetter) -> String {
    let letter = &stored.letter;
    let more = letter.record_ids.len().saturating_sub(1);
    match (letter.record_ids.first(), &letter.record_name) {
        (Some(record), _) if more > 0 => format!("{record} +{more}"),
        (Some(record), _) => record.clone(),
        (None, Some(name)) => name.clone(),
        (None, None) => letter.event_uuid.clone(),
    }
}

/// The payload as its handler would see it in `data`, or why it cannot be shown so.
pub(crate) fn decoded(
    schema: Option<&str>,
    stored: &StoredDeadLetter,
    shapes: &shown::Shapes,
) -> Result<Box<RawValue>, String> {
    if let Some(why) = &stored.unreadable {
        return Err(why.clone());
    }
    let text = schema.ok_or("the store does not have its schema")?;
    let schema = Schema::parse(text).map_err(|error| error.to_string())?;
    let decoded = schema
        .decode(&stored.letter.payload)
        .map_err(|failure| format!("it does not decode: {}", failure.error))?;
    let decoded = shapes.apply(decoded)?;
    serde_json::from_slice(&decoded.data).map_err(|error| error.to_string())
}

/// Bytes as `hexdump -C` would show them: offset, 16 bytes, their ASCII.
pub(crate) fn hex_lines(bytes: &[u8]) -> String {
    let line = |(number, chunk): (usize, &[u8])| {
        let digits: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
        let ascii: String = chunk
            .iter()
            .map(|byte| match byte {
                b' '..=b'~' => char::from(*byte),
                _ => '.',
            })
            .collect();
        format!("{:08x}  {:<47}  {ascii}\n", number * 16, digits.join(" "))
    };
    bytes.chunks(16).enumerate().map(line).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::SystemTime;

    use bytes::Bytes;

    use super::*;
    use crate::event::{EventIdentity, SchemaId};
    use crate::store::DeadLetter;

    pub(crate) fn stored() -> StoredDeadLetter {
        StoredDeadLetter {
            id: 7,
            subscription: "orders".into(),
            topic: "/event/Order__e".into(),
            state: "open".into(),
            parked_at: SystemTime::UNIX_EPOCH,
            retry_asked_at: None,
            resolved_at: None,
            unreadable: None,
            letter: DeadLetter {
                identity: EventIdentity::from_stored("u:1"),
                handler: None,
                reason: "undecodable".into(),
                error: "é".repeat(100),
                attempts: 0,
                event_uuid: "u".into(),
                replay_id: None,
                schema_id: SchemaId::new("s"),
                payload: Bytes::from_static(b"\x02A\x00 and more than a line"),
                record_ids: Vec::new(),
                record_name: None,
                unit: None,
                place: None,
                received_at: SystemTime::UNIX_EPOCH,
                commit: None,
                ahead: false,
                replayed: false,
                sealed: false,
            },
        }
    }

    #[test]
    fn an_event_is_named_by_what_is_known_of_it() {
        let mut one = stored();
        assert_eq!(event_name(&one), "u");
        one.letter.record_name = Some("Order__e".into());
        assert_eq!(event_name(&one), "Order__e");
        one.letter.record_ids = vec!["001A".into(), "001B".into()];
        assert_eq!(event_name(&one), "001A +1");
    }

    #[test]
    fn a_payload_is_decoded_where_its_schema_is_known_and_else_says_why() {
        let schema = r#"{"type":"record","name":"X","fields":[{"name":"A","type":"string"}]}"#;
        let decode = |schema, payload: &'static [u8]| {
            let mut one = stored();
            one.letter.payload = Bytes::from_static(payload);
            decoded(schema, &one, &shown::Shapes::default())
        };
        let data = decode(Some(schema), b"\x02a").unwrap();
        assert_eq!(data.get(), r#"{"A":"a"}"#);
        let error = decode(Some(schema), b"\x09").unwrap_err();
        assert!(error.contains("field A"), "{error}");
        assert!(decode(None, b"").unwrap_err().contains("schema"));
    }

    #[test]
    fn bytes_are_shown_sixteen_a_line() {
        assert_eq!(
            hex_lines(&stored().letter.payload),
            "00000000  02 41 00 20 61 6e 64 20 6d 6f 72 65 20 74 68 61  .A. and more tha\n\
             00000010  6e 20 61 20 6c 69 6e 65                          n a line\n"
        );
    }
}
