//! Which parked events a command is about.

use clap::Args;

use super::super::Failure;
use super::super::connect::read;
use crate::letters;
use crate::store::{LetterSelection, LetterSummary, Store};

/// Which open parked events: by number, or all that every given option lets through.
#[derive(Debug, Clone, Args)]
#[group(id = "which", required = true, multiple = true)]
pub(super) struct Choice {
    /// Their numbers, as `dead-letters list` shows them
    #[arg(value_name = "ID")]
    ids: Vec<i64>,
    /// Those of this subscription
    #[arg(long, value_name = "NAME")]
    subscription: Option<String>,
    /// Those that this handler could not handle
    #[arg(long, value_name = "NAME")]
    handler: Option<String>,
    /// Those parked for this reason, as for `list`
    #[arg(long)]
    reason: Option<String>,
    /// All that are open
    #[arg(long, conflicts_with_all = ["ids", "subscription", "handler", "reason"])]
    all: bool,
}

impl Choice {
    pub(super) fn selection(&self) -> LetterSelection {
        LetterSelection {
            ids: self.ids.clone(),
            subscription: self.subscription.clone(),
            handler: self.handler.clone(),
            reason: self.reason.clone(),
        }
    }

    /// The open ones among them, oldest first.
    pub(super) async fn open(&self, store: &dyn Store) -> Result<Vec<LetterSummary>, Failure> {
        let found = read(store.select_letters(&self.selection()).await)?;
        let missing = self.ids.iter().find(|id| {
            let is_it = |letter: &LetterSummary| letter.placed.id == **id;
            !found.iter().any(is_it)
        });
        match missing {
            None => Ok(found),
            Some(id) => Err(self.why_missing(store, *id).await?),
        }
    }

    async fn why_missing(&self, store: &dyn Store, id: i64) -> Result<Failure, Failure> {
        let known = read(store.letter_summaries(&[id]).await)?;
        let why = match known.first() {
            None => letters::unknown(id),
            Some(letter) if letter.state != "open" => letters::settled(id, &letter.state),
            Some(_) => format!("parked event {id} is none of those that the other options name"),
        };
        Ok(Failure::Failed(anyhow::anyhow!(why)))
    }
}
