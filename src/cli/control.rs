//! `orgstream pause`, `resume` and `rename`: asked in the store, carried out by whoever runs the
//! subscription.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;

use super::Failure;
use super::connect::{self, read};
use super::interrupt::Interrupt;
use super::output::{note, print_line};
use crate::config::{self, ProcessEnv};
use crate::event::OrgId;
use crate::status::owner;
use crate::store::{Renamed, Store, StoreError, SubscriptionStatus};

/// How often the store is asked whether the owner has let go.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// How long a rename waits for the owner: longer than finishing what is in flight takes.
const RENAME_LIMIT: Duration = Duration::from_secs(30);

/// How long a command goes on asking a store that does not answer: longer than a database takes to restart.
const STORE_LIMIT: Duration = Duration::from_secs(30);

/// Let a subscription rest until it is resumed.
///
/// Whoever runs it finishes what is in flight, stores the position and lets it go, and no worker takes it
/// over, after a restart neither. Waits until that is so, and says who is waited for. Ctrl-C ends the waiting,
/// not the pause.
///
/// Events wait on the bus meanwhile, which keeps them for 72 hours at most: what is older when it is
/// resumed is a recorded hole.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  orgstream pause orders\n\nExits with 1 if nobody knows the subscription, or the waiting was ended."
)]
pub(super) struct PauseArgs {
    /// The subscription
    #[arg(value_name = "NAME")]
    name: String,
}

/// Let a paused subscription run again.
///
/// A worker takes it over within a second or two, and goes on at the stored position.
///
/// Does nothing to one that is not paused.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  orgstream resume orders")]
pub(super) struct ResumeArgs {
    /// The subscription
    #[arg(value_name = "NAME")]
    name: String,
}

/// Give a subscription another name, and keep its position.
///
/// For after its name was changed in the configuration: a position belongs to its name, so `orgstream run`
/// refuses a new name for a topic that was streamed under another one until it is told. Everything goes
/// along: the position, parked events, holes, marks.
///
/// Where a worker still runs it under the old name, that one is asked to let go, and waited for, 30 seconds
/// at most. Ctrl-C before that leaves everything as it was. A database that is away meanwhile is asked again for
/// half a minute.
///
/// Killed in between, or without its database for longer, it may leave the old name paused: run it again, which
/// goes on where that stood, or `orgstream resume OLD`. What a person had paused stays paused.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  orgstream rename accounts customers\n\nExits with 1 if there is no OLD, NEW has a position of its own, or the owner did not let go."
)]
pub(super) struct RenameArgs {
    /// The name in the store
    #[arg(value_name = "OLD")]
    old: String,
    /// The name in the configuration
    #[arg(value_name = "NEW")]
    new: String,
}

/// The store, and the org that it belongs to.
struct Place {
    store: Arc<dyn Store>,
    org_id: OrgId,
}

impl Place {
    async fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let config = config::load_store(path, &ProcessEnv)?;
        let store = connect::store(&config).await?;
        match read(store.bound_org().await)? {
            Some(org_id) => Ok(Self { store, org_id }),
            None => Err(failed(
                "the store knows no subscription yet: `orgstream run` makes them".to_owned(),
            )),
        }
    }

    async fn status(&self, name: &str) -> Result<Option<SubscriptionStatus>, StoreError> {
        let all = self.store.subscriptions().await?;
        let ours = |one: &SubscriptionStatus| one.key.name == name && one.key.org_id == self.org_id;
        Ok(all.into_iter().find(ours))
    }

    /// Makes a call until the store has answered it, for a while, or until Ctrl-C: the database may be away just now.
    async fn insist<T>(
        &self,
        interrupt: Option<&Interrupt>,
        call: impl AsyncFn() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut away_since = None;
        loop {
            let error = match call().await {
                Err(error @ StoreError::Unavailable(_)) => error,
                answer => return answer,
            };
            let since = *away_since.get_or_insert_with(|| {
                let limit = STORE_LIMIT.as_secs();
                note(&format!("{error}: asking again for {limit} s at most"));
                Instant::now()
            });
            let pause = tokio::time::sleep(LOOK_EVERY);
            let goes_on = match interrupt {
                Some(interrupt) => interrupt.or(pause).await.is_some(),
                None => {
                    pause.await;
                    true
                }
            };
            if !goes_on || since.elapsed() >= STORE_LIMIT {
                return Err(error);
            }
        }
    }

    /// Says that there is no such subscription, and which there are.
    async fn unknown(&self, name: &str) -> Failure {
        let known: Vec<String> = match self.store.subscriptions().await {
            Ok(all) => all.into_iter().map(|one| one.key.name).collect(),
            Err(_) => Vec::new(),
        };
        failed(format!(
            "the store knows no subscription `{name}`; it knows: {}",
            known.join(", ")
        ))
    }

    /// Waits until nobody runs a subscription. Gives who still does, where `limit` passed or Ctrl-C came.
    async fn let_go(
        &self,
        name: &str,
        limit: Option<Duration>,
        interrupt: &Interrupt,
    ) -> Result<Option<String>, Failure> {
        let began = Instant::now();
        let mut told: Option<String> = None;
        let unknown = || "its owner".to_owned();
        loop {
            // The store may hang.
            let status = self.insist(Some(interrupt), async || self.status(name).await);
            let Some(status) = interrupt.or(status).await else {
                return Ok(Some(told.unwrap_or_else(unknown)));
            };
            let owner = read(status)?.as_ref().and_then(owner);
            let Some(owner) = owner else { return Ok(None) };
            if told.as_ref() != Some(&owner) {
                note(&format!("{owner} runs {name}: waiting until it has let go"));
                told = Some(owner.clone());
            }
            if limit.is_some_and(|limit| began.elapsed() >= limit) {
                return Ok(Some(owner));
            }
            if interrupt.or(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
                return Ok(Some(owner));
            }
        }
    }
}

fn failed(text: String) -> Failure {
    Failure::Failed(anyhow::anyhow!(text))
}

pub(super) async fn pause(path: Option<&Path>, args: PauseArgs) -> Result<ExitCode, Failure> {
    let (name, place) = (args.name, Place::open(path).await?);
    let interrupt = Interrupt::listen()?;
    if !read(place.store.pause(&place.org_id, &name).await)? {
        return Err(place.unknown(&name).await);
    }
    let still = place.let_go(&name, None, &interrupt).await?;
    place.store.close().await;
    if let Some(owner) = still {
        return Err(failed(format!(
            "{name} is paused, but {owner} had not let it go yet"
        )));
    }
    print_line(&format!(
        "{name} is paused; `orgstream resume {name}` lets it run"
    ))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn resume(path: Option<&Path>, args: ResumeArgs) -> Result<ExitCode, Failure> {
    let (name, place) = (args.name, Place::open(path).await?);
    if !read(place.store.resume(&place.org_id, &name).await)? {
        return Err(place.unknown(&name).await);
    }
    place.store.close().await;
    print_line(&format!(
        "{name} may run: a worker that has it in its configuration takes it over"
    ))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn rename(path: Option<&Path>, args: RenameArgs) -> Result<ExitCode, Failure> {
    let RenameArgs { old, new } = args;
    config::valid_name(&new).map_err(|why| {
        failed(format!(
            "`{new}` cannot be the name of a subscription: {why}"
        ))
    })?;
    if old == new {
        return Err(failed(format!("{old} is called that already")));
    }
    let place = Place::open(path).await?;
    let renamed = place.insist(None, async || {
        place.store.rename(&place.org_id, &old, &new).await
    });
    let renamed = match renamed.await {
        Err(StoreError::Held { .. }) => rename_held(&place, &old, &new).await?,
        renamed => read(renamed)?,
    };
    match renamed {
        Renamed::Done => {
            place.store.close().await;
            print_line(&format!("{old} is called {new} now"))?;
            Ok(ExitCode::SUCCESS)
        }
        Renamed::Unknown => Err(place.unknown(&old).await),
        Renamed::NameTaken => Err(failed(format!(
            "{new} has a position of its own: nothing was renamed. Choose another name; or, if {new} is not needed \
             any more, run `orgstream rename {new} {new}-old` first"
        ))),
    }
}

/// Renames what a worker runs: pauses it, and lets it run on under the new name, or the old one where
/// nothing comes of it.
async fn rename_held(place: &Place, old: &str, new: &str) -> Result<Renamed, Failure> {
    if read(place.status(new).await)?.is_some() {
        return Ok(Renamed::NameTaken);
    }
    let interrupt = Interrupt::listen()?;
    let renamed = rename_let_go(place, old, new, &interrupt).await;
    if !matches!(renamed, Ok(Renamed::Done)) {
        let resumed = place.insist(None, async || {
            place.store.resume_unrenamed(&place.org_id, old).await
        });
        if let Err(error) = resumed.await {
            note(&format!(
                "{old} may still be paused ({error}): run `orgstream rename {old} {new}` again, which goes on from \
                 here; or `orgstream resume {old}`, if it is to keep its name"
            ));
        }
    }
    renamed
}

/// Renames it once its owner has let it go. The pause ends in the same transaction, so that nothing is left to be
/// undone.
async fn rename_let_go(
    place: &Place,
    old: &str,
    new: &str,
    interrupt: &Interrupt,
) -> Result<Renamed, Failure> {
    let (store, org_id) = (&place.store, &place.org_id);
    let paused = place.insist(Some(interrupt), async || {
        store.pause_to_rename(org_id, old).await
    });
    if !read(paused.await)? {
        return Ok(Renamed::Unknown);
    }
    let still = place.let_go(old, Some(RENAME_LIMIT), interrupt).await?;
    if let Some(owner) = still {
        return Err(failed(format!(
            "{owner} had not let {old} go yet: nothing was renamed"
        )));
    }
    let renamed = place.insist(Some(interrupt), async || {
        store.rename(org_id, old, new).await
    });
    read(renamed.await)
}
