//! A small business that keeps an org busy: what `demo` shows. Accounts and their contacts come, change
//! and go, each change a change event; shops send orders, a platform event.

use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::change_events::record_id;
use super::handle::Handle;
use super::publishing::{PublishError, Published, TransactionEvent, TransactionJson};

/// Change events of accounts.
pub const ACCOUNTS: &str = "/data/AccountChangeEvent";
/// Change events of contacts.
pub const CONTACTS: &str = "/data/ContactChangeEvent";
/// Change events of a custom object.
pub const EMPLOYEES: &str = "/data/Employee__ChangeEvent";
/// A platform event.
pub const ORDERS: &str = "/event/Order__e";

/// The topics of the sample org with their schemas.
pub const SCHEMAS: [(&str, &str); 4] = [
    (
        ACCOUNTS,
        include_str!("../../schemas/AccountChangeEvent.mXn-qVf-uENIp2CjGq7nvw.avsc"),
    ),
    (
        CONTACTS,
        include_str!("../../schemas/ContactChangeEvent.YLPx_JMP2oGKutbVV-Aggw.avsc"),
    ),
    (
        EMPLOYEES,
        include_str!("../../schemas/Employee__ChangeEvent.yZ0OLSGnu2NSat-PAtzEhQ.avsc"),
    ),
    (
        ORDERS,
        include_str!("../../schemas/Order__e.T2gsoDAd40J5FRpynIKZmQ.avsc"),
    ),
];

const COMPANIES: [&str; 12] = [
    "Alder & Finch",
    "Blue Heron Tools",
    "Cedar Bay Foods",
    "Dune Optics",
    "Elm Street Bikes",
    "Fjord Textiles",
    "Granite Press",
    "Harbour Lights",
    "Iris Robotics",
    "Juniper Dairy",
    "Kestrel Freight",
    "Lantern Games",
];
const CITIES: [(&str, &str); 6] = [
    ("Lisbon", "PT"),
    ("Tampere", "FI"),
    ("Ghent", "BE"),
    ("Graz", "AT"),
    ("Aarhus", "DK"),
    ("Porto", "PT"),
];
const FIRST_NAMES: [&str; 8] = [
    "Ada", "Bruno", "Clara", "Dario", "Edda", "Finn", "Greta", "Hugo",
];
const LAST_NAMES: [&str; 8] = [
    "Albers", "Brandt", "Castro", "Duarte", "Eklund", "Fontes", "Gruber", "Hansen",
];
const INDUSTRIES: [&str; 5] = ["Retail", "Energy", "Banking", "Media", "Food & Beverage"];
const RATINGS: [&str; 3] = ["Hot", "Warm", "Cold"];
const STATUSES: [&str; 3] = ["Placed", "Paid", "Shipped"];

/// Gives an org the sample's topics.
pub fn add_topics(org: &Handle) -> Result<(), String> {
    for (topic, schema) in SCHEMAS {
        org.add_schema(Some(topic), schema, None)?;
    }
    Ok(())
}

/// Steady traffic. The same seed gives the same business.
#[derive(Debug)]
pub struct Traffic {
    org: Handle,
    random: fastrand::Rng,
    accounts: Vec<String>,
    contacts: Vec<String>,
    orders: u32,
}

impl Traffic {
    /// For an org that has the sample's topics.
    pub fn new(org: Handle, seed: Option<u64>) -> Self {
        Self {
            org,
            random: seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed),
            accounts: Vec::new(),
            contacts: Vec::new(),
            orders: 1000,
        }
    }

    /// One thing that happens: an order, or a transaction of one or two changes.
    pub fn step(&mut self) -> Result<Vec<Published>, PublishError> {
        if self.accounts.len() < 3 {
            return self.new_customer();
        }
        match self.random.u8(..20) {
            0..=1 => self.new_customer(),
            2 => self.lost_customer(),
            3..=8 => self.account_change(),
            9..=11 => self.contact_change(),
            _ => self.order(),
        }
    }

    /// Lets things happen at an even pace until `stop`. Ends early only where the org lacks the topics.
    pub async fn run(
        mut self,
        steps_per_second: f64,
        stop: CancellationToken,
    ) -> Result<(), PublishError> {
        let pause = Duration::from_secs_f64(1.0 / steps_per_second.clamp(0.01, 1000.0));
        let mut ticks = tokio::time::interval(pause);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            self.step()?;
        }
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        (!from.is_empty())
            .then(|| self.random.usize(..from.len()))
            .and_then(|index| from.get(index))
    }

    fn text(&mut self, from: &[&str]) -> String {
        self.pick(from).copied().unwrap_or_default().to_owned()
    }

    fn phone(&mut self) -> String {
        format!("+351 555 {:04}", self.random.u16(..10_000))
    }

    fn address(&mut self) -> Value {
        let (city, country) = self.pick(&CITIES).copied().unwrap_or_default();
        json!({
            "Street": format!("{} Mill Lane", self.random.u16(1..200)),
            "City": city,
            "CountryCode": country,
        })
    }

    fn transaction(
        &self,
        events: impl IntoIterator<Item = (&'static str, Value)>,
    ) -> Result<Vec<Published>, PublishError> {
        let events = events.into_iter().map(|(topic, event)| TransactionEvent {
            topic: topic.to_owned(),
            event,
            ..TransactionEvent::default()
        });
        self.org.publish_transaction(&TransactionJson {
            transaction_key: None,
            events: events.collect(),
        })
    }

    /// An account and its first contact, in one transaction.
    fn new_customer(&mut self) -> Result<Vec<Published>, PublishError> {
        let account = record_id("Account", &mut self.random);
        let contact = record_id("Contact", &mut self.random);
        let (first, last) = (self.text(&FIRST_NAMES), self.text(&LAST_NAMES));
        let company = self.text(&COMPANIES);
        let account_event = json!({
            "ChangeEventHeader": {"changeType": "CREATE", "recordIds": [account]},
            "Name": company,
            "BillingAddress": self.address(),
            "Phone": self.phone(),
            "Industry": self.text(&INDUSTRIES),
            "NumberOfEmployees": self.random.u16(1..5000),
            "AnnualRevenue": f64::from(self.random.u32(10_000..9_000_000)),
        });
        let contact_event = json!({
            "ChangeEventHeader": {"changeType": "CREATE", "recordIds": [contact]},
            "AccountId": account,
            "Name": {"FirstName": first, "LastName": last},
            "Email": format!("{first}.{last}@example.com").to_lowercase(),
            "MailingAddress": self.address(),
        });
        let published = self.transaction([(ACCOUNTS, account_event), (CONTACTS, contact_event)])?;
        self.accounts.push(account);
        self.contacts.push(contact);
        Ok(published)
    }

    fn lost_customer(&mut self) -> Result<Vec<Published>, PublishError> {
        let index = self.random.usize(..self.accounts.len().max(1));
        if index >= self.accounts.len() {
            return self.order();
        }
        let account = self.accounts.swap_remove(index);
        let header = json!({"changeType": "DELETE", "recordIds": [account]});
        self.transaction([(ACCOUNTS, json!({"ChangeEventHeader": header}))])
    }

    fn account_change(&mut self) -> Result<Vec<Published>, PublishError> {
        let Some(account) = self.pick(&self.accounts.clone()).cloned() else {
            return self.order();
        };
        let mut event = json!({"ChangeEventHeader": {"recordIds": [account]}});
        match self.random.u8(..4) {
            0 => event["Phone"] = json!(self.phone()),
            1 => event["Rating"] = json!(self.text(&RATINGS)),
            2 => event["BillingAddress"] = self.address(),
            // A value taken away: null in the event, and named in nulledFields.
            _ => event["Website"] = Value::Null,
        }
        self.transaction([(ACCOUNTS, event)])
    }

    fn contact_change(&mut self) -> Result<Vec<Published>, PublishError> {
        let Some(contact) = self.pick(&self.contacts.clone()).cloned() else {
            return self.order();
        };
        let mut event = json!({"ChangeEventHeader": {"recordIds": [contact]}});
        if self.random.bool() {
            event["Phone"] = json!(self.phone());
        } else {
            event["Name"] = json!({"LastName": self.text(&LAST_NAMES)});
        }
        self.transaction([(CONTACTS, event)])
    }

    fn order(&mut self) -> Result<Vec<Published>, PublishError> {
        self.orders += 1;
        let city = self.pick(&CITIES).copied().unwrap_or_default().0;
        let event = json!({
            "OrderNumber__c": format!("O-{}", self.orders),
            "Status__c": self.text(&STATUSES),
            "City__c": city,
            "Amount__c": f64::from(self.random.u32(100..100_000)) / 100.0,
            "Express__c": self.random.bool(),
        });
        Ok(vec![self.org.publish(ORDERS, event)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::avro::Schema;
    use crate::emulator::{Emulator, EmulatorConfig};

    #[test]
    fn the_schemas_are_named_by_their_ids() {
        for (topic, text) in SCHEMAS {
            let schema = Schema::parse(text).unwrap();
            let name = format!("{}.{}.avsc", schema.record_name(), schema.fingerprint());
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
            assert!(folder.join(&name).is_file(), "{name}");
            assert!(topic.ends_with(&**schema.record_name()));
        }
    }

    #[tokio::test]
    async fn a_busy_while_of_the_sample_business_is_published_without_a_refusal() {
        let emulator = Emulator::start(EmulatorConfig::default()).await.unwrap();
        add_topics(&emulator).unwrap();
        let mut traffic = Traffic::new(emulator.clone(), Some(1));
        let mut published = 0;
        for _ in 0..500 {
            published += traffic.step().unwrap().len();
        }
        assert!(published > 500);
        assert_eq!(emulator.state().events, published);
    }
}
