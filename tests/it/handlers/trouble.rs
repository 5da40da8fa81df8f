//! A daemon whose handler's far side is in trouble and is mended: nothing is lost or out of order.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::{Daemon, Emulator, Store, account_update, eventually, record};

const ACCOUNTS: &str = "/data/AccountChangeEvent";

/// The emulator, a daemon with one handler `far`, and how many events there were.
pub(super) struct Bench {
    org: Emulator,
    store: Store,
    config: String,
    pub(super) daemon: Daemon,
    published: usize,
}

impl Bench {
    /// Runs a daemon with a handler of these lines.
    pub(super) async fn start(handler: &str) -> Self {
        Self::start_in(Store::sqlite(), handler).await
    }

    /// As [`Bench::start`], with the place kept in this store.
    pub(super) async fn start_in(store: Store, handler: &str) -> Self {
        let retry = "attempts = 3, initial = \"50ms\", max = \"200ms\"";
        Self::start_trying(store, retry, handler).await
    }

    /// As [`Bench::start_in`], with these keys of `retry`.
    pub(super) async fn start_trying(store: Store, retry: &str, handler: &str) -> Self {
        let org = Emulator::start().await;
        let config = config(&org, &store, retry, handler);
        Self {
            daemon: Daemon::run(&config),
            org,
            store,
            config,
            published: 0,
        }
    }

    /// Publishes so many events of three records, whose field `Name` is their number from 0.
    pub(super) async fn publish(&mut self, count: usize) {
        let numbers = self.published..self.published + count;
        let event = |n: usize| account_update(&record(n % 3), &n.to_string());
        let events: Vec<Value> = numbers.map(event).collect();
        self.org.publish(ACCOUNTS, &events).await;
        self.published += count;
    }

    /// How many events [`Bench::publish`] has published.
    pub(super) fn published(&self) -> usize {
        self.published
    }

    /// As [`Bench::publish`], for one event of this name.
    pub(super) async fn publish_named(&mut self, name: &str) {
        let event = account_update(&record(9), name);
        self.org.publish(ACCOUNTS, &[event]).await;
    }

    /// As [`Bench::publish`], for one event of this record and name.
    pub(super) async fn publish_about(&self, record: &str, name: &str) {
        let event = account_update(record, name);
        self.org.publish(ACCOUNTS, &[event]).await;
    }

    /// Waits for a line of the daemon that the handler fails for all, with these texts.
    pub(super) async fn says_down(&self, texts: &[&str]) {
        let texts: Vec<&str> = [&["handler=far", "fails for all"], texts].concat();
        self.daemon.logged(&texts).await;
    }

    /// What `orgstream check` says of it all, and whether it is content.
    pub(super) async fn check(&self) -> (i32, String) {
        let (code, out, err) = Daemon::output(&["check"], &self.config, &BTreeMap::new()).await;
        (code, format!("{out}\n{err}"))
    }

    /// `orgstream check` finds fault, and says these texts; gives all that it says.
    pub(super) async fn checks(&self, said: &[&str]) -> String {
        let (code, text) = self.check().await;
        assert_eq!(code, 1, "{text}");
        for part in said {
            assert!(text.contains(part), "{part} in {text}");
        }
        text
    }

    /// What a command of `orgstream` with the same configuration says.
    pub(super) async fn output(&self, args: &[&str]) -> String {
        let (_, out, err) = Daemon::output(args, &self.config, &BTreeMap::new()).await;
        format!("{out}\n{err}")
    }

    /// Waits for a text in the daemon's status of the subscription or in its log.
    pub(super) async fn says(&self, text: &str) {
        eventually(text, async || {
            let status = self.store.subscription("accounts").await?;
            let said = status.detail.is_some_and(|detail| detail.contains(text));
            (said || self.daemon.log().iter().any(|line| line.contains(text))).then_some(())
        })
        .await;
    }

    /// Asks the daemon to stop, and waits for its end.
    pub(super) async fn stop(self) {
        assert_eq!(self.daemon.stop().await.1, 0);
    }

    /// The errors of what is parked.
    pub(super) async fn parked(&self) -> Vec<String> {
        let parked = self.store.parked().await;
        parked
            .into_iter()
            .map(|letter| letter.letter.error)
            .collect()
    }

    /// Nothing is parked.
    pub(super) async fn nothing_parked(&self) {
        assert_eq!(self.store.parked().await, []);
    }

    /// Waits until so many events are parked, and gives the errors.
    pub(super) async fn parks(&self, count: usize) -> Vec<String> {
        let parked = self.store.parks(count).await;
        parked
            .into_iter()
            .map(|letter| letter.letter.error)
            .collect()
    }
}

fn config(org: &Emulator, store: &Store, retry: &str, handler: &str) -> String {
    format!(
        "{}\n[store]\nurl = \"{}\"\n[[subscription]]\nname = \"accounts\"\ntopic = \"{ACCOUNTS}\"\n\
         start = \"earliest\"\n[[subscription.handler]]\nname = \"far\"\n\
         retry = {{ {retry} }}\n{handler}\n",
        org.salesforce(),
        store.url
    )
}
