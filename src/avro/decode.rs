//! From a payload's bytes straight to the JSON text that handlers receive (design 4.3).
//!
//! One rule for absence: a field without a value is left out. In an update, left out means unchanged,
//! and a field that the bitmaps name and that has no value is present as null. What a field sent as a
//! diff holds is never passed off as its value: it is moved to `ChangeEventHeader.diffs`.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::datum::{Datum, DecodeReason};
use super::header::HeaderRead;
use super::plan::{Node, NodeId, Plan};
use crate::event::{ChangeEventHeader, Decoded, SmolStr};
use crate::json;

/// Deepest nesting of types in a datum. Real events have three levels.
pub(super) const MAX_DEPTH: usize = 64;

/// Most JSON text that one payload may become, in bytes. The platform's limit for an event is 1 MB.
const MAX_JSON: usize = 64 << 20;

/// Most JSON bytes for each byte of payload, beyond a first megabyte: field names and escapes make text
/// longer than its datum, but only a hostile pair of schema and payload makes it much longer.
const MAX_GROWTH: usize = 16;

/// The largest buffer that is kept for the next event, in bytes.
const MAX_BUFFER: usize = 1 << 20;

thread_local! {
    /// Where the JSON of an event is written, before it is known how long it is.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A payload that is not a datum of its schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError {
    /// Name of the schema's record.
    pub record: Arc<str>,
    /// The field at which decoding stopped, where it was within one.
    pub field: Option<String>,
    /// Bytes read so far.
    pub offset: usize,
    /// What is wrong.
    pub reason: DecodeReason,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            record,
            field,
            offset,
            reason,
        } = self;
        write!(
            f,
            "the payload is not a {record} of its schema: at byte {offset}"
        )?;
        if let Some(field) = field {
            write!(f, ", field {field}")?;
        }
        write!(f, ": {reason}")
    }
}

impl std::error::Error for DecodeError {}

/// A payload that does not decode, and what could be read of it all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeFailure {
    /// What is wrong.
    pub error: DecodeError,
    /// The change header, where it decoded: it says whose order a parked event holds (rule 9).
    pub header: Option<ChangeEventHeader>,
}

/// Decodes one event.
#[expect(clippy::result_large_err, reason = "what decodes is as large")]
pub(super) fn decode(
    plan: &Plan,
    record_name: &Arc<str>,
    payload: &[u8],
) -> Result<Decoded, DecodeFailure> {
    let mut decoder = Decoder::with_buffer(plan, payload, BUFFER.take());
    let mut header = None;
    let read = decoder.event(&mut header);
    let out = std::mem::take(&mut decoder.out);
    // Exactly as long as it is, for it is kept for as long as the event is in flight.
    let read = read.map(|ignored_bits| (ignored_bits, Bytes::copy_from_slice(&out)));
    keep(out);
    match read {
        Ok((ignored_bits, data)) => Ok(Decoded {
            record_name: Arc::clone(record_name),
            header: header.map(Box::new),
            data,
            ignored_bits,
        }),
        Err(reason) => Err(DecodeFailure {
            error: DecodeError {
                record: Arc::clone(record_name),
                field: decoder.at.map(|number| plan.field(number).name.to_string()),
                offset: payload.len() - decoder.datum.len(),
                reason,
            },
            header,
        }),
    }
}

/// The value of one of the event's own fields as text; `None` where it has none or does not decode.
pub(super) fn key_text(plan: &Plan, payload: &[u8], field: &str) -> Option<SmolStr> {
    let wanted = plan.root().find(|n| *plan.field(*n).name == *field)?;
    let mut decoder = Decoder::with_buffer(plan, payload, BUFFER.take());
    let text = decoder.text_of(plan.root().start..wanted, wanted);
    keep(decoder.out);
    text
}

/// Keeps a buffer for the next event.
fn keep(buffer: Vec<u8>) {
    if buffer.capacity() <= MAX_BUFFER {
        BUFFER.set(buffer);
    }
}

/// Reads a datum and writes its JSON, in one pass.
pub(super) struct Decoder<'s, 'd> {
    pub(super) plan: &'s Plan,
    pub(super) datum: Datum<'d>,
    pub(super) out: Vec<u8>,
    /// How many more values may be read. Most take at least one byte; those that take none, and types
    /// nested without end, are bounded by this.
    visits: usize,
    /// How much JSON this payload may become, in bytes.
    max_json: usize,
    /// The field last begun, for errors.
    pub(super) at: Option<usize>,
}

impl<'s, 'd> Decoder<'s, 'd> {
    pub(super) fn new(plan: &'s Plan, payload: &'d [u8]) -> Self {
        Self::with_buffer(plan, payload, Vec::new())
    }

    /// One that writes into this buffer, whatever is in it.
    fn with_buffer(plan: &'s Plan, payload: &'d [u8], mut out: Vec<u8>) -> Self {
        out.clear();
        out.reserve(2 * payload.len() + 256);
        Self {
            plan,
            datum: Datum::new(payload),
            out,
            visits: 8 * payload.len() + 4096,
            max_json: (MAX_GROWTH * payload.len() + (1 << 20)).min(MAX_JSON),
            at: None,
        }
    }

    /// The value of a field as text, after those before it.
    fn text_of(&mut self, before: Range<usize>, wanted: usize) -> Option<SmolStr> {
        for number in before {
            self.node(self.plan.field(number).node, 1).ok()?;
            self.out.clear();
        }
        if !self.node(self.plan.field(wanted).node, 1).ok()? {
            return None;
        }
        if self.out.first() == Some(&b'"') {
            let text: Cow<'_, str> = serde_json::from_slice(&self.out).ok()?;
            return Some(text.into());
        }
        std::str::from_utf8(&self.out).ok().map(SmolStr::from)
    }

    /// The whole event. Puts the header where the caller can see it as soon as it is read, so that it
    /// survives a failure further on. Returns the number of ignored bitmap bits.
    fn event(&mut self, header: &mut Option<ChangeEventHeader>) -> Result<u32, DecodeReason> {
        let fields = self.plan.root();
        let ignored_bits = match self.plan.header() {
            Some(of_header) => {
                let read = HeaderRead::new(self, of_header)?;
                *header = Some(read.header);
                let changes = read.changes?;
                self.change(fields, &changes)?;
                changes.ignored
            }
            None => {
                self.record(fields, 0)?;
                0
            }
        };
        match self.datum.len() {
            0 => Ok(ignored_bits),
            left => {
                self.at = None;
                Err(DecodeReason::LeftOver(left))
            }
        }
    }

    /// Writes the value, and says whether it was one: null and a record in which nothing has a value
    /// are none.
    pub(super) fn node(&mut self, id: NodeId, depth: usize) -> Result<bool, DecodeReason> {
        self.count_visit()?;
        let plan = self.plan;
        match plan.node(id) {
            Node::Null => {
                self.out.extend_from_slice(b"null");
                return Ok(false);
            }
            Node::Boolean => {
                let text: &[u8] = match self.datum.array()? {
                    [0] => b"false",
                    [1] => b"true",
                    _ => return Err(DecodeReason::NotABoolean),
                };
                self.out.extend_from_slice(text);
            }
            Node::Int => json::put_integer(&mut self.out, self.datum.int()?.into()),
            Node::Long => json::put_integer(&mut self.out, self.datum.long()?),
            Node::Float => {
                json::put_float(&mut self.out, f32::from_le_bytes(self.datum.array()?));
            }
            Node::Double => {
                json::put_double(&mut self.out, f64::from_le_bytes(self.datum.array()?));
            }
            Node::String => json::put_string(&mut self.out, self.datum.text()?),
            Node::Bytes => json::put_hex(&mut self.out, self.datum.bytes()?),
            Node::Fixed(size) => json::put_hex(&mut self.out, self.datum.take(*size)?),
            Node::Enum(symbols) => {
                let symbol = self.symbol(symbols)?;
                json::put_string(&mut self.out, symbol);
            }
            Node::Array(items) => self.array(*items, deeper(depth)?)?,
            Node::Map(values) => self.map(*values, deeper(depth)?)?,
            Node::Record(fields) => return self.record(fields.clone(), deeper(depth)?),
            Node::Union(branches) => {
                let branch = self.branch(branches)?;
                return self.node(branch, deeper(depth)?);
            }
        }
        Ok(true)
    }

    /// Charges one value against the bound on time and memory.
    pub(super) fn count_visit(&mut self) -> Result<(), DecodeReason> {
        match self.visits.checked_sub(1) {
            Some(left) if self.out.len() <= self.max_json => {
                self.visits = left;
                Ok(())
            }
            _ => Err(DecodeReason::TooLarge),
        }
    }

    pub(super) fn symbol(&mut self, symbols: &'s [Box<str>]) -> Result<&'s str, DecodeReason> {
        let index = self.datum.index()?;
        let symbol = index.and_then(|index| symbols.get(index));
        symbol
            .map(|symbol| &**symbol)
            .ok_or(DecodeReason::NoSuchSymbol {
                symbols: symbols.len(),
            })
    }

    pub(super) fn branch(&mut self, branches: &[NodeId]) -> Result<NodeId, DecodeReason> {
        let index = self.datum.index()?;
        let branch = index.and_then(|index| branches.get(index));
        branch.copied().ok_or(DecodeReason::NoSuchBranch {
            branches: branches.len(),
        })
    }

    fn array(&mut self, items: NodeId, depth: usize) -> Result<(), DecodeReason> {
        let start = self.out.len();
        loop {
            let count = self.datum.block()?;
            for _ in 0..count {
                self.out.push(b',');
                self.node(items, depth)?;
            }
            if count == 0 {
                json::close(&mut self.out, start, *b"[]");
                return Ok(());
            }
        }
    }

    fn map(&mut self, values: NodeId, depth: usize) -> Result<(), DecodeReason> {
        let start = self.out.len();
        loop {
            let count = self.datum.block()?;
            for _ in 0..count {
                self.out.push(b',');
                json::put_string(&mut self.out, self.datum.text()?);
                self.out.push(b':');
                self.node(values, depth)?;
            }
            if count == 0 {
                json::close(&mut self.out, start, *b"{}");
                return Ok(());
            }
        }
    }

    /// A record without bitmaps: what has no value is left out.
    fn record(&mut self, fields: Range<usize>, depth: usize) -> Result<bool, DecodeReason> {
        let start = self.out.len();
        let mut number = fields.start;
        while number < fields.end {
            number += self.absent(number);
            if number < fields.end {
                self.field(number, depth)?;
                number += 1;
            }
        }
        Ok(json::close(&mut self.out, start, *b"{}"))
    }

    /// Steps over absent fields from this one on, and says how many there were.
    pub(super) fn absent(&mut self, number: usize) -> usize {
        let run_end = self.plan.field(number).run_end;
        self.datum.take_zeros(run_end - number)
    }

    /// `,"name":value`, or nothing where the field turns out to have no value; says which.
    pub(super) fn field(&mut self, number: usize, depth: usize) -> Result<bool, DecodeReason> {
        let field = self.plan.field(number);
        let start = self.out.len();
        self.key(number);
        let present = match field.some {
            // Branch 1 of `["null", T]`.
            Some(some) if self.datum.take_if(2) => self.node(some, depth)?,
            _ => self.node(field.node, depth)?,
        };
        if !present {
            self.out.truncate(start);
        }
        Ok(present)
    }

    /// `,"name":`
    pub(super) fn key(&mut self, number: usize) {
        self.at = Some(number);
        self.out.push(b',');
        let key = &self.plan.field(number).key;
        self.out.extend_from_slice(key.as_bytes());
    }

    /// `,"name":null`
    pub(super) fn null(&mut self, number: usize) {
        self.key(number);
        self.out.extend_from_slice(b"null");
    }
}

fn deeper(depth: usize) -> Result<usize, DecodeReason> {
    if depth < MAX_DEPTH {
        Ok(depth + 1)
    } else {
        Err(DecodeReason::TooDeep(MAX_DEPTH))
    }
}
