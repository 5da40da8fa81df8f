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
    /// Told to stop meanwhile.
    Stopped,
    /// Another worker has taken over.
    Fenced,
}

/// Carries out what is asked for, oldest first, however long the store is away.
pub(super) async fn carry_out(shared: &Shared, lease: &Lease, stop: &CancellationToken) -> Rewound {
    let mut backoff = Backoff::new(STORE_RETRY);
    let mut taken = None;
    loop {
        let attempt = attempt(shared, lease, &mut taken);
        let error = tokio::select! {
            biased;
            done = attempt => match done {
                Ok(()) => return Rewound::Ready(taken.map(Box::new)),
                Err(error) => error,
            },
            () = stop.cancelled() => return Rewound::Stopped,
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
            () = stop.cancelled() => return Rewound::Stopped,
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
            () = stop.cancelled() => return Rewound::Stopped,
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
