//! Rewinds that people ask for (design 3.1, rule 13): between two stints of a subscription, the position is
//! set, under a new epoch.

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::backoff::Backoff;
use super::{STORE_RETRY, Shared};
use crate::config::Start;
use crate::store::{
    CommandKind, CommandState, Lease, ReplayArguments, StoreError, StoredCommand, TakenOver,
};

/// What came of looking for rewinds.
pub(super) enum Rewound {
    /// Where to go on from; `None` where none was asked for.
    Ready(Option<Box<TakenOver>>),
    /// Told to stop meanwhile. The lease to give back: that of the last rewind, where one was carried out.
    Stopped(Lease),
    /// Another worker has taken over.
    Fenced,
}

/// Carries out what is asked for, oldest first, however long the store is away.
pub(super) async fn carry_out(shared: &Shared, lease: &Lease, stop: &CancellationToken) -> Rewound {
    let mut backoff = Backoff::new(STORE_RETRY);
    let mut taken: Option<TakenOver> = None;
    let stopped = |taken: Option<TakenOver>| {
        Rewound::Stopped(taken.map_or_else(|| lease.clone(), |taken| taken.lease))
    };
    loop {
        let attempt = attempt(shared, lease, &mut taken);
        let error = tokio::select! {
            biased;
            done = attempt => match done {
                Ok(()) => return Rewound::Ready(taken.map(Box::new)),
                Err(error) => error,
            },
            () = stop.cancelled() => return stopped(taken),
        };
        if matches!(error, StoreError::Fenced { .. }) {
            return Rewound::Fenced;
        }
        let pause = backoff.next_pause();
        warn!(
            subscription = lease.key.name,
            error = %error,
            pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            "cannot look for what is asked of this subscription; it is tried again"
        );
        tokio::select! {
            () = stop.cancelled() => return stopped(taken),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// What the subscription begins with, where a rewind was withdrawn after it had stopped for it.
pub(super) async fn found_again(
    shared: &Shared,
    lease: &Lease,
    stop: &CancellationToken,
) -> Rewound {
    let mut backoff = Backoff::new(STORE_RETRY);
    loop {
        match shared.store.taken(lease).await {
            Ok(taken) => return Rewound::Ready(Some(Box::new(taken))),
            Err(StoreError::Fenced { .. }) => return Rewound::Fenced,
            Err(error) => warn!(
                subscription = lease.key.name,
                error = %error,
                "cannot read where this subscription stands; it is tried again"
            ),
        }
        tokio::select! {
            () = stop.cancelled() => return Rewound::Stopped(lease.clone()),
            () = tokio::time::sleep(backoff.next_pause()) => {}
        }
    }
}

async fn attempt(
    shared: &Shared,
    lease: &Lease,
    taken: &mut Option<TakenOver>,
) -> Result<(), StoreError> {
    loop {
        let lease = taken.as_ref().map_or(lease, |taken| &taken.lease).clone();
        let open = shared.store.open_commands(&lease).await?;
        let Some(command) = open.iter().find(|c| c.kind == CommandKind::Rewind) else {
            return Ok(());
        };
        if let Some(rewound) = one(shared, &lease, command).await? {
            *taken = Some(rewound);
        }
    }
}

async fn one(
    shared: &Shared,
    lease: &Lease,
    command: &StoredCommand,
) -> Result<Option<TakenOver>, StoreError> {
    let (store, id) = (&shared.store, command.id);
    let to = match target(command) {
        Ok(to) => to,
        Err(why) => {
            let failed = CommandState::Failed;
            store.end_command(lease, id, failed, &why, None).await?;
            return Ok(None);
        }
    };
    let outcome = match &to {
        Start::Earliest => "begins at the earliest event that the bus keeps".to_owned(),
        Start::Latest => {
            "begins with what comes next; what it skipped is recorded as a hole".to_owned()
        }
        Start::After(place) => format!("begins after {place}"),
    };
    let taken = store.rewind(lease, id, &to, &outcome).await?;
    if let Some(taken) = &taken {
        info!(
            subscription = lease.key.name,
            command = id,
            epoch = taken.lease.epoch,
            outcome,
            "subscription rewound: older values will follow newer ones"
        );
    }
    Ok(taken)
}

/// Where to, as a command says it.
fn target(command: &StoredCommand) -> Result<Start, String> {
    let arguments: ReplayArguments = serde_json::from_value(command.arguments.clone())
        .map_err(|error| format!("its arguments cannot be read: {error}"))?;
    begin(&arguments)
}

/// Where a command says to begin.
pub(super) fn begin(arguments: &ReplayArguments) -> Result<Start, String> {
    match arguments.from.as_str() {
        "latest" => Ok(Start::Latest),
        "earliest" => Ok(Start::Earliest),
        id => id
            .parse()
            .map(Start::After)
            .map_err(|error| format!("`from` of its arguments: {error}")),
    }
}

#[cfg(test)]
#[cfg(feature = "sqlite")]
mod tests {
    use std::time::Duration;

    use sqlx::{AssertSqlSafe, Connection};

    use super::super::testing::Site;
    use super::*;

    #[tokio::test]
    async fn a_stop_after_a_rewind_gives_back_the_lease_of_the_rewind() {
        let site = Site::new().await;
        let (store, lease) = (&site.shared.store, &site.taken.lease);
        for from in ["earliest", "0a"] {
            let arguments = serde_json::json!({ "from": from });
            let kind = CommandKind::Rewind;
            let asked = store.ask(&lease.key.org_id, &lease.key.name, kind, &arguments, None);
            asked.await.unwrap();
        }
        // The store takes the first and not the second.
        let last = lease.epoch + 1;
        let url = format!("sqlite://{}/store.db", site.folder.path().display());
        let mut conn = sqlx::SqliteConnection::connect(&url).await.unwrap();
        let trigger = format!(
            "create trigger full before update of epoch on subscription when new.epoch > {last} \
             begin select raise(abort, 'no room'); end"
        );
        sqlx::raw_sql(AssertSqlSafe(trigger))
            .execute(&mut conn)
            .await
            .unwrap();
        let stop = CancellationToken::new();
        let rewinding = async {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
            while store.subscriptions().await.unwrap()[0].epoch != last {
                assert!(
                    tokio::time::Instant::now() < deadline,
                    "nothing was rewound"
                );
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            stop.cancel();
        };
        let (rewound, ()) = tokio::join!(carry_out(&site.shared, lease, &stop), rewinding);
        let Rewound::Stopped(newest) = rewound else {
            panic!("it did not stop");
        };
        assert_eq!((newest.epoch, &newest.key), (last, &lease.key));
    }
}
