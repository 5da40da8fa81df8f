//! Traffic: change events, platform events, and poison among them.

use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::{Map, Value, json};

use super::account::Poison;
use super::emulator::Emulator;
use super::ledger::{Entry, Ledger};
use super::plan::{Feed, Plan, Traffic};

const ACCOUNTS: &str = "/data/AccountChangeEvent";
const CONTACTS: &str = "/data/ContactChangeEvent";
const ORDERS: &str = "/event/Order__e";
const NOTICES: &str = "/event/Notice__e";

const ACCOUNT_SCHEMA: &str =
    include_str!("../../schemas/AccountChangeEvent.mXn-qVf-uENIp2CjGq7nvw.avsc");
const ACCOUNT_SCHEMA_ID: &str = "mXn-qVf-uENIp2CjGq7nvw";
const ORDER_SCHEMA: &str = include_str!("../../schemas/Order__e.T2gsoDAd40J5FRpynIKZmQ.avsc");
const ORDER_SCHEMA_ID: &str = "T2gsoDAd40J5FRpynIKZmQ";
const NOTICE_SCHEMA: &str = r#"{"type": "record", "name": "Notice__e", "namespace": "com.sforce.eventbus",
  "fields": [
    {"name": "CreatedDate", "type": "long", "doc": "CreatedDate:DateTime"},
    {"name": "CreatedById", "type": "string", "doc": "CreatedBy:EntityId"},
    {"name": "Text__c", "type": ["null", "string"], "doc": "Data:Text:00NOS000000000F", "default": null}]}"#;

/// Puts a commit into a millisecond of its own.
const A_COMMIT_APART: Duration = Duration::from_millis(2);

/// Bytes that no schema reads: the first number never ends.
const NO_DATUM: [u8; 20] = [0xff; 20];

/// Topics, channels and timing of the org.
pub(crate) async fn prepare(org: &Emulator, plan: &Plan) {
    org.post(
        "/schemas",
        &json!({"topic": NOTICES, "schema": NOTICE_SCHEMA}),
    )
    .await;
    let member = json!({"topic": ACCOUNTS, "enriched_fields": ["Industry"]});
    let channel = json!({"channel": Feed::Sales.topic(), "members": [member]});
    org.post("/channels", &channel).await;
    org.settings(json!({
        "keepalive_ms": 300,
        "idle_close_ms": 500,
        "split_siblings": true,
        "revoke_ends_streams": true,
        "events_per_response": plan.events_per_response,
    }))
    .await;
}

/// A new version of a topic's schema, with one more field.
pub(crate) async fn change_schema(org: &Emulator, orders: bool, version: u64) {
    let (topic, text) = if orders {
        (ORDERS, ORDER_SCHEMA)
    } else {
        (ACCOUNTS, ACCOUNT_SCHEMA)
    };
    let mut schema: Value = serde_json::from_str(text).unwrap();
    schema["fields"].as_array_mut().unwrap().push(json!({
        "name": format!("Extra{version}__c"),
        "type": ["null", "string"],
        "doc": "Data:Text:00NOS000000000E",
        "default": null,
    }));
    org.post("/schemas", &json!({"topic": topic, "schema": schema}))
        .await;
}

/// Publishes what the plan says; holds `trim` while it does, so that whoever trims the bus knows what was
/// on it.
pub(crate) struct Publisher<'a> {
    org: &'a Emulator,
    ledger: Ledger,
    random: Rng,
    traffic: Traffic,
    /// Handlers' names, for events that one of them will not take.
    handlers: Vec<&'static str>,
    /// Events that a handler always fails for would stop a strict subscription for good.
    may_fail: bool,
}

impl<'a> Publisher<'a> {
    pub(crate) fn new(org: &'a Emulator, ledger: Ledger, plan: &Plan) -> Self {
        Self {
            org,
            ledger,
            random: Rng::with_seed(plan.traffic.seed),
            traffic: plan.traffic.clone(),
            handlers: vec!["a", "b"],
            may_fail: plan.subscriptions.iter().all(|s| s.ordering != "strict"),
        }
    }

    /// Until everything is published or the time is over.
    pub(crate) async fn run(mut self, trim: &tokio::sync::Mutex<()>) {
        let began = Instant::now();
        while began.elapsed() < self.traffic.length && self.ledger.len() < self.traffic.most {
            {
                let _no_trim_now = trim.lock().await;
                self.one_call().await;
            }
            let pause = self
                .random
                .u64(0..self.traffic.pause.as_millis() as u64 + 1);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    async fn one_call(&mut self) {
        if self.random.u32(..1000) < self.traffic.poison / 2 {
            return match self.random.u8(..3) {
                0 => self.truncated().await,
                _ => self.raw().await,
            };
        }
        match self.random.u8(..20) {
            0..=8 => self.accounts().await,
            9..=10 => self.transaction().await,
            11 => self.gap().await,
            12..=16 => self.orders().await,
            _ => self.notices().await,
        }
    }

    fn account(&mut self) -> String {
        format!(
            "001A0000{:07}AAA",
            self.random.usize(..self.traffic.records)
        )
    }

    /// What an event says of itself, which the recorder heeds.
    fn marker(&mut self) -> (String, Poison) {
        if self.random.u32(..1000) >= self.traffic.poison {
            return ("well".to_owned(), Poison::None);
        }
        let handler = self.handlers[self.random.usize(..self.handlers.len())];
        match self.random.u8(..3) {
            0 if self.may_fail => (format!("fail-{handler}"), Poison::Fails(handler.to_owned())),
            1 => (format!("later-{handler}"), Poison::None),
            _ => (
                format!("refuse-{handler}"),
                Poison::Refused(handler.to_owned()),
            ),
        }
    }

    /// An update of one account or of several.
    fn update(&mut self) -> (Value, Entry) {
        let count = if self.random.u8(..5) == 0 {
            self.random.usize(2..5)
        } else {
            1
        };
        let mut records: Vec<String> = (0..count).map(|_| self.account()).collect();
        records.sort();
        records.dedup();
        let (marker, poison) = self.marker();
        let change = if self.random.u8(..10) == 0 {
            "CREATE"
        } else {
            "UPDATE"
        };
        let event = json!({
            "ChangeEventHeader": {"entityName": "Account", "recordIds": records, "changeType": change},
            "Name": marker,
        });
        let entry = Entry {
            place: 0,
            topic: ACCOUNTS,
            splits: change == "UPDATE",
            records,
            gap: false,
            barrier: false,
            poison,
        };
        (event, entry)
    }

    async fn accounts(&mut self) {
        let count = self.random.usize(1..8);
        let (events, entries): (Vec<_>, Vec<_>) = (0..count).map(|_| self.update()).unzip();
        let body = json!({"topic": ACCOUNTS, "events": events, "enriched": enriched(&entries)});
        let answer = self.org.post("/publish", &body).await;
        self.note(&answer, entries);
    }

    /// Accounts and a contact, changed together.
    async fn transaction(&mut self) {
        let count = self.random.usize(1..4);
        let mut events = Vec::new();
        let mut entries = Vec::new();
        for _ in 0..count {
            let (event, entry) = self.update();
            let enriched = enriched(std::slice::from_ref(&entry));
            events.push(json!({"topic": ACCOUNTS, "event": event, "enriched": enriched}));
            entries.push(entry);
        }
        let contact = format!(
            "003A0000{:07}AAA",
            self.random.usize(..self.traffic.records)
        );
        let (marker, poison) = self.marker();
        events.push(json!({"topic": CONTACTS, "event": {
            "ChangeEventHeader": {"entityName": "Contact", "recordIds": [contact]},
            "Title": marker,
        }}));
        entries.push(Entry {
            place: 0,
            topic: CONTACTS,
            records: vec![contact],
            splits: true,
            gap: false,
            barrier: false,
            poison,
        });
        let answer = self
            .org
            .post("/transaction", &json!({"events": events}))
            .await;
        self.note(&answer, entries);
    }

    /// A change without its content, of some records or of too many to tell.
    async fn gap(&mut self) {
        let overflow = self.random.u8(..4) == 0;
        let (change, records) = if overflow {
            ("GAP_OVERFLOW", vec!["000000000000000AAA".to_owned()])
        } else {
            ("GAP_UPDATE", vec![self.account()])
        };
        let event = json!({"ChangeEventHeader":
            {"entityName": "Account", "recordIds": records, "changeType": change}});
        let answer = self.org.publish(ACCOUNTS, &[event]).await;
        let entry = Entry {
            place: 0,
            topic: ACCOUNTS,
            records,
            splits: false,
            gap: true,
            barrier: overflow,
            poison: Poison::None,
        };
        self.note(&answer, vec![entry]);
    }

    async fn orders(&mut self) {
        let (mut events, mut entries) = (Vec::new(), Vec::new());
        for _ in 0..self.random.usize(1..6) {
            let key = format!("O-{}", self.random.usize(..self.traffic.records));
            let keyless = self.random.u8(..30) == 0;
            let (marker, poison) = self.marker();
            let mut event = json!({"City__c": marker});
            let mut records = Vec::new();
            if !keyless {
                event["OrderNumber__c"] = json!(key);
                records.push(key);
            }
            events.push(event);
            entries.push(platform(ORDERS, records, poison));
        }
        let answer = self.org.publish(ORDERS, &events).await;
        self.note(&answer, entries);
    }

    async fn notices(&mut self) {
        let (mut events, mut entries) = (Vec::new(), Vec::new());
        for _ in 0..self.random.usize(1..6) {
            let (marker, poison) = self.marker();
            events.push(json!({"Text__c": marker}));
            entries.push(platform(NOTICES, Vec::new(), poison));
        }
        let answer = self.org.publish(NOTICES, &events).await;
        self.note(&answer, entries);
    }

    /// Bytes that are no event, or an event whose schema does not exist.
    async fn raw(&mut self) {
        use base64::Engine as _;
        let (topic, schema_id) = if self.random.bool() {
            (ACCOUNTS, ACCOUNT_SCHEMA_ID)
        } else {
            (ORDERS, ORDER_SCHEMA_ID)
        };
        let (schema_id, poison) = if self.random.u8(..3) == 0 {
            let id: Vec<u8> = (0..16).map(|_| self.random.u8(..)).collect();
            let id = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(id);
            (id, Poison::Schema)
        } else {
            (schema_id.to_owned(), Poison::Bytes)
        };
        let payload = base64::prelude::BASE64_STANDARD.encode(NO_DATUM);
        let body = json!({"topic": topic, "schema_id": schema_id, "payload": payload});
        let answer = self.org.post("/raw", &body).await;
        self.note(&answer, vec![platform(topic, Vec::new(), poison)]);
    }

    /// A change event that breaks off behind its header: nobody can read it, but whose it is can be told.
    async fn truncated(&mut self) {
        use base64::Engine as _;
        let record = self.account();
        // As the org says of its own, whose numbers grow with the milliseconds: workers may have to tell by it what is
        // younger.
        tokio::time::sleep(A_COMMIT_APART).await;
        let now_ms = super::recorder::now_us() / 1_000;
        let event = json!({
            "ChangeEventHeader": {
                "entityName": "Account", "recordIds": [record], "changeType": "CREATE",
                "changeOrigin": "", "transactionKey": "t", "sequenceNumber": 1,
                "commitTimestamp": now_ms - now_ms % 1_000, "commitNumber": now_ms * 1_000_000, "commitUser": "005",
                "nulledFields": [], "diffFields": [], "changedFields": [],
            },
            "Name": "breaks off",
        });
        let schema = orgstream::avro::Schema::parse(ACCOUNT_SCHEMA).unwrap();
        let mut payload = schema.encode_json(&event).unwrap();
        payload.truncate(payload.len() - 5);
        let payload = base64::prelude::BASE64_STANDARD.encode(payload);
        let body = json!({"topic": ACCOUNTS, "schema_id": ACCOUNT_SCHEMA_ID, "payload": payload});
        let answer = self.org.post("/raw", &body).await;
        tokio::time::sleep(A_COMMIT_APART).await;
        self.note(
            &answer,
            vec![platform(ACCOUNTS, vec![record], Poison::Bytes)],
        );
    }

    fn note(&self, answer: &Value, entries: Vec<Entry>) {
        let published = answer["events"].as_array().unwrap();
        assert_eq!(published.len(), entries.len());
        for (published, entry) in published.iter().zip(entries) {
            let place = super::place_of(published["replay_id"].as_str().unwrap());
            self.ledger.add(Entry { place, ..entry });
        }
    }
}

/// An event of which nothing is remarkable.
fn platform(topic: &'static str, records: Vec<String>, poison: Poison) -> Entry {
    Entry {
        place: 0,
        topic,
        records,
        splits: false,
        gap: false,
        barrier: false,
        poison,
    }
}

/// Values of the enriched field, by record.
fn enriched(entries: &[Entry]) -> Map<String, Value> {
    let records = entries.iter().flat_map(|entry| entry.records.iter());
    records
        .map(|record| (record.clone(), json!({"Industry": "Energy"})))
        .collect()
}
