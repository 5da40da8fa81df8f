//! Records and the batches that they are sent in (format 2, with headers and the producer's sequence numbers).

use super::wire::{ProducerId, Writer, length_of};

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// `None` for an event without a record.
    pub(super) key: Option<String>,
    pub(super) value: Vec<u8>,
    pub(super) headers: Vec<(String, String)>,
}

impl Record {
    /// Bytes that it takes, a little too many rather than too few.
    pub(super) fn size(&self) -> usize {
        let headers = self.headers.iter();
        let headers: usize = headers
            .map(|(name, value)| name.len() + value.len() + 6)
            .sum();
        self.key.as_ref().map_or(0, String::len) + self.value.len() + headers + 32
    }
}

/// Whose batch it is and which number its first record has, where the brokers keep repeats out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) producer: ProducerId,
    pub(super) sequence: i32,
}

/// A batch as it is stored: the broker fills in the offset only.
pub(super) fn batch(records: &[Record], stamp: Option<Stamp>, timestamp_ms: i64) -> Vec<u8> {
    let mut body = Writer(Vec::with_capacity(
        records.iter().map(Record::size).sum::<usize>() + 64,
    ));
    let (producer, sequence) = match stamp {
        Some(stamp) => (stamp.producer, stamp.sequence),
        None => (ProducerId { id: -1, epoch: -1 }, -1),
    };
    let count = length_of(records);
    body.i16(0).i32(count - 1); // no attributes: not compressed, the producer's time
    body.i64(timestamp_ms).i64(timestamp_ms);
    body.i64(producer.id).i16(producer.epoch).i32(sequence);
    body.i32(count);
    let mut one = Vec::new();
    for (offset, record) in (0..).zip(records) {
        one.clear();
        write_record(&mut one, offset, record);
        varint_of(&mut body.0, one.len());
        body.0.extend(&one);
    }
    let mut batch = Writer(Vec::with_capacity(body.0.len() + 21));
    // Offset; length of what follows; epoch of the leader, which the broker fills in; format.
    batch.i64(0).i32(length_of(&body.0) + 9).i32(-1).i8(2);
    batch.i32(i32::from_be_bytes(crc32c(&body.0).to_be_bytes()));
    batch.0.extend(&body.0);
    batch.0
}

fn write_record(to: &mut Vec<u8>, offset: i64, record: &Record) {
    to.push(0);
    varint(to, 0); // same time as the batch
    varint(to, offset);
    match &record.key {
        Some(key) => varint_bytes(to, key.as_bytes()),
        None => varint(to, -1),
    }
    varint_bytes(to, &record.value);
    varint_of(to, record.headers.len());
    for (name, value) in &record.headers {
        varint_bytes(to, name.as_bytes());
        varint_bytes(to, value.as_bytes());
    }
}

fn varint_bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    varint_of(to, bytes.len());
    to.extend(bytes);
}

fn varint_of(to: &mut Vec<u8>, length: usize) {
    varint(to, i64::try_from(length).unwrap_or(i64::MAX));
}

/// Zigzag: small numbers of either sign are short.
fn varint(to: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    loop {
        let low = (rest & 0x7f).to_le_bytes()[0];
        rest >>= 7;
        if rest == 0 {
            to.push(low);
            return;
        }
        to.push(low | 0x80);
    }
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut crc = n as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
};

/// CRC-32 with the polynomial of Castagnoli.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        let low = crc.to_le_bytes()[0] ^ byte;
        crc >> 8 ^ CRC_TABLE[usize::from(low)]
    };
    !bytes.iter().fold(u32::MAX, step)
}

/// The partition of a key among so many, as Kafka's own clients choose it: what others write with the same key goes
/// to the same partition.
pub(super) fn partition_of(key: &[u8], partitions: usize) -> usize {
    let positive = usize::try_from(murmur2(key) & 0x7fff_ffff).unwrap_or_default();
    positive % partitions.max(1)
}

/// `MurmurHash2`, 32 bits, with the seed of Kafka's Java client.
fn murmur2(bytes: &[u8]) -> u32 {
    const MIX: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ (bytes.len() & 0xffff_ffff) as u32;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        let mut word = word
            .iter()
            .rev()
            .fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
        word = word.wrapping_mul(MIX);
        word ^= word >> 24;
        hash = hash.wrapping_mul(MIX) ^ word.wrapping_mul(MIX);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (n, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * n);
        }
        hash = hash.wrapping_mul(MIX);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MIX);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_known_one() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(b""), 0);
    }

    /// Values of Kafka's own test of its hash.
    #[test]
    fn a_key_goes_where_kafkas_own_clients_put_it() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            (
                "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            ("abc", 479_470_107),
        ] {
            let expected: i32 = hash;
            assert_eq!(murmur2(key.as_bytes()), expected.cast_unsigned(), "{key}");
        }
        assert_eq!(partition_of(b"abc", 0), 0);
    }

    #[test]
    fn small_numbers_are_short() {
        let written = |value: i64| {
            let mut to = Vec::new();
            varint(&mut to, value);
            to
        };
        assert_eq!(written(0), [0]);
        assert_eq!(written(-1), [1]);
        assert_eq!(written(63), [126]);
        assert_eq!(written(64), [0x80, 1]);
        assert_eq!(written(i64::MIN).len(), 10);
    }

    #[test]
    fn a_batch_says_how_long_it_is_and_whose() {
        let record = Record {
            key: Some("k".into()),
            value: b"v".to_vec(),
            headers: vec![("a".into(), "b".into())],
        };
        let stamp = Stamp {
            producer: ProducerId { id: 5, epoch: 2 },
            sequence: 7,
        };
        let bytes = batch(&[record.clone(), record], Some(stamp), 1);
        let int = |at: usize| i32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(int(8) as usize, bytes.len() - 12);
        assert_eq!(bytes[16], 2, "the format");
        assert_eq!(int(17).cast_unsigned(), crc32c(&bytes[21..]));
        assert_eq!(int(23), 1, "the last offset");
        assert_eq!((int(53), int(57)), (7, 2), "sequence and count");
        assert_eq!(
            bytes[61..73],
            [24, 0, 0, 0, 2, b'k', 2, b'v', 2, 2, b'a', 2]
        );
    }
}
