//! Kafka's wire protocol, as far as a producer needs it.
//!
//! The versions are the last ones before the "flexible" encoding: every broker from 0.11 (2017) on speaks them, those of the
//! 4.x line included (KIP-896 took away what is older). Layouts are those of Kafka's own protocol guide.

/// What a request is for, with the versions that are written here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Api {
    pub(super) key: i16,
    pub(super) name: &'static str,
    pub(super) oldest: i16,
    pub(super) newest: i16,
}

impl Api {
    const fn new(key: i16, name: &'static str, oldest: i16, newest: i16) -> Self {
        Self {
            key,
            name,
            oldest,
            newest,
        }
    }
}

pub(super) const PRODUCE: Api = Api::new(0, "Produce", 3, 8);
pub(super) const METADATA: Api = Api::new(3, "Metadata", 4, 8);
pub(super) const SASL_HANDSHAKE: Api = Api::new(17, "SaslHandshake", 1, 1);
pub(super) const API_VERSIONS: Api = Api::new(18, "ApiVersions", 0, 0);
pub(super) const INIT_PRODUCER_ID: Api = Api::new(22, "InitProducerId", 0, 1);
pub(super) const SASL_AUTHENTICATE: Api = Api::new(36, "SaslAuthenticate", 0, 0);

/// An answer that is not laid out as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Writes big-endian numbers, and texts with their length before them.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn i8(&mut self, value: i8) -> &mut Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(super) fn i16(&mut self, value: i16) -> &mut Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(super) fn i32(&mut self, value: i32) -> &mut Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(super) fn i64(&mut self, value: i64) -> &mut Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    /// A text of up to 32767 bytes; all that are written are far shorter, and a longer one is cut.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        let length = i16::try_from(text.len()).unwrap_or(i16::MAX);
        self.i16(length);
        self.0
            .extend(text.bytes().take(usize::from(length.unsigned_abs())));
        self
    }

    pub(super) fn no_text(&mut self) -> &mut Self {
        self.i16(-1)
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.i32(length_of(bytes));
        self.0.extend(bytes);
        self
    }
}

/// A length as the protocol has it. Batches are bounded far below.
pub(super) fn length_of<T>(items: &[T]) -> i32 {
    i32::try_from(items.len()).unwrap_or(i32::MAX)
}

/// Reads what a [`Writer`] of the other side wrote.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    pub(super) fn boolean(&mut self) -> Result<bool, Malformed> {
        Ok(self.array::<1>()? != [0])
    }

    pub(super) fn i16(&mut self) -> Result<i16, Malformed> {
        Ok(i16::from_be_bytes(self.array()?))
    }

    pub(super) fn i32(&mut self) -> Result<i32, Malformed> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    pub(super) fn i64(&mut self) -> Result<i64, Malformed> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Malformed> {
        self.nullable_text()?.ok_or(Malformed)
    }

    pub(super) fn nullable_text(&mut self) -> Result<Option<&'a str>, Malformed> {
        match usize::try_from(self.i16()?) {
            Ok(length) => {
                let text = std::str::from_utf8(self.take(length)?);
                Ok(Some(text.map_err(|_| Malformed)?))
            }
            Err(_) => Ok(None),
        }
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.i32()?).map_err(|_| Malformed)?;
        self.take(length)
    }

    /// Each item of an array. Every item takes a byte at least, so a length that lies ends with the bytes.
    pub(super) fn each(
        &mut self,
        mut read: impl FnMut(&mut Self) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        for _ in 0..self.i32()?.max(0) {
            read(self)?;
        }
        Ok(())
    }

    fn skip_numbers(&mut self) -> Result<(), Malformed> {
        self.each(|reader| reader.i32().map(drop))
    }
}

/// The versions of each API that a broker speaks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Versions(Vec<(i16, i16, i16)>);

impl Versions {
    pub(super) fn read(mut answer: Reader<'_>) -> Result<Self, Malformed> {
        let _error = answer.i16()?;
        let mut versions = Self::default();
        answer.each(|reader| {
            let api = (reader.i16()?, reader.i16()?, reader.i16()?);
            versions.0.push(api);
            Ok(())
        })?;
        Ok(versions)
    }

    /// The newest version that both sides speak.
    pub(super) fn of(&self, api: Api) -> Option<i16> {
        let (_, oldest, newest) = self.0.iter().find(|(key, _, _)| *key == api.key)?;
        let version = api.newest.min(*newest);
        (version >= api.oldest.max(*oldest)).then_some(version)
    }
}

/// A broker's address as it is advertised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Broker {
    pub(super) id: i32,
    pub(super) host: String,
    pub(super) port: u16,
}

/// What is known of a topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TopicState {
    /// Why there is nothing to know, 0 where there is.
    pub(super) error: i16,
    /// The leader of each partition, by its number; -1 where there is none just now.
    pub(super) leaders: Vec<i32>,
    /// Copies that the partition with the fewest is kept in.
    pub(super) replicas: usize,
    /// What the user may do with it, a bit for each operation; the least number where the broker does not say.
    pub(super) operations: i32,
}

/// The cluster as one broker sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) brokers: Vec<Broker>,
    pub(super) topic: Option<TopicState>,
}

impl Metadata {
    /// Asks for one topic or, without, for the brokers alone. Creates nothing.
    pub(super) fn ask(version: i16, topic: Option<&str>, operations: bool) -> Vec<u8> {
        let mut request = Writer::default();
        match topic {
            Some(topic) => request.i32(1).text(topic),
            None => request.i32(0),
        };
        request.i8(0);
        if version >= 8 {
            request.i8(0).i8(i8::from(operations));
        }
        request.0
    }

    pub(super) fn read(version: i16, mut answer: Reader<'_>) -> Result<Self, Malformed> {
        let mut metadata = Self::default();
        let _throttled = answer.i32()?;
        answer.each(|reader| {
            let (id, host) = (reader.i32()?, reader.text()?.to_owned());
            let port = u16::try_from(reader.i32()?).map_err(|_| Malformed)?;
            let _rack = reader.nullable_text()?;
            metadata.brokers.push(Broker { id, host, port });
            Ok(())
        })?;
        let _cluster = answer.nullable_text()?;
        let _controller = answer.i32()?;
        answer.each(|reader| {
            metadata.topic = Some(read_topic(version, reader)?);
            Ok(())
        })?;
        Ok(metadata)
    }
}

fn read_topic(version: i16, reader: &mut Reader<'_>) -> Result<TopicState, Malformed> {
    let error = reader.i16()?;
    let _name = reader.text()?;
    let _internal = reader.boolean()?;
    let mut partitions = Vec::new();
    let mut replicas = usize::MAX;
    reader.each(|reader| {
        let _error = reader.i16()?;
        let (index, leader) = (reader.i32()?, reader.i32()?);
        if version >= 7 {
            let _leader_epoch = reader.i32()?;
        }
        let mut copies = 0;
        reader.each(|reader| {
            copies += 1;
            reader.i32().map(drop)
        })?;
        replicas = replicas.min(copies);
        reader.skip_numbers()?; // in sync
        if version >= 5 {
            reader.skip_numbers()?; // offline
        }
        partitions.push((index, leader));
        Ok(())
    })?;
    let operations = if version >= 8 {
        reader.i32()?
    } else {
        i32::MIN
    };
    partitions.sort_unstable();
    let numbered = partitions
        .iter()
        .enumerate()
        .all(|(n, (index, _))| i32::try_from(n) == Ok(*index));
    if !numbered {
        return Err(Malformed);
    }
    Ok(TopicState {
        error,
        leaders: partitions.into_iter().map(|(_, leader)| leader).collect(),
        replicas,
        operations,
    })
}

/// What makes a producer known to the brokers, so that they keep repeats of its batches out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProducerId {
    pub(super) id: i64,
    pub(super) epoch: i16,
}

impl ProducerId {
    pub(super) fn ask() -> Vec<u8> {
        // Without transactions the time-out means nothing.
        let mut request = Writer::default();
        request.no_text().i32(60_000);
        request.0
    }

    /// The inner error is the broker's code.
    pub(super) fn read(mut answer: Reader<'_>) -> Result<Result<Self, i16>, Malformed> {
        let _throttled = answer.i32()?;
        let error = answer.i16()?;
        let (id, epoch) = (answer.i64()?, answer.i16()?);
        Ok(match error {
            0 if id >= 0 && epoch >= 0 => Ok(Self { id, epoch }),
            0 => return Err(Malformed),
            error => Err(error),
        })
    }
}

/// A request that appends one batch to one partition, on all replicas that are in sync.
pub(super) fn produce(topic: &str, partition: i32, timeout_ms: i32, records: &[u8]) -> Vec<u8> {
    const ALL: i16 = -1;
    let mut request = Writer(Vec::with_capacity(records.len() + topic.len() + 64));
    request.no_text().i16(ALL).i32(timeout_ms);
    request.i32(1).text(topic).i32(1).i32(partition);
    request.bytes(records);
    request.0
}

/// A broker's answer to a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Produced {
    pub(super) error: i16,
    /// What it says beside the code.
    pub(super) said: Option<String>,
}

impl Produced {
    pub(super) fn read(version: i16, mut answer: Reader<'_>) -> Result<Self, Malformed> {
        let mut produced = None;
        answer.each(|reader| {
            let _topic = reader.text()?;
            reader.each(|reader| {
                produced = Some(read_produced(version, reader)?);
                Ok(())
            })
        })?;
        produced.ok_or(Malformed)
    }
}

fn read_produced(version: i16, reader: &mut Reader<'_>) -> Result<Produced, Malformed> {
    let _partition = reader.i32()?;
    let error = reader.i16()?;
    let (_offset, _appended_at) = (reader.i64()?, reader.i64()?);
    if version >= 5 {
        let _log_start = reader.i64()?;
    }
    let mut said = None;
    if version >= 8 {
        reader.each(|reader| {
            let _which = reader.i32()?;
            let why = reader.nullable_text()?.map(str::to_owned);
            said = said.take().or(why);
            Ok(())
        })?;
        said = reader.nullable_text()?.map(str::to_owned).or(said);
    }
    Ok(Produced { error, said })
}

/// Names a way to sign in; the answer is a code and the ways that the broker knows.
pub(super) fn sasl_handshake(mechanism: &str) -> Vec<u8> {
    let mut request = Writer::default();
    request.text(mechanism);
    request.0
}

pub(super) fn read_sasl_handshake(mut answer: Reader<'_>) -> Result<(i16, Vec<String>), Malformed> {
    let error = answer.i16()?;
    let mut known = Vec::new();
    answer.each(|reader| {
        known.push(reader.text()?.to_owned());
        Ok(())
    })?;
    Ok((error, known))
}

pub(super) fn sasl_authenticate(bytes: &[u8]) -> Vec<u8> {
    let mut request = Writer::default();
    request.bytes(bytes);
    request.0
}

/// The code and what the mechanism says.
pub(super) fn read_sasl_authenticate(mut answer: Reader<'_>) -> Result<(i16, Vec<u8>), Malformed> {
    let error = answer.i16()?;
    // May name the user: not passed on.
    let _said = answer.nullable_text()?;
    Ok((error, answer.bytes()?.to_vec()))
}

#[cfg(any(test, fuzzing))]
pub(super) mod samples;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_newest_version_that_both_sides_speak_is_taken() {
        let versions = Versions(vec![(0, 0, 11), (3, 6, 7), (22, 2, 5), (18, 0, 0)]);
        assert_eq!(versions.of(PRODUCE), Some(8));
        assert_eq!(versions.of(METADATA), Some(7));
        assert_eq!(versions.of(INIT_PRODUCER_ID), None);
        assert_eq!(versions.of(SASL_HANDSHAKE), None);
    }

    #[test]
    fn metadata_is_read_in_every_version() {
        for version in METADATA.oldest..=METADATA.newest {
            let answer = samples::metadata(version);
            let read = Metadata::read(version, Reader(&answer)).unwrap();
            let topic = read.topic.unwrap();
            assert_eq!((topic.leaders, topic.replicas), (vec![7, -1], 2));
            let operations = if version >= 8 { 1 << 4 } else { i32::MIN };
            assert_eq!(topic.operations, operations);
            assert_eq!(read.brokers[0].port, 9092);
        }
    }

    #[test]
    fn an_answer_to_a_batch_is_read_in_every_version() {
        for version in PRODUCE.oldest..=PRODUCE.newest {
            let answer = samples::refused(version);
            let produced = Produced::read(version, Reader(&answer)).unwrap();
            assert_eq!(produced.error, 87);
            let said = (version >= 8).then(|| "no key".to_owned());
            assert_eq!(produced.said, said);
        }
    }

    #[test]
    fn partitions_that_are_not_numbered_through_are_no_answer() {
        let mut answer = Writer::default();
        answer.i32(0).i32(0).no_text().i32(-1).i32(1);
        answer.i16(0).text("t").i8(0).i32(1);
        answer.i16(0).i32(1).i32(0).i32(0).i32(0);
        assert_eq!(Metadata::read(4, Reader(&answer.0)), Err(Malformed));
    }

    proptest! {
        #[test]
        fn whatever_is_answered_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            samples::read_in_every_way(&bytes);
        }
    }
}
