//! Events to measure with: their schemas, and payloads of them, the same ones in every run.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use orgstream::avro::Schema;
use serde_json::{Map, Value, json};

/// Schemas of one bench, and payloads with the index of the schema that wrote each.
pub(crate) struct Corpus {
    /// Texts of the schemas.
    pub(crate) schemas: Vec<String>,
    /// Index of the schema, and one datum.
    pub(crate) payloads: Vec<(usize, Vec<u8>)>,
}

/// Fields of the wide change event beside its header, `Name` and two addresses among them: as many as the change
/// events of an account with some packages installed have.
const WIDE_FIELDS: usize = 66;
const TEXTS: [&str; 6] = [
    "Lisbon",
    "quarterly review moved",
    "Alder & Finch",
    "\u{c1}gua, Lda.",
    "+351 21 555 0100",
    "of no \"further\" interest",
];

/// So many payloads of one kind: `narrow`, a platform event with 8 fields; `update`, `create` and `mix`, changes of
/// an object with 66 fields, of which `mix` has three updates, and a few creations and deletions; `own`, changes
/// and platform events of the schemas in `schemas/`.
pub(crate) fn corpus(kind: &str, count: usize) -> anyhow::Result<Corpus> {
    let mut random = fastrand::Rng::with_seed(7);
    let schemas = match kind {
        "narrow" => vec![narrow_schema()],
        "own" => vec![
            include_str!("../../schemas/AccountChangeEvent.mXn-qVf-uENIp2CjGq7nvw.avsc").into(),
            include_str!("../../schemas/ContactChangeEvent.YLPx_JMP2oGKutbVV-Aggw.avsc").into(),
            include_str!("../../schemas/Order__e.T2gsoDAd40J5FRpynIKZmQ.avsc").into(),
        ],
        _ => vec![wide_schema()],
    };
    let parsed: Vec<Schema> = schemas
        .iter()
        .map(|text| Schema::parse(text))
        .collect::<Result<_, _>>()?;
    let mut payloads = Vec::with_capacity(count);
    for number in 0..count {
        let which = number % parsed.len();
        let schema = parsed.get(which).context("no schema")?;
        let event = match (kind, which) {
            ("narrow", _) => narrow(number, &mut random),
            ("update", _) => update(schema, number, &mut random)?,
            ("create", _) => create(number, &mut random),
            ("mix", _) => match random.u8(..20) {
                0..15 => update(schema, number, &mut random)?,
                15..18 => create(number, &mut random),
                _ => header(number, "DELETE", &[], &mut random),
            },
            ("own", 0) => own_account(schema, number, &mut random)?,
            ("own", 1) => own_contact(number, &mut random),
            ("own", _) => own_order(number, &mut random),
            _ => anyhow::bail!("no corpus {kind}"),
        };
        payloads.push((which, schema.encode_json(&event)?));
    }
    Ok(Corpus { schemas, payloads })
}

/// Now, in milliseconds since 1970: a change of long ago would be one that the bus no longer keeps.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(0)
}

/// A record ID of 18 characters.
fn record(number: usize) -> String {
    format!("001A0000{number:07}AAA")
}

fn text(random: &mut fastrand::Rng) -> &'static str {
    TEXTS
        .get(random.usize(..TEXTS.len()))
        .copied()
        .unwrap_or("")
}

fn nullable(name: &str, kind: &str) -> Value {
    json!({"name": name, "type": ["null", kind], "default": null})
}

fn narrow_schema() -> String {
    json!({"type": "record", "name": "Bench__e", "namespace": "com.sforce.eventbus", "fields": [
        {"name": "CreatedDate", "type": "long"},
        {"name": "CreatedById", "type": "string"},
        nullable("OrderNumber__c", "string"),
        nullable("Status__c", "string"),
        nullable("City__c", "string"),
        nullable("Amount__c", "double"),
        nullable("Placed__c", "long"),
        nullable("Note__c", "string"),
    ]})
    .to_string()
}

fn narrow(number: usize, random: &mut fastrand::Rng) -> Value {
    json!({
        "CreatedDate": 1_790_000_000_000_i64 + number as i64,
        "CreatedById": "0055g000004emu1AAA",
        "OrderNumber__c": format!("N-{number:08}"),
        "Status__c": "Shipped",
        "City__c": text(random),
        "Amount__c": f64::from(random.u32(..1_000_000)) / 100.0,
        "Placed__c": 1_790_000_000_000_i64,
        "Note__c": "left at the side door, signed",
    })
}

fn wide_schema() -> String {
    let address = |name: &str| {
        let mut fields: Vec<Value> = [
            "Street",
            "City",
            "State",
            "PostalCode",
            "Country",
            "StateCode",
            "CountryCode",
        ]
        .iter()
        .map(|part| nullable(part, "string"))
        .collect();
        fields.push(nullable("Latitude", "double"));
        fields.push(nullable("Longitude", "double"));
        fields.push(nullable("Xyz", "string"));
        json!({"name": name, "default": null, "type": ["null",
            {"type": "record", "name": format!("{name}Parts"), "fields": fields}]})
    };
    let person = json!({"type": "record", "name": "Switchable_PersonName", "fields": [
        nullable("Salutation", "string"), nullable("FirstName", "string"), nullable("LastName", "string")]});
    let mut fields = vec![
        header_field(),
        json!({"name": "Name", "type": ["null", "string", person], "default": null}),
        address("BillingAddress"),
        address("ShippingAddress"),
    ];
    for number in 3..WIDE_FIELDS {
        fields.push(nullable(&field(number), kind_of(number)));
    }
    json!({"type": "record", "name": "Wide__ChangeEvent", "namespace": "com.sforce.eventbus", "fields": fields})
        .to_string()
}

fn field(number: usize) -> String {
    format!("Field{number:02}__c")
}

/// Mostly text, as the fields of an org are.
fn kind_of(number: usize) -> &'static str {
    match number % 8 {
        1 => "double",
        3 => "long",
        5 => "boolean",
        7 => "int",
        _ => "string",
    }
}

fn value_of(number: usize, random: &mut fastrand::Rng) -> Value {
    match kind_of(number) {
        "double" => json!(f64::from(random.u32(..1_000_000)) / 100.0),
        "long" => json!(1_790_000_000_000_i64 + random.i64(..86_400_000)),
        "boolean" => json!(random.bool()),
        "int" => json!(random.i32(..5_000)),
        _ => json!(text(random)),
    }
}

fn header_field() -> Value {
    let texts = json!({"type": "array", "items": "string"});
    json!({"name": "ChangeEventHeader", "type": {"type": "record", "name": "ChangeEventHeader", "fields": [
        {"name": "entityName", "type": "string"},
        {"name": "recordIds", "type": texts},
        {"name": "changeType", "type": {"type": "enum", "name": "ChangeType", "symbols": [
            "CREATE", "UPDATE", "DELETE", "UNDELETE", "GAP_CREATE", "GAP_UPDATE", "GAP_DELETE",
            "GAP_UNDELETE", "GAP_OVERFLOW", "SNAPSHOT"]}},
        {"name": "changeOrigin", "type": "string"},
        {"name": "transactionKey", "type": "string"},
        {"name": "sequenceNumber", "type": "int"},
        {"name": "commitTimestamp", "type": "long"},
        {"name": "commitNumber", "type": "long"},
        {"name": "commitUser", "type": "string"},
        {"name": "nulledFields", "type": texts},
        {"name": "diffFields", "type": texts},
        {"name": "changedFields", "type": texts},
    ]}})
}

/// A change with nothing but its header.
fn header(number: usize, kind: &str, changed: &[String], random: &mut fastrand::Rng) -> Value {
    json!({"ChangeEventHeader": {
        "entityName": "Wide__c",
        "recordIds": [record(number)],
        "changeType": kind,
        "changeOrigin": "com/salesforce/api/soap/66.0;client=SfdcInternalAPI/",
        "transactionKey": format!("{:08x}-5f2c-4d11-9b6e-{:012x}", random.u32(..), number),
        "sequenceNumber": 1,
        "commitTimestamp": now_ms(),
        "commitNumber": 1_790_000_000_000_000_000_i64 + number as i64,
        "commitUser": "0055g000004emu1AAA",
        "nulledFields": [],
        "diffFields": [],
        "changedFields": changed,
    }})
}

fn address_value(random: &mut fastrand::Rng) -> Value {
    json!({"Street": "1 Mill Lane", "City": text(random), "PostalCode": "1100-048", "Country": "Portugal",
           "Latitude": 38.7223, "Longitude": -9.1393})
}

fn put(event: &mut Value, fields: Map<String, Value>) {
    if let Some(event) = event.as_object_mut() {
        event.extend(fields);
    }
}

/// Three to six fields and the addresses now and then.
fn update(schema: &Schema, number: usize, random: &mut fastrand::Rng) -> anyhow::Result<Value> {
    let mut fields = Map::new();
    for _ in 0..random.usize(3..=6) {
        let field_number = random.usize(3..WIDE_FIELDS);
        fields.insert(field(field_number), value_of(field_number, random));
    }
    let mut changed: Vec<String> = fields.keys().cloned().collect();
    if random.u8(..100) < 8 {
        fields.insert("BillingAddress".into(), address_value(random));
        changed.push("BillingAddress.Street".into());
        changed.push("BillingAddress.City".into());
    }
    let mut event = header(number, "UPDATE", &schema.bitmap(&changed)?, random);
    put(&mut event, fields);
    Ok(event)
}

/// More than half of the fields.
fn create(number: usize, random: &mut fastrand::Rng) -> Value {
    let mut fields = Map::from_iter([
        ("Name".to_owned(), json!("Blue Heron Tools")),
        ("BillingAddress".to_owned(), address_value(random)),
        ("ShippingAddress".to_owned(), address_value(random)),
    ]);
    for field_number in (3..WIDE_FIELDS).filter(|number| number % 2 == 1 || number % 16 == 0) {
        fields.insert(field(field_number), value_of(field_number, random));
    }
    let mut event = header(number, "CREATE", &[], random);
    put(&mut event, fields);
    event
}

fn own_account(
    schema: &Schema,
    number: usize,
    random: &mut fastrand::Rng,
) -> anyhow::Result<Value> {
    let changed = ["Phone".to_owned(), "LastModifiedDate".to_owned()];
    let mut event = header(number, "UPDATE", &schema.bitmap(&changed)?, random);
    let phone = json!({"Phone": "+351 21 555 0100", "LastModifiedDate": 1_790_000_000_000_i64});
    put(&mut event, phone.as_object().cloned().unwrap_or_default());
    Ok(event)
}

fn own_contact(number: usize, random: &mut fastrand::Rng) -> Value {
    let mut event = header(number, "CREATE", &[], random);
    let contact =
        json!({"Name": {"FirstName": "Ada", "LastName": "Albers"}, "Email": "ada@example.com"});
    put(&mut event, contact.as_object().cloned().unwrap_or_default());
    event
}

fn own_order(number: usize, random: &mut fastrand::Rng) -> Value {
    json!({
        "CreatedDate": 1_790_000_000_000_i64,
        "CreatedById": "0055g000004emu1AAA",
        "OrderNumber__c": format!("N-{number:08}"),
        "City__c": text(random),
        "Amount__c": 12.5,
    })
}
