//! The cluster: which broker leads which partition, and a connection to each that is needed.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::connection::{Address, Connection, Dial};
use super::trouble::{Kind, Trouble};
use super::wire::{INIT_PRODUCER_ID, METADATA, Metadata, ProducerId, Reader, TopicState};

/// How long what is known of a topic is used: partitions may be added.
const LONGEST_KNOWN: Duration = Duration::from_secs(300);

/// Connections are made one at a time for each address. Who waited while one could not be made shares the failure.
type Slot = tokio::sync::Mutex<Option<Result<Arc<Connection>, (Instant, Trouble)>>>;

pub(super) struct Cluster {
    /// Where to ask who else there is.
    first: Vec<Address>,
    dial: Dial,
    known: Mutex<Known>,
    connections: Mutex<HashMap<Address, Arc<Slot>>>,
    /// One question at a time.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    brokers: HashMap<i32, Address>,
    topics: HashMap<String, (Instant, Arc<TopicState>)>,
}

impl Cluster {
    pub(super) fn new(first: Vec<Address>, dial: Dial) -> Self {
        Self {
            first,
            dial,
            known: Mutex::default(),
            connections: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        }
    }

    /// Hosts and ports as configured.
    pub(super) fn name(&self) -> String {
        let names: Vec<String> = self.first.iter().map(Address::to_string).collect();
        names.join(", ")
    }

    pub(super) fn request_timeout(&self) -> Duration {
        self.dial.request_timeout
    }

    /// What is known of a topic, if not from before `since`.
    pub(super) async fn topic(
        &self,
        topic: &str,
        since: Option<Instant>,
    ) -> Result<Arc<TopicState>, Trouble> {
        if let Some(state) = self.known(topic, since) {
            return Ok(state);
        }
        let _one = self.asking.lock().await;
        // Another may have asked meanwhile.
        if let Some(state) = self.known(topic, since) {
            return Ok(state);
        }
        let asked_at = Instant::now();
        let (_, state) = self.describe(topic, false).await?;
        let state = Arc::new(state);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = (asked_at, state.clone());
        known.topics.insert(topic.to_owned(), entry);
        Ok(state)
    }

    fn known(&self, topic: &str, since: Option<Instant>) -> Option<Arc<TopicState>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (asked_at, state) = known.topics.get(topic)?;
        let late_enough = since.is_none_or(|since| *asked_at >= since);
        (late_enough && asked_at.elapsed() < LONGEST_KNOWN).then(|| state.clone())
    }

    /// Asks anew when the topic is needed next.
    pub(super) fn forget(&self, topic: &str) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.topics.remove(topic);
    }

    /// Asks for a topic, with what the user may do with it where that is wanted. Says which broker answered.
    pub(super) async fn describe(
        &self,
        topic: &str,
        operations: bool,
    ) -> Result<(String, TopicState), Trouble> {
        let (at, metadata) = self.ask(Some(topic), operations).await?;
        let state = metadata.topic.ok_or_else(|| Trouble::not_understood(&at))?;
        match state.error {
            0 if state.leaders.is_empty() => Err(Trouble::not_understood(&at)),
            0 => Ok((at, state)),
            code => Err(Trouble::code(&at, code, Some(topic), None)),
        }
    }

    /// Asks which brokers there are.
    pub(super) async fn look(&self) -> Result<(), Trouble> {
        self.ask(None, false).await.map(drop)
    }

    /// Asks one broker after the other until one answers, beginning anywhere.
    async fn ask(
        &self,
        topic: Option<&str>,
        operations: bool,
    ) -> Result<(String, Metadata), Trouble> {
        let mut addresses = self.addresses();
        fastrand::shuffle(&mut addresses);
        let mut worst = None;
        for address in &addresses {
            match self.ask_one(address, topic, operations).await {
                Ok(answer) => return Ok(answer),
                Err(trouble) => {
                    // A broker that answers, and what it minds, says more than one that is away.
                    let tells_more = |old: &Trouble| {
                        old.kind == Kind::Connection || trouble.kind != Kind::Connection
                    };
                    if worst.as_ref().is_none_or(tells_more) {
                        worst = Some(trouble);
                    }
                }
            }
        }
        Err(worst.unwrap_or_else(|| Trouble::lasting("no broker of Kafka is named")))
    }

    async fn ask_one(
        &self,
        address: &Address,
        topic: Option<&str>,
        operations: bool,
    ) -> Result<(String, Metadata), Trouble> {
        let connection = self.connection(address).await?;
        let version = connection.version(METADATA)?;
        let request = Metadata::ask(version, topic, operations);
        let answer = connection.ask(METADATA, version, &request).await?;
        let metadata = connection.read(Metadata::read(version, Reader(&answer)))?;
        self.learn(&metadata);
        Ok((connection.at().to_owned(), metadata))
    }

    /// The brokers that are known to be there, and those that were configured.
    fn addresses(&self) -> Vec<Address> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let all: HashSet<&Address> = known.brokers.values().chain(&self.first).collect();
        all.into_iter().cloned().collect()
    }

    fn learn(&self, metadata: &Metadata) {
        let brokers = metadata.brokers.iter().map(|broker| {
            let (host, port) = (broker.host.clone(), broker.port);
            (broker.id, Address { host, port })
        });
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.brokers = brokers.collect();
        let mut connections = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Brokers that are gone keep no connection; calls that hold one end by themselves.
        connections.retain(|address, _| {
            self.first.contains(address) || known.brokers.values().any(|known| known == address)
        });
    }

    /// A connection to the broker with this number.
    pub(super) async fn broker(&self, id: i32) -> Result<Arc<Connection>, Trouble> {
        let address = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.brokers.get(&id).cloned()
        };
        match address {
            Some(address) => self.connection(&address).await,
            None => Err(Trouble::new(
                Kind::Passing,
                format!(
                    "broker {id} of Kafka at {} is not there just now",
                    self.name()
                ),
            )),
        }
    }

    async fn connection(&self, address: &Address) -> Result<Arc<Connection>, Trouble> {
        let slot = {
            let mut connections = self
                .connections
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            connections.entry(address.clone()).or_default().clone()
        };
        let asked_at = Instant::now();
        let mut slot = slot.lock().await;
        match &*slot {
            Some(Ok(connection)) if connection.is_fresh() => return Ok(connection.clone()),
            Some(Err((failed_at, trouble))) if *failed_at > asked_at => return Err(trouble.clone()),
            _ => {}
        }
        let made = self.dial.connect(address).await.map(Arc::new);
        *slot = Some(made.clone().map_err(|trouble| (Instant::now(), trouble)));
        made
    }

    /// An identity under which brokers keep repeats out.
    pub(super) async fn producer_id(&self, broker: &Connection) -> Result<ProducerId, Trouble> {
        let version = broker.version(INIT_PRODUCER_ID).map_err(|trouble| {
            Trouble::lasting(format!("{}: set `idempotent = false`", trouble.reason))
        })?;
        let answer = broker
            .ask(INIT_PRODUCER_ID, version, &ProducerId::ask())
            .await?;
        broker
            .read(ProducerId::read(Reader(&answer)))?
            .map_err(|code| Trouble::code(broker.at(), code, None, None))
    }

    /// As [`Cluster::producer_id`], of any broker: for looking whether it would be given.
    pub(super) async fn try_producer_id(&self) -> Result<(), Trouble> {
        let mut trouble = Trouble::lasting("no broker of Kafka is known");
        for address in self.addresses() {
            let asked = async {
                let broker = self.connection(&address).await?;
                self.producer_id(&broker).await
            };
            match asked.await {
                Ok(_) => return Ok(()),
                Err(error) => trouble = error,
            }
        }
        Err(trouble)
    }
}
