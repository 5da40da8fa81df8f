//! `ChangeEventHeader`: the first field of every change event.
//!
//! Read by the schema's own field order and names, since both have changed over the years: 11 fields
//! until 2019, 12 since; `ChangeType` has 9 symbols or 10 (facts 7.2). A field that is not known is kept
//! in the JSON, one that is missing is empty in the typed header.

use std::ops::Range;
use std::sync::LazyLock;

use smallvec::SmallVec;

use super::bitmap::{BitmapError, FieldSet};
use super::change::Changes;
use super::datum::DecodeReason;
use super::decode::Decoder;
use super::plan::{Node, NodeId, Plan};
use super::schema::Schema;
use crate::event::{ChangeEventHeader, ChangeType, FieldNames, RecordIds, SmolStr};
use crate::json;

/// Most items in one of the header's lists. An event of the platform's largest size, 1 MB, has room for
/// half as many record IDs; a list of the shortest items would take 50 times the payload's memory.
const MAX_ITEMS: usize = 1 << 17;

/// A header as read.
pub(super) struct HeaderRead {
    /// Bitmaps are field names; one that is not well formed is left as it came.
    pub(super) header: ChangeEventHeader,
    /// What the bitmaps say about the body, unless one is not well formed.
    pub(super) changes: Result<Changes, DecodeReason>,
}

impl HeaderRead {
    /// Reads the header and writes its JSON as the first entry of the event's object.
    pub(super) fn new(
        decoder: &mut Decoder<'_, '_>,
        fields: Range<usize>,
    ) -> Result<Self, DecodeReason> {
        decoder.key(decoder.plan.root().start);
        if let Some(comma) = decoder.out.first_mut() {
            *comma = b'{';
        }
        let start = decoder.out.len();
        let mut header = empty();
        let mut bitmaps = [const { Ok(FieldSet::new()) }; 3];
        for number in fields {
            read_field(decoder, number, &mut header, &mut bitmaps)?;
        }
        json::close(&mut decoder.out, start, *b"{}");
        let is_update = header.change_type == ChangeType::Update;
        let [nulled, diffs, changed] = bitmaps;
        let changes = nulled
            .and_then(|nulled| Ok([nulled, diffs?, changed?]))
            .map(|sets| Changes::new(decoder.plan, is_update, sets))
            .map_err(DecodeReason::from);
        Ok(Self { header, changes })
    }
}

fn empty() -> ChangeEventHeader {
    ChangeEventHeader {
        entity_name: SmolStr::default(),
        record_ids: RecordIds::new(),
        change_type: ChangeType::Other("".into()),
        change_origin: SmolStr::default(),
        transaction_key: SmolStr::default(),
        sequence_number: 0,
        commit_timestamp: 0,
        commit_number: 0,
        commit_user: SmolStr::default(),
        nulled_fields: FieldNames::default(),
        diff_fields: FieldNames::default(),
        changed_fields: FieldNames::default(),
    }
}

type Bitmaps = [Result<FieldSet, BitmapError>; 3];

/// What a field of the header is, by its name and type. Found once for a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    EntityName,
    ChangeOrigin,
    TransactionKey,
    CommitUser,
    ChangeType,
    SequenceNumber,
    CommitTimestamp,
    CommitNumber,
    RecordIds,
    NulledFields,
    DiffFields,
    ChangedFields,
    /// Only its JSON is kept.
    Other,
}

impl Role {
    pub(super) fn of(plan: &Plan, number: usize) -> Self {
        let field = plan.field(number);
        let is_texts = |items: &NodeId| matches!(plan.node(*items), Node::String);
        match (&*field.name, plan.node(field.node)) {
            ("entityName", Node::String) => Self::EntityName,
            ("changeOrigin", Node::String) => Self::ChangeOrigin,
            ("transactionKey", Node::String) => Self::TransactionKey,
            ("commitUser", Node::String) => Self::CommitUser,
            ("changeType", Node::String | Node::Enum(_)) => Self::ChangeType,
            ("sequenceNumber", Node::Int) => Self::SequenceNumber,
            ("commitTimestamp", Node::Long) => Self::CommitTimestamp,
            ("commitNumber", Node::Long) => Self::CommitNumber,
            ("recordIds", Node::Array(items)) if is_texts(items) => Self::RecordIds,
            ("nulledFields", Node::Array(items)) if is_texts(items) => Self::NulledFields,
            ("diffFields", Node::Array(items)) if is_texts(items) => Self::DiffFields,
            ("changedFields", Node::Array(items)) if is_texts(items) => Self::ChangedFields,
            _ => Self::Other,
        }
    }
}

fn read_field(
    decoder: &mut Decoder<'_, '_>,
    number: usize,
    header: &mut ChangeEventHeader,
    [nulled, diffs, changed]: &mut Bitmaps,
) -> Result<(), DecodeReason> {
    match decoder.plan.role(number) {
        Role::EntityName => header.entity_name = text(decoder, number)?,
        Role::ChangeOrigin => header.change_origin = text(decoder, number)?,
        Role::TransactionKey => header.transaction_key = text(decoder, number)?,
        Role::CommitUser => header.commit_user = text(decoder, number)?,
        Role::ChangeType => header.change_type = change_type(decoder, number)?,
        Role::SequenceNumber => {
            decoder.key(number);
            header.sequence_number = decoder.datum.int()?;
            json::put_integer(&mut decoder.out, header.sequence_number.into());
        }
        Role::CommitTimestamp => header.commit_timestamp = long(decoder, number)?,
        Role::CommitNumber => header.commit_number = long(decoder, number)?,
        Role::RecordIds => {
            let ids = texts(decoder, number)?;
            put_texts(decoder, ids.iter().copied());
            header.record_ids = ids.into_iter().map(SmolStr::from).collect();
        }
        Role::NulledFields => (header.nulled_fields, *nulled) = bitmap(decoder, number)?,
        Role::DiffFields => (header.diff_fields, *diffs) = bitmap(decoder, number)?,
        Role::ChangedFields => (header.changed_fields, *changed) = bitmap(decoder, number)?,
        Role::Other => _ = decoder.field(number, 2)?,
    }
    Ok(())
}

fn change_type(decoder: &mut Decoder<'_, '_>, number: usize) -> Result<ChangeType, DecodeReason> {
    decoder.key(number);
    let plan = decoder.plan;
    let symbol = match plan.node(plan.field(number).node) {
        Node::Enum(symbols) => decoder.symbol(symbols)?,
        _ => decoder.datum.text()?,
    };
    json::put_string(&mut decoder.out, symbol);
    Ok(ChangeType::from_symbol(symbol))
}

fn text(decoder: &mut Decoder<'_, '_>, number: usize) -> Result<SmolStr, DecodeReason> {
    decoder.key(number);
    let text = decoder.datum.text()?;
    json::put_string(&mut decoder.out, text);
    Ok(text.into())
}

fn long(decoder: &mut Decoder<'_, '_>, number: usize) -> Result<i64, DecodeReason> {
    decoder.key(number);
    let value = decoder.datum.long()?;
    json::put_integer(&mut decoder.out, value);
    Ok(value)
}

/// Few, most often.
type Texts<'d> = SmallVec<[&'d str; 4]>;

/// Reads an array of text, of which only the key is written yet.
fn texts<'d>(decoder: &mut Decoder<'_, 'd>, number: usize) -> Result<Texts<'d>, DecodeReason> {
    decoder.key(number);
    let mut texts = Texts::new();
    loop {
        let count = decoder.datum.block()?;
        for _ in 0..count {
            decoder.count_visit()?;
            if texts.len() == MAX_ITEMS {
                return Err(DecodeReason::TooLarge);
            }
            texts.push(decoder.datum.text()?);
        }
        if count == 0 {
            return Ok(texts);
        }
    }
}

fn put_texts<'t>(decoder: &mut Decoder<'_, '_>, texts: impl Iterator<Item = &'t str>) {
    let start = decoder.out.len();
    for text in texts {
        decoder.out.push(b',');
        json::put_string(&mut decoder.out, text);
    }
    json::close(&mut decoder.out, start, *b"[]");
}

/// A bitmap array as field names; as it came where it is not well formed.
fn bitmap(
    decoder: &mut Decoder<'_, '_>,
    number: usize,
) -> Result<(FieldNames, Result<FieldSet, BitmapError>), DecodeReason> {
    let elements = texts(decoder, number)?;
    let set = decoder.plan.slots.read(elements.iter().copied());
    let names = match &set {
        Ok(set) => {
            let start = decoder.out.len();
            decoder.plan.slots.put_names(&mut decoder.out, set);
            json::close(&mut decoder.out, start, *b"[]");
            decoder.plan.slots.names(set)
        }
        Err(_) => {
            put_texts(decoder, elements.iter().copied());
            elements.into_iter().collect()
        }
    };
    Ok((names, set))
}

/// The header of an event whose schema is not to be had, by trying the two layouts that are known.
/// Bitmaps stay as they came, for without the schema nobody knows what they name.
///
/// Strict, since a payload is not labelled: what only looks like a header is `None`.
pub fn peek_header(payload: &[u8]) -> Option<ChangeEventHeader> {
    LAYOUTS
        .iter()
        .filter_map(|layout| read_layout(layout, payload))
        .find(is_plausible)
}

/// Schemas of events that have a header and nothing else: with `changedFields`, and without it, as in 2019.
static LAYOUTS: LazyLock<Vec<Schema>> = LazyLock::new(|| {
    let layouts = [
        r#",{"name":"changedFields","type":{"type":"array","items":"string"}}"#,
        "",
    ];
    let schemas = layouts.iter().map(|changed_fields| {
        Schema::parse(&format!(
            r#"{{"type":"record","name":"ChangeEvent","fields":[
            {{"name":"ChangeEventHeader","type":{{"type":"record","name":"ChangeEventHeader","fields":[
                {{"name":"entityName","type":"string"}},
                {{"name":"recordIds","type":{{"type":"array","items":"string"}}}},
                {{"name":"changeType","type":{{"type":"enum","name":"ChangeType","symbols":[
                    "CREATE","UPDATE","DELETE","UNDELETE","GAP_CREATE","GAP_UPDATE","GAP_DELETE",
                    "GAP_UNDELETE","GAP_OVERFLOW","SNAPSHOT"]}}}},
                {{"name":"changeOrigin","type":"string"}},
                {{"name":"transactionKey","type":"string"}},
                {{"name":"sequenceNumber","type":"int"}},
                {{"name":"commitTimestamp","type":"long"}},
                {{"name":"commitNumber","type":"long"}},
                {{"name":"commitUser","type":"string"}},
                {{"name":"nulledFields","type":{{"type":"array","items":"string"}}}},
                {{"name":"diffFields","type":{{"type":"array","items":"string"}}}}
                {changed_fields}]}}}}]}}"#
        ))
    });
    schemas.filter_map(Result::ok).collect()
});

fn read_layout(layout: &Schema, payload: &[u8]) -> Option<ChangeEventHeader> {
    let plan = layout.plan();
    let mut decoder = Decoder::new(plan, payload);
    let mut header = empty();
    let mut bitmaps = [const { Ok(FieldSet::new()) }; 3];
    for number in plan.header()? {
        match plan.role(number) {
            Role::NulledFields => header.nulled_fields = raw_bitmap(&mut decoder, number)?,
            Role::DiffFields => header.diff_fields = raw_bitmap(&mut decoder, number)?,
            Role::ChangedFields => header.changed_fields = raw_bitmap(&mut decoder, number)?,
            _ => read_field(&mut decoder, number, &mut header, &mut bitmaps).ok()?,
        }
    }
    Some(header)
}

fn raw_bitmap(decoder: &mut Decoder<'_, '_>, number: usize) -> Option<FieldNames> {
    let elements = texts(decoder, number).ok()?;
    // Any schema will do to see whether they are well formed.
    decoder.plan.slots.read(elements.iter().copied()).ok()?;
    Some(elements.into_iter().collect())
}

fn is_plausible(header: &ChangeEventHeader) -> bool {
    let is_name = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    let is_id = |text: &str| {
        matches!(text.len(), 15 | 18) && text.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    // A wildcard is a key prefix and a star (facts 7.6).
    let is_record_id = |text: &SmolStr| is_id(text) || (text.len() == 4 && text.ends_with('*'));
    is_name(&header.entity_name)
        && !header.record_ids.is_empty()
        && header.record_ids.iter().all(is_record_id)
        && header.sequence_number >= 0
        && header.commit_timestamp > 0
        && header.commit_number >= 0
        && (header.commit_user.is_empty() || is_id(&header.commit_user))
}
