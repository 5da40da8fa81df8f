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
/// at most. Ctrl-C before that leaves everything as it was. Killed in between, it leaves the old name paused:
/// run it again, or `orgstream resume OLD`.
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

    async fn status(&self, name: &str) -> Result<Option<SubscriptionStatus>, Failure> {
        let all = read(self.store.subscriptions().await)?;
        let ours = |one: &SubscriptionStatus| one.key.name == name && one.key.org_id == self.org_id;
        Ok(all.into_iter().find(ours))
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
            let Some(status) = interrupt.or(self.status(name)).await else {
                return Ok(Some(told.unwrap_or_else(unknown)));
            };
            let owner = status?.as_ref().and_then(owner);
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
    let renamed = match place.store.rename(&place.org_id, &old, &new).await {
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
    if place.status(new).await?.is_some() {
        return Ok(Renamed::NameTaken);
    }
    let status = place.status(old).await?;
    let was_paused = status.is_some_and(|one| one.paused_at.is_some());
    let interrupt = Interrupt::listen()?;
    read(place.store.pause(&place.org_id, old).await)?;
    let let_go = place.let_go(old, Some(RENAME_LIMIT), &interrupt);
    let renamed = match let_go.await {
        Ok(None) => read(place.store.rename(&place.org_id, old, new).await),
        Ok(Some(owner)) => Err(failed(format!(
            "{owner} had not let {old} go yet: nothing was renamed"
        ))),
        Err(failure) => Err(failure),
    };
    if !was_paused {
        let name = match &renamed {
            Ok(Renamed::Done) => new,
            _ => old,
        };
        if let Err(error) = place.store.resume(&place.org_id, name).await {
            note(&format!(
                "{name} is still paused ({error}): run `orgstream resume {name}`"
            ));
        }
    }
    renamed
}
