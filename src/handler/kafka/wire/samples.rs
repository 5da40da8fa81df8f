//! Answers as brokers write them, for the tests and for the fuzz target's first files, and every way to read one.

use super::*;

/// A topic of two partitions, of which the second has no leader, at one broker.
pub(super) fn metadata(version: i16) -> Vec<u8> {
    let mut answer = Writer::default();
    answer.i32(0).i32(1).i32(7).text("b").i32(9092).no_text();
    answer.no_text().i32(7).i32(1).i16(0).text("t").i8(0).i32(2);
    for (index, leader) in [(1, -1), (0, 7)] {
        answer.i16(0).i32(index).i32(leader);
        if version >= 7 {
            answer.i32(3);
        }
        answer.i32(2).i32(7).i32(8).i32(1).i32(7);
        if version >= 5 {
            answer.i32(0);
        }
    }
    if version >= 8 {
        answer.i32(1 << 4).i32(i32::MIN);
    }
    answer.0
}

/// A batch that is refused (`INVALID_RECORD`).
pub(super) fn refused(version: i16) -> Vec<u8> {
    let mut answer = Writer::default();
    answer.i32(1).text("t").i32(1).i32(3);
    answer.i16(87).i64(-1).i64(-1);
    if version >= 5 {
        answer.i64(0);
    }
    if version >= 8 {
        answer.i32(1).i32(0).text("no key").no_text();
    }
    answer.i32(0);
    answer.0
}

/// One of each kind and version.
#[cfg(fuzzing)]
pub(in crate::handler) fn answers() -> Vec<Vec<u8>> {
    let (mut versions, mut producer) = (Writer::default(), Writer::default());
    versions.i16(0).i32(2).i16(0).i16(3).i16(8);
    versions.i16(3).i16(4).i16(8);
    producer.i32(0).i16(0).i64(5).i16(2);
    let (mut handshake, mut authenticate) = (Writer::default(), Writer::default());
    handshake.i16(33).i32(2).text("PLAIN").text("SCRAM-SHA-512");
    authenticate.i16(0).no_text().bytes(b"v=AQM=");
    let mut all = vec![versions.0, producer.0, handshake.0, authenticate.0];
    all.extend((METADATA.oldest..=METADATA.newest).map(metadata));
    all.extend((PRODUCE.oldest..=PRODUCE.newest).map(refused));
    all
}

/// Reads bytes as the answer to each question, in each version.
pub(in crate::handler) fn read_in_every_way(bytes: &[u8]) {
    for version in METADATA.oldest..=METADATA.newest {
        if let Ok(metadata) = Metadata::read(version, Reader(bytes)) {
            // What is kept of an answer is bounded by its length.
            let leaders = metadata.topic.map_or(0, |topic| topic.leaders.len());
            assert!(metadata.brokers.len() + leaders <= bytes.len());
        }
    }
    for version in PRODUCE.oldest..=PRODUCE.newest {
        let _ = Produced::read(version, Reader(bytes));
    }
    let _ = Versions::read(Reader(bytes));
    let _ = ProducerId::read(Reader(bytes));
    let _ = read_sasl_handshake(Reader(bytes));
    let _ = read_sasl_authenticate(Reader(bytes));
}
