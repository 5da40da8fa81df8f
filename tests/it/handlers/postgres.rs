//! The `postgres` handler in the store's own database.

use super::endurance::{FarSide, Received, endure};
use crate::support::Store;
use crate::support::cluster::Cluster;

/// Rows beside the store; the server is the store's too.
struct Appended(Cluster);

impl FarSide for Appended {
    const EXACTLY_ONCE: bool = true;

    fn handler(&self) -> String {
        "type = \"postgres\"\nmode = \"append\"".into()
    }

    fn store(&self) -> Option<Store> {
        let url = Cluster::url(&self.0.addr(), "postgres", "postgres");
        Some(Store::at(url))
    }

    async fn restart(&mut self) {
        self.0.down("immediate");
        self.0.up();
    }

    async fn received(&self) -> Vec<Received> {
        let mut connection = self.0.connection("postgres").await;
        let rows: Vec<(String, String)> =
            sqlx::query_as("select subject, data ->> 'Name' from orgstream_events order by number")
                .fetch_all(&mut connection)
                .await
                .unwrap_or_default(); // no table yet
        rows.iter()
            .map(|(subject, number)| Received::new(subject, number))
            .collect()
    }
}

#[tokio::test]
async fn ten_thousand_events_are_appended_once_through_kills_and_restarts() {
    if let Some(cluster) = Cluster::start().await {
        endure(Appended(cluster)).await;
    }
}
