//! A writer schema as a flat plan that the decoder follows.

use std::collections::HashMap;
use std::ops::Range;

use apache_avro::Schema as Avro;
use apache_avro::schema::{Name, RecordSchema};
use serde_json::Value as Json;

use super::bitmap::Slots;
use super::header::Role;
use super::schema::SchemaError;

/// Name of the field that makes a record a change event; always the first one (facts 4.4).
pub(super) const HEADER_FIELD: &str = "ChangeEventHeader";

/// Number of a [`Node`] in its plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeId(u32);

/// What comes next in a datum.
#[derive(Debug)]
pub(super) enum Node {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    /// So many bytes.
    Fixed(usize),
    /// The symbols.
    Enum(Box<[Box<str>]>),
    Array(NodeId),
    Map(NodeId),
    /// A stretch of the plan's fields.
    Record(Range<usize>),
    Union(Box<[NodeId]>),
}

/// A field of a record.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: Box<str>,
    /// `"name":`, escaped.
    pub(super) key: Box<str>,
    pub(super) node: NodeId,
    /// One past the last field of the unbroken run of null-first unions that begins here; the field's
    /// own number where it is no such union. Absent fields are zero bytes, so a run of them is
    /// stepped over with one look at the datum.
    pub(super) run_end: usize,
    /// The other branch of `["null", T]`.
    pub(super) some: Option<NodeId>,
}

/// All types of a schema, flat: named types refer to each other by number, so that any may be recursive.
#[derive(Debug)]
pub(super) struct Plan {
    nodes: Vec<Node>,
    fields: Vec<Field>,
    /// The fields of the event itself.
    root: Range<usize>,
    /// The header's fields, where the event has one.
    header: Option<Range<usize>>,
    /// What each of them is.
    roles: Box<[Role]>,
    /// Names for the bits of the header's bitmaps.
    pub(super) slots: Slots,
}

impl Plan {
    pub(super) fn compile(record: &RecordSchema) -> Result<Self, SchemaError> {
        let mut compiler = Compiler::default();
        let root = compiler.record(record)?;
        let mut plan = Self {
            nodes: compiler.nodes,
            fields: compiler.fields,
            root: 0..0,
            header: None,
            roles: Box::default(),
            slots: Slots::new([]),
        };
        plan.root = plan.record(root).unwrap_or_default();
        plan.header = plan.find_header();
        let of_header = plan.header().unwrap_or_default();
        plan.roles = of_header.map(|number| Role::of(&plan, number)).collect();
        plan.slots = plan.name_slots();
        Ok(plan)
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        // Every NodeId was made by this plan's compiler, which never takes a node away.
        &self.nodes[id.0 as usize]
    }

    pub(super) fn field(&self, number: usize) -> &Field {
        &self.fields[number]
    }

    /// Numbers of the event's own fields.
    pub(super) fn root(&self) -> Range<usize> {
        self.root.clone()
    }

    /// The header's fields, where the event has one.
    pub(super) fn header(&self) -> Option<Range<usize>> {
        self.header.clone()
    }

    /// A record, first of all.
    fn find_header(&self) -> Option<Range<usize>> {
        let first = self.root().next().map(|number| self.field(number))?;
        if &*first.name == HEADER_FIELD {
            self.record(first.node)
        } else {
            None
        }
    }

    /// What a field of the header is.
    pub(super) fn role(&self, number: usize) -> Role {
        let first = self.header.as_ref().map_or(0, |fields| fields.start);
        let place = number.checked_sub(first);
        let role = place.and_then(|place| self.roles.get(place));
        role.copied().unwrap_or(Role::Other)
    }

    fn record(&self, id: NodeId) -> Option<Range<usize>> {
        match self.node(id) {
            Node::Record(fields) => Some(fields.clone()),
            _ => None,
        }
    }

    /// The record that a compound field holds. Its union may be `[null, X]`, `[string, X]` or
    /// `[null, string, X]` (facts 4.4).
    pub(super) fn compound(&self, id: NodeId) -> Option<Range<usize>> {
        match self.node(id) {
            Node::Union(branches) => branches.iter().find_map(|branch| self.record(*branch)),
            _ => self.record(id),
        }
    }

    /// True for text, and for a union with a branch for it.
    pub(super) fn may_be_text(&self, id: NodeId) -> bool {
        match self.node(id) {
            Node::Union(branches) => branches
                .iter()
                .any(|branch| matches!(self.node(*branch), Node::String)),
            node => matches!(node, Node::String),
        }
    }

    fn name_slots(&self) -> Slots {
        let header = self.header().map(|_| self.root.start);
        Slots::new(self.root().map(|number| {
            let field = self.field(number);
            let components = match header {
                Some(header) if header == number => None,
                _ => self.compound(field.node),
            };
            let components = components.unwrap_or_default();
            let names = components.map(|number| &*self.field(number).name);
            (&*field.name, names.collect())
        }))
    }
}

#[derive(Default)]
struct Compiler {
    nodes: Vec<Node>,
    fields: Vec<Field>,
    named: HashMap<Name, NodeId>,
}

impl Compiler {
    fn push(&mut self, node: Node) -> Result<NodeId, SchemaError> {
        let id = u32::try_from(self.nodes.len())
            .map_err(|_| SchemaError::NotAvro("it has too many types".into()))?;
        self.nodes.push(node);
        Ok(NodeId(id))
    }

    /// A place for a named type, which may refer to itself before it is known.
    fn declare(&mut self, name: &Name) -> Result<NodeId, SchemaError> {
        let id = self.push(Node::Null)?;
        match self.named.insert(name.clone(), id) {
            None => Ok(id),
            Some(_) => {
                let name = name.fullname(None);
                Err(SchemaError::NotAvro(format!(
                    "type {name} is defined twice"
                )))
            }
        }
    }

    fn set(&mut self, id: NodeId, node: Node) -> NodeId {
        self.nodes[id.0 as usize] = node;
        id
    }

    fn compile(&mut self, schema: &Avro) -> Result<NodeId, SchemaError> {
        let simple = match schema {
            Avro::Null => Node::Null,
            Avro::Boolean => Node::Boolean,
            Avro::Int => Node::Int,
            Avro::Long => Node::Long,
            Avro::Float => Node::Float,
            Avro::Double => Node::Double,
            Avro::Bytes => Node::Bytes,
            Avro::String => Node::String,
            Avro::Array(array) => Node::Array(self.compile(&array.items)?),
            Avro::Map(map) => Node::Map(self.compile(&map.types)?),
            Avro::Union(union) => {
                let branches = union.variants().iter().map(|branch| self.compile(branch));
                Node::Union(branches.collect::<Result<_, _>>()?)
            }
            Avro::Record(record) => return self.record(record),
            Avro::Enum(symbols) => {
                let id = self.declare(&symbols.name)?;
                let symbols = symbols.symbols.iter().map(|symbol| symbol.as_str().into());
                return Ok(self.set(id, Node::Enum(symbols.collect())));
            }
            Avro::Fixed(fixed) => {
                let id = self.declare(&fixed.name)?;
                return Ok(self.set(id, Node::Fixed(fixed.size)));
            }
            Avro::Ref { name } => return self.reference(name),
            _ => return Err(SchemaError::NotAvro("it uses an unknown type".into())),
        };
        self.push(simple)
    }

    fn reference(&self, name: &Name) -> Result<NodeId, SchemaError> {
        let known = self.named.get(name).copied();
        known.ok_or_else(|| {
            let name = name.fullname(None);
            SchemaError::NotAvro(format!("type {name} is used but not defined before"))
        })
    }

    fn record(&mut self, record: &RecordSchema) -> Result<NodeId, SchemaError> {
        let id = self.declare(&record.name)?;
        // Types first: those of nested records put their own fields into the list.
        let mut types = Vec::with_capacity(record.fields.len());
        for field in &record.fields {
            types.push(self.compile(&field.schema)?);
        }
        let start = self.fields.len();
        for (field, node) in record.fields.iter().zip(types) {
            let field = self.field(&field.name, node);
            self.fields.push(field);
        }
        let end = self.fields.len();
        self.find_runs(start..end);
        Ok(self.set(id, Node::Record(start..end)))
    }

    fn field(&self, name: &str, node: NodeId) -> Field {
        let some = match self.null_first(node) {
            Some([_, some]) => Some(*some),
            _ => None,
        };
        Field {
            name: name.into(),
            key: format!("{}:", json_text(name)).into(),
            node,
            run_end: 0,
            some,
        }
    }

    /// The branches of a union whose first one is null.
    fn null_first(&self, node: NodeId) -> Option<&[NodeId]> {
        match &self.nodes[node.0 as usize] {
            Node::Union(branches) => {
                let first = branches.first()?;
                matches!(self.nodes[first.0 as usize], Node::Null).then_some(branches)
            }
            _ => None,
        }
    }

    fn find_runs(&mut self, fields: Range<usize>) {
        let mut end = fields.end;
        for number in fields.rev() {
            if self.null_first(self.fields[number].node).is_none() {
                end = number;
            }
            self.fields[number].run_end = end;
        }
    }
}

fn json_text(text: &str) -> Box<str> {
    Json::from(text).to_string().into()
}
