//! Types to generate, their text as a schema, and values of them.

use apache_avro::types::Value;
use proptest::collection::{hash_map, vec};
use proptest::num;
use proptest::prelude::*;
use proptest::strategy::Union;
use serde_json::{Value as Json, json};

/// A type to generate; named types get their names when written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Type {
    /// Null, and those of the types without parts that have no name.
    Simple(&'static str),
    Fixed(usize),
    /// So many symbols. One with an even number is in no namespace, so it cannot be referred to.
    Enum(usize),
    Array(Box<Type>),
    Map(Box<Type>),
    Record(Vec<Type>),
    /// In any order, none of them a union, and no two of one kind.
    Union(Vec<Type>),
}

/// The names of types that are written so far.
#[derive(Debug, Default)]
struct Names {
    count: usize,
    references: usize,
    known: Vec<(Type, String)>,
}

impl Names {
    fn new_name(&mut self) -> String {
        self.count += 1;
        format!("T{}", self.count)
    }

    /// A type of the same shape is defined once and named from then on (facts 4.4), by its short or its full name.
    fn reference(&mut self, of: &Type) -> Option<Json> {
        let (_, name) = self.known.iter().find(|(known, _)| known == of)?;
        self.references += 1;
        Some(match self.references % 2 {
            0 => json!(format!("com.sforce.eventbus.{name}")),
            _ => json!(name),
        })
    }
}

impl Type {
    pub(super) const NULL: Self = Self::Simple("null");
    pub(super) const TEXT: Self = Self::Simple("string");

    /// `["null", T]`, as nearly everywhere in real events.
    pub(super) fn nullable(of: Self) -> Self {
        Self::Union(vec![Self::NULL, of])
    }

    fn json(&self, names: &mut Names) -> Json {
        if let Some(reference) = names.reference(self) {
            return reference;
        }
        let named = |names: &mut Names, json: fn(&Self, &mut Names, String) -> Json| {
            let name = names.new_name();
            let json = json(self, names, name.clone());
            names.known.push((self.clone(), name));
            json
        };
        match self {
            Self::Simple(name) => json!(name),
            Self::Array(items) => json!({"type": "array", "items": items.json(names)}),
            Self::Map(values) => json!({"type": "map", "values": values.json(names)}),
            Self::Union(branches) => branches.iter().map(|of| of.json(names)).collect(),
            Self::Enum(count) if count % 2 == 0 => {
                let name = names.new_name();
                let symbols = symbols(*count);
                json!({"type": "enum", "name": name, "namespace": "", "symbols": symbols})
            }
            Self::Fixed(_) | Self::Enum(_) | Self::Record(_) => named(names, Self::definition),
        }
    }

    fn definition(&self, names: &mut Names, name: String) -> Json {
        match self {
            Self::Fixed(size) => json!({"type": "fixed", "name": name, "size": size}),
            Self::Enum(count) => {
                json!({"type": "enum", "name": name, "symbols": symbols(*count)})
            }
            Self::Record(fields) => {
                json!({"type": "record", "name": name, "fields": fields_json(fields, names)})
            }
            other => panic!("has no name: {other:?}"),
        }
    }

    pub(super) fn value(&self) -> BoxedStrategy<Value> {
        match self {
            Self::Simple(name) => simple_value(name),
            Self::Fixed(size) => {
                let size = *size;
                vec(any::<u8>(), size)
                    .prop_map(move |bytes| Value::Fixed(size, bytes))
                    .boxed()
            }
            Self::Enum(count) => (0..*count)
                .prop_map(|at| Value::Enum(at as u32, format!("S{at}")))
                .boxed(),
            Self::Array(items) => vec(items.value(), 0..4).prop_map(Value::Array).boxed(),
            Self::Map(values) => hash_map("\\PC{0,5}", values.value(), 0..4)
                .prop_map(Value::Map)
                .boxed(),
            Self::Record(fields) => record_value(fields),
            Self::Union(branches) => {
                let branches = (0..).zip(branches).map(|(at, of): (u32, _)| {
                    of.value()
                        .prop_map(move |value| Value::Union(at, Box::new(value)))
                        .boxed()
                });
                Union::new(branches).boxed()
            }
        }
    }

    /// Its record, where the bits of a change event may name components: the field is one, or a union with one.
    pub(super) fn components(&self) -> usize {
        match self {
            Self::Record(fields) => fields.len(),
            Self::Union(branches) => {
                let mut branches = branches.iter();
                let record = branches.find_map(|of| match of {
                    Self::Record(fields) => Some(fields.len()),
                    _ => None,
                });
                record.unwrap_or(0)
            }
            _ => 0,
        }
    }

    pub(super) fn may_be_null(&self) -> bool {
        match self {
            Self::Union(branches) => branches.contains(&Self::NULL),
            of => *of == Self::NULL,
        }
    }

    /// Two of one kind cannot be told apart within a union.
    fn kind(&self) -> &'static str {
        match self {
            Self::Simple(name) => name,
            Self::Fixed(_) => "fixed",
            Self::Enum(_) => "enum",
            Self::Array(_) => "array",
            Self::Map(_) => "map",
            Self::Record(_) => "record",
            Self::Union(_) => "union",
        }
    }

    /// An array of it may be longer than its bytes tell, which is refused beyond a bound that apache-avro does not have.
    fn may_be_nothing(&self) -> bool {
        match self {
            Self::Record(fields) => fields.iter().all(Self::may_be_nothing),
            Self::Simple(name) => *name == "null",
            Self::Fixed(size) => *size == 0,
            _ => false,
        }
    }
}

fn symbols(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("S{i}")).collect()
}

fn fields_json(fields: &[Type], names: &mut Names) -> Json {
    let fields = fields.iter().enumerate();
    let fields = fields.map(|(i, of)| json!({"name": format!("F{i}"), "type": of.json(names)}));
    fields.collect::<Vec<_>>().into()
}

/// An event of these fields, behind a header where there is one.
pub(super) fn schema_text(header: Option<Json>, fields: &[Type]) -> String {
    let mut all = fields_json(fields, &mut Names::default());
    if let (Some(header), Some(list)) = (header, all.as_array_mut()) {
        list.insert(0, json!({"name": "ChangeEventHeader", "type": header}));
    }
    json!({"type": "record", "name": "Generated", "namespace": "com.sforce.eventbus", "fields": all})
        .to_string()
}

fn simple_value(name: &str) -> BoxedStrategy<Value> {
    match name {
        "null" => Just(Value::Null).boxed(),
        "boolean" => any::<bool>().prop_map(Value::Boolean).boxed(),
        "int" => edges(&[i32::MIN, i32::MAX, 0, -1, 63, 64], any::<i32>())
            .prop_map(Value::Int)
            .boxed(),
        "long" => edges(&[i64::MIN, i64::MAX, 0, -1, 1 << 53], any::<i64>())
            .prop_map(Value::Long)
            .boxed(),
        // `any` would leave out NaN and the infinities.
        "float" => edges(
            &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.1],
            num::f32::ANY,
        )
        .prop_map(Value::Float)
        .boxed(),
        "double" => edges(
            &[f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 0.1],
            num::f64::ANY,
        )
        .prop_map(Value::Double)
        .boxed(),
        "bytes" => vec(any::<u8>(), 0..5).prop_map(Value::Bytes).boxed(),
        _ => any_text().prop_map(Value::String).boxed(),
    }
}

/// One in four is a value that is often wrong.
fn edges<T>(values: &'static [T], otherwise: impl Strategy<Value = T> + 'static) -> BoxedStrategy<T>
where
    T: Copy + std::fmt::Debug + Sync + 'static,
{
    prop_oneof![1 => proptest::sample::select(values), 3 => otherwise].boxed()
}

/// Also such that has to be escaped, and such that is longer than what is looked at in one step.
pub(super) fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "(\\PC|[\\x00-\\x1f\"\\\\]){0,12}",
        1 => "[a-z]{13,40}(\\PC|[\\x00-\\x1f\"\\\\\u{7f}\u{2028}]){0,4}[a-z]{0,20}",
    ]
}

pub(super) fn record_value(fields: &[Type]) -> BoxedStrategy<Value> {
    let values: Vec<_> = fields.iter().map(Type::value).collect();
    let named = |values: Vec<Value>| {
        let fields = values.into_iter().enumerate();
        Value::Record(fields.map(|(i, value)| (format!("F{i}"), value)).collect())
    };
    values.prop_map(named).boxed()
}

fn any_simple() -> impl Strategy<Value = Type> {
    const NAMES: &[&str] = &[
        "boolean", "int", "long", "float", "double", "bytes", "string",
    ];
    proptest::sample::select(NAMES).prop_map(Type::Simple)
}

/// The fields of a change event as the platform makes them: nullable scalars, and compounds of them that several fields
/// may share, in every union.
pub(super) fn real_body() -> impl Strategy<Value = Vec<Type>> {
    body(any_nullable().boxed(), any_nullable().boxed())
}

/// The same, with a few components and fields of types that the platform does not have.
pub(super) fn any_body() -> impl Strategy<Value = Vec<Type>> {
    let component = prop_oneof![12 => any_nullable(), 1 => any_type()];
    let field = prop_oneof![12 => any_nullable(), 1 => any_type()];
    body(component.boxed(), field.boxed())
}

fn any_nullable() -> impl Strategy<Value = Type> {
    any_simple().prop_map(Type::nullable)
}

fn body(
    component: BoxedStrategy<Type>,
    field: BoxedStrategy<Type>,
) -> impl Strategy<Value = Vec<Type>> {
    let compounds = vec(vec(component, 1..12).prop_map(Type::Record), 1..4);
    compounds.prop_flat_map(move |compounds| {
        let compound = || proptest::sample::select(compounds.clone());
        let any_order = |of| Just(vec![of, Type::NULL, Type::TEXT]).prop_shuffle();
        let field = prop_oneof![
            12 => field.clone(),
            4 => compound().prop_map(Type::nullable),
            // As Account's Name, and its required form.
            2 => compound().prop_map(|of| Type::Union(vec![Type::NULL, Type::TEXT, of])),
            2 => compound().prop_map(|of| Type::Union(vec![Type::TEXT, of])),
            1 => compound().prop_map(|of| Type::Union(vec![of, Type::NULL])),
            1 => compound().prop_flat_map(any_order).prop_map(Type::Union),
            1 => compound(),
            2 => any_simple(),
        ];
        vec(field, 1..70)
    })
}

fn nullable_or_as_it_is(of: Type) -> Type {
    match of {
        Type::Union(_) | Type::NULL => of,
        of => Type::nullable(of),
    }
}

/// Fields of any type that Avro knows, some of them again.
pub(super) fn any_fields() -> impl Strategy<Value = Vec<Type>> {
    vec(any_type(), 0..6).prop_flat_map(|fields| {
        let again = proptest::sample::subsequence(fields.clone(), 0..=fields.len());
        (Just(fields), again).prop_map(|(mut fields, again)| {
            fields.extend(again);
            fields
        })
    })
}

/// Fields of any type, and values of them.
pub(super) fn any_event() -> impl Strategy<Value = (Vec<Type>, Value)> {
    any_fields().prop_flat_map(|fields| {
        let values = record_value(&fields);
        (Just(fields), values)
    })
}

fn any_type() -> impl Strategy<Value = Type> {
    let leaf = prop_oneof![
        8 => any_simple(),
        1 => Just(Type::NULL),
        2 => (0..5_usize).prop_map(Type::Fixed),
        2 => (1..5_usize).prop_map(Type::Enum),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let boxed = || inner.clone().prop_map(Box::new);
        prop_oneof![
            boxed()
                .prop_filter("nothing", |of| !of.may_be_nothing())
                .prop_map(Type::Array),
            boxed().prop_map(Type::Map),
            vec(inner.clone(), 0..5).prop_map(Type::Record),
            inner.clone().prop_map(nullable_or_as_it_is),
            vec(inner, 1..5).prop_map(union_of),
        ]
    })
}

/// A union of these, in this order, and of null where nothing else is left.
fn union_of(all: Vec<Type>) -> Type {
    let mut branches: Vec<Type> = Vec::new();
    for of in all {
        let is_new = branches.iter().all(|known| known.kind() != of.kind());
        if is_new && of.kind() != "union" {
            branches.push(of);
        }
    }
    if branches.is_empty() {
        branches.push(Type::NULL);
    }
    Type::Union(branches)
}
