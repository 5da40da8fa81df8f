//! The body of a change event, in the light of its header's bitmaps.

use std::ops::Range;

use super::bitmap::{FieldSet, Slot};
use super::datum::DecodeReason;
use super::decode::Decoder;
use super::plan::{Node, Plan};
use crate::json;

/// What the header's bitmaps say about the body.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Fields and components that are null, and not merely absent, where they have no value.
    shown: FieldSet,
    /// Positions of the fields that are shown, themselves or by a component.
    touched: FieldSet,
    /// Fields and components sent as a diff.
    diffs: FieldSet,
    /// Bits that name nothing in the schema.
    pub(super) ignored: u32,
}

impl Changes {
    /// From the three bitmaps. Only in an update does a field without a value say anything.
    pub(super) fn new(
        plan: &Plan,
        is_update: bool,
        [nulled, diffs, changed]: [FieldSet; 3],
    ) -> Self {
        let ignored = [&nulled, &diffs, &changed].map(|set| set.ignored);
        let mut changes = Self {
            ignored: ignored.into_iter().fold(0, u32::saturating_add),
            diffs,
            ..Self::default()
        };
        if is_update {
            for slot in nulled.iter().chain(changed.iter()) {
                let position = plan.slots.position(slot);
                let components = plan.slots.components(slot);
                // A field whose component came as a diff has a value, though nothing of it may be
                // left to show.
                let is_diff = changes.diffs.contains(slot)
                    || changes.diffs.contains(position)
                    || changes.diffs.within(components).next().is_some();
                if !is_diff {
                    changes.shown.insert(slot);
                    changes.touched.insert(position);
                }
            }
        }
        changes
    }
}

/// The body of a change event.
impl Decoder<'_, '_> {
    /// All fields after the header, whose JSON text is written already.
    pub(super) fn change(
        &mut self,
        fields: Range<usize>,
        changes: &Changes,
    ) -> Result<(), DecodeReason> {
        // The header ends with its closing brace; diffs, which come later, belong before it.
        let end_of_header = self.out.len() - 1;
        let mut diffs = Vec::new();
        let first = fields.start;
        let mut number = first + 1;
        while number < fields.end {
            let absent = self.absent(number);
            for touched in changes
                .touched
                .within(number - first..number - first + absent)
            {
                self.null_field(first + touched, touched, changes);
            }
            number += absent;
            if number < fields.end {
                self.change_field(number, number - first, changes, &mut diffs)?;
                number += 1;
            }
        }
        self.out.push(b'}');
        if !diffs.is_empty() {
            json::close(&mut diffs, 0, *b"{}");
            diffs.splice(0..0, br#","diffs":"#.iter().copied());
            self.out.splice(end_of_header..end_of_header, diffs);
        }
        Ok(())
    }

    /// A field at a position of the record: its value, its diff, null or nothing.
    fn change_field(
        &mut self,
        number: usize,
        position: usize,
        changes: &Changes,
        diffs: &mut Vec<u8>,
    ) -> Result<(), DecodeReason> {
        let start = self.out.len();
        let components = self.plan.slots.components(position);
        let present = if components.is_empty() {
            self.field(number, 1)?
        } else {
            self.compound_field(number, components.start, changes, diffs)?
        };
        if changes.diffs.contains(position) {
            diffs.extend(self.out.drain(start..));
        } else if !present {
            self.null_field(number, position, changes);
        }
        Ok(())
    }

    /// A field that may hold a record whose components have bits of their own.
    fn compound_field(
        &mut self,
        number: usize,
        first_slot: Slot,
        changes: &Changes,
        diffs: &mut Vec<u8>,
    ) -> Result<bool, DecodeReason> {
        let plan = self.plan;
        let field = plan.field(number);
        let start = self.out.len();
        self.key(number);
        let node = match plan.node(field.node) {
            Node::Union(branches) => self.branch(branches)?,
            _ => field.node,
        };
        let present = match plan.node(node) {
            Node::Record(components) if plan.compound(field.node).as_ref() == Some(components) => {
                self.components(components.clone(), first_slot, changes, diffs)?
            }
            _ => self.node(node, 2)?,
        };
        if !present {
            self.out.truncate(start);
        }
        Ok(present)
    }

    /// The components of a compound field, as an object.
    fn components(
        &mut self,
        fields: Range<usize>,
        first_slot: Slot,
        changes: &Changes,
        diffs: &mut Vec<u8>,
    ) -> Result<bool, DecodeReason> {
        let start = self.out.len();
        for (number, slot) in fields.zip(first_slot..) {
            let before = self.out.len();
            let present = self.field(number, 2)?;
            if changes.diffs.contains(slot) {
                if present {
                    let key = self.plan.field(number).key.len() + 1;
                    diffs.push(b',');
                    json::put_string(diffs, self.plan.slots.name(slot));
                    diffs.push(b':');
                    diffs.extend_from_slice(&self.out[before + key..]);
                    self.out.truncate(before);
                }
            } else if !present && changes.shown.contains(slot) {
                self.null(number);
            }
        }
        Ok(json::close(&mut self.out, start, *b"{}"))
    }

    /// A field without a value: null if its own bit is set, an object of nulls if bits of its
    /// components are, else nothing.
    fn null_field(&mut self, number: usize, position: usize, changes: &Changes) {
        if changes.shown.contains(position) {
            self.null(number);
            return;
        }
        let slots = self.plan.slots.components(position);
        if changes.shown.within(slots.clone()).next().is_none() {
            return;
        }
        self.key(number);
        let start = self.out.len();
        let components = self.plan.compound(self.plan.field(number).node);
        for (component, slot) in components.unwrap_or_default().zip(slots) {
            if changes.shown.contains(slot) {
                self.null(component);
            }
        }
        json::close(&mut self.out, start, *b"{}");
    }
}
