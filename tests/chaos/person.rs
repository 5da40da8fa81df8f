//! A person who sees to what is parked, with the commands that people have.

use std::time::{Duration, Instant};

use super::account::Letter;
use super::audit::Audit;
use super::trouble::Site;

/// How long it may take until nothing is parked any more.
const LIMIT: Duration = Duration::from_secs(120);

/// Gives up what nobody can decode, and has everything else handed over again, until nothing is left.
pub(crate) async fn tidy(site: &Site, audit: &Audit) {
    site.recorder.mend();
    site.note("handlers take everything now, and what is parked is seen to");
    let began = Instant::now();
    let mut asked: Option<Instant> = None;
    loop {
        let left = match open(site, audit).await {
            Ok(left) => left,
            Err(error) => return site.broke(format!("the audit cannot be read: {error:#}")),
        };
        if left.is_empty() {
            return site.note("nothing is parked any more");
        }
        if began.elapsed() > LIMIT {
            let some: Vec<_> = left.iter().take(3).collect();
            return site.broke(format!("{} letters stay parked: {some:?}", left.len()));
        }
        // Again now and then: what was parked after it was asked for needs asking, too.
        if asked.is_none_or(|at| at.elapsed() > Duration::from_secs(5)) {
            // Of an event whose schema could not be had, only another attempt tells whether it is one of these.
            for reason in ["undecodable", "schema_refused"] {
                if left.iter().any(|letter| letter.reason == reason) {
                    site.ask(&["dead-letters", "discard", "--reason", reason, "--yes"])
                        .await;
                }
            }
            site.ask(&["dead-letters", "retry", "--all", "--no-wait"])
                .await;
            asked = Some(Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn open(site: &Site, audit: &Audit) -> anyhow::Result<Vec<Letter>> {
    let mut open = Vec::new();
    for subscription in &site.plan.subscriptions {
        let stored = audit.stored(&subscription.names()).await?;
        open.extend(
            stored
                .letters
                .into_iter()
                .filter(|letter| letter.state == "open"),
        );
    }
    Ok(open)
}
