//! The bitmaps of change events: which fields changed, were set to null, or came as a diff.
//!
//! An element is `0x<HEX>` (fields of the record) or `<n>-0x<HEX>` (components of the compound field at
//! position n). Bit i, from the least significant, is position i; position 0 of the record is the
//! header itself (facts 7.5). Nothing else is promised: not the width, not the case of the digits, not
//! that their number is even, not that an element for the record itself is there at all.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use crate::event::{Bits, FieldNames, places};
use crate::json;

/// A bitmap element that is neither `0x<HEX>` nor `<n>-0x<HEX>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "element {element} of a field bitmap is neither 0x<hex digits> nor <position>-0x<hex digits>"
)]
pub struct BitmapError {
    /// Which element of the array, from 0.
    pub element: usize,
}

/// One field, or one component of a compound field, as a number: first the record's fields by
/// position, then the components of the first compound field, of the second, and so on.
pub(super) type Slot = usize;

/// The fields of a record and the components of its compound fields, by slot.
#[derive(Debug)]
pub(super) struct Slots {
    names: Arc<[Box<str>]>,
    /// `,"name"`, escaped.
    items: Box<[Box<[u8]>]>,
    by_name: HashMap<Box<str>, Slot>,
    /// For each field of the record the slots of its components; empty where it has none.
    components: Vec<Range<Slot>>,
}

impl Slots {
    /// From the record's fields in order, each with the names of its components.
    pub(super) fn new<'a>(fields: impl IntoIterator<Item = (&'a str, Vec<&'a str>)>) -> Self {
        let fields: Vec<_> = fields.into_iter().collect();
        let mut names: Vec<Box<str>> = fields.iter().map(|(name, _)| (*name).into()).collect();
        let mut components = Vec::with_capacity(fields.len());
        for (parent, children) in &fields {
            let start = names.len();
            names.extend(
                children
                    .iter()
                    .map(|child| format!("{parent}.{child}").into()),
            );
            components.push(start..names.len());
        }
        let by_name = names.iter().cloned().zip(0..).collect();
        let item = |name: &str| {
            let mut item = vec![b','];
            json::put_string(&mut item, name);
            item.into()
        };
        Self {
            items: names.iter().map(|name| item(name)).collect(),
            names: names.into(),
            by_name,
            components,
        }
    }

    /// Slots of the components of the field at this position.
    pub(super) fn components(&self, position: usize) -> Range<Slot> {
        self.components.get(position).cloned().unwrap_or(0..0)
    }

    /// Position of the field that a slot is, or is a component of.
    pub(super) fn position(&self, slot: Slot) -> usize {
        if slot < self.fields() {
            return slot;
        }
        // Component ranges rise, and an empty one starts where the next one does.
        self.components.partition_point(|range| range.end <= slot)
    }

    /// `Phone` or `BillingAddress.Street`.
    pub(super) fn name(&self, slot: Slot) -> &str {
        self.names.get(slot).map_or("", |name| name)
    }

    /// The slot of `Phone` or `BillingAddress.Street`.
    pub(super) fn find(&self, name: &str) -> Option<Slot> {
        self.by_name.get(name).copied()
    }

    /// How many fields the record has.
    fn fields(&self) -> usize {
        self.components.len()
    }

    /// Reads one bitmap array. Bits that name nothing in this schema are ignored and counted.
    pub(super) fn read<'a>(
        &self,
        elements: impl IntoIterator<Item = &'a str>,
    ) -> Result<FieldSet, BitmapError> {
        let mut set = FieldSet::default();
        for (element, text) in elements.into_iter().enumerate() {
            let (range, digits) = self.element(text).ok_or(BitmapError { element })?;
            for (word, bits) in (0..).step_by(64).zip(words(digits)) {
                for bit in places(&[bits]) {
                    let slot = range.start.saturating_add(word + bit);
                    match slot < range.end {
                        true => set.insert(slot),
                        false => set.ignored = set.ignored.saturating_add(1),
                    }
                }
            }
        }
        Ok(set)
    }

    /// The slots that an element's bits stand for, and its digits; `None` if it is not well formed.
    fn element<'t>(&self, text: &'t str) -> Option<(Range<Slot>, &'t [u8])> {
        let (parent, hex) = match text.split_once('-') {
            Some((parent, hex)) => (Some(parent), hex),
            None => (None, text),
        };
        let digits = hex.strip_prefix("0x").or_else(|| hex.strip_prefix("0X"))?;
        let digits = digits.as_bytes();
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let range = match parent {
            None => 0..self.fields(),
            Some(parent) if parent.is_empty() || !parent.bytes().all(|b| b.is_ascii_digit()) => {
                return None;
            }
            // A position too large for a number names nothing, as any other beyond the schema.
            Some(parent) => parent.parse().map_or(0..0, |at| self.components(at)),
        };
        Some((range, digits))
    }

    /// The names of a set's fields: those of the record in schema order, then the components.
    pub(super) fn names(&self, set: &FieldSet) -> FieldNames {
        FieldNames::of(&self.names, &set.words)
    }

    /// Appends the names of a set's fields as items of a JSON array, each after a comma.
    pub(super) fn put_names(&self, out: &mut Vec<u8>, set: &FieldSet) {
        for item in set.iter().filter_map(|slot| self.items.get(slot)) {
            out.extend_from_slice(item);
        }
    }

    /// A set as the platform writes it: upper case, the fewest whole bytes, the record's own fields
    /// first, then one element for each compound field.
    pub(super) fn write(&self, set: &FieldSet) -> Vec<String> {
        let mut elements = Vec::new();
        if let Some(hex) = hex(set, 0..self.fields()) {
            elements.push(hex);
        }
        for (position, range) in self.components.iter().enumerate() {
            if let Some(hex) = hex(set, range.clone()) {
                elements.push(format!("{position}-{hex}"));
            }
        }
        elements
    }
}

/// A number of any length in hexadecimal digits, 64 bits at a time from the least significant.
fn words(digits: &[u8]) -> impl Iterator<Item = u64> {
    let value = |digit: &u8| match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20).wrapping_sub(b'a' - 10),
    };
    let word = move |digits: &[u8]| {
        let values = digits.iter().map(value);
        values.fold(0, |word, value| word << 4 | u64::from(value))
    };
    digits.rchunks(16).map(word)
}

/// The bits of a range of slots as `0x…`; `None` where no bit is set.
fn hex(set: &FieldSet, range: Range<Slot>) -> Option<String> {
    let highest = range.clone().rev().find(|slot| set.contains(*slot))?;
    let bytes = (highest - range.start) / 8 + 1;
    let mut text = String::from("0x");
    for byte in (0..bytes).rev() {
        let value = (0..8).fold(0_u8, |value, bit| {
            let slot = range.start + 8 * byte + bit;
            value | u8::from(slot < range.end && set.contains(slot)) << bit
        });
        // Writing to a String cannot fail.
        let _ = write!(text, "{value:02X}");
    }
    Some(text)
}

/// A set of slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FieldSet {
    words: Bits,
    /// Bits that named nothing in the schema.
    pub(super) ignored: u32,
}

impl FieldSet {
    pub(super) const fn new() -> Self {
        Self {
            words: Bits::new_const(),
            ignored: 0,
        }
    }

    pub(super) fn insert(&mut self, slot: Slot) {
        let word = slot / 64;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (slot % 64);
    }

    pub(super) fn contains(&self, slot: Slot) -> bool {
        self.words
            .get(slot / 64)
            .is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    /// Those of a range, in rising order.
    pub(super) fn within(&self, range: Range<Slot>) -> impl Iterator<Item = Slot> + '_ {
        // Nothing lies beyond the words.
        let end = range.end.min(64 * self.words.len());
        (range.start..end).filter(|slot| self.contains(*slot))
    }

    /// In rising order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        places(&self.words)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 100 fields; field 5 has ten components, field 70 has two.
    fn slots() -> Slots {
        let names: Vec<String> = (0..100).map(|i| format!("F{i}")).collect();
        Slots::new(names.iter().map(|name| {
            let children = match name.as_str() {
                "F5" => vec!["A", "B", "C", "D", "E", "F", "G", "H", "I", "J"],
                "F70" => vec!["X", "Y"],
                _ => vec![],
            };
            (name.as_str(), children)
        }))
    }

    fn names(elements: &[&str]) -> FieldNames {
        let slots = slots();
        slots.names(&slots.read(elements.iter().copied()).unwrap())
    }

    #[test]
    fn bits_are_positions_from_the_least_significant() {
        assert_eq!(names(&["0x800002"]), ["F1", "F23"]);
        assert_eq!(names(&["0x0800000000000001000000"]), ["F24", "F83"]);
        assert_eq!(names(&[]), [""; 0]);
    }

    #[test]
    fn nested_elements_name_components_and_need_no_element_of_the_record() {
        assert_eq!(names(&["5-0x0201"]), ["F5.A", "F5.J"]);
        assert_eq!(names(&["0x02", "70-0x03"]), ["F1", "F70.X", "F70.Y"]);
    }

    #[test]
    fn lower_case_odd_and_excess_digits_are_read() {
        assert_eq!(names(&["0xc"]), ["F2", "F3"]);
        assert_eq!(
            names(&["0X00000000000000000000000000000000C"]),
            ["F2", "F3"]
        );
        assert_eq!(names(&["5-0x3"]), ["F5.A", "F5.B"]);
    }

    #[test]
    fn bits_beyond_the_schema_are_ignored_and_counted() {
        let slots = slots();
        let beyond = format!("0x3{}", "0".repeat(25));
        let read = |elements: &[&str]| slots.read(elements.iter().copied()).unwrap();
        assert_eq!(read(&[&beyond]).ignored, 2);
        assert_eq!(read(&[&beyond]).iter().next(), None);
        assert_eq!(read(&["70-0x07"]).ignored, 1);
        assert_eq!(read(&["6-0x03"]).ignored, 2, "field 6 has no components");
        assert_eq!(read(&["99999999999999999999999-0x01"]).ignored, 1);
    }

    #[test]
    fn what_is_no_bitmap_is_an_error_that_says_which_element() {
        for bad in [
            "", "0x", "12", "-0x01", "a-0x01", "1-", "0xG1", "1-2-0x01", "0x+1", "+1-0x01",
        ] {
            let error = slots().read(["0x02", bad]).unwrap_err();
            assert_eq!(error.element, 1, "{bad}");
        }
    }

    #[test]
    fn sets_are_written_as_the_platform_writes_them() {
        let slots = slots();
        let set = |names: &[&str]| {
            let mut set = FieldSet::default();
            names
                .iter()
                .for_each(|name| set.insert(slots.find(name).unwrap()));
            slots.write(&set)
        };
        assert_eq!(set(&["F23", "F1"]), ["0x800002"]);
        assert_eq!(set(&["F83", "F24"]), ["0x0800000000000001000000"]);
        assert_eq!(set(&["F5.A", "F5.J", "F70.X"]), ["5-0x0201", "70-0x01"]);
        assert_eq!(set(&[]), [""; 0]);
    }

    proptest! {
        #[test]
        fn writing_then_reading_gives_the_same_set(wanted in proptest::collection::btree_set(0..112_usize, 0..40)) {
            let slots = slots();
            let mut set = FieldSet::default();
            wanted.iter().for_each(|slot| set.insert(*slot));
            let written = slots.write(&set);
            let read = slots.read(written.iter().map(String::as_str)).unwrap();
            prop_assert_eq!(read.iter().collect::<Vec<_>>(), wanted.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(read.ignored, 0);
        }

        #[test]
        fn no_text_makes_it_panic(text in ".*", hex in "[0-9]{0,3}-?0x[0-9a-fA-F]{0,40}") {
            let _ = slots().read([text.as_str(), hex.as_str()]);
            let _ = slots().read([hex.as_str()]);
        }
    }
}
