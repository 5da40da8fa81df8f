//! `orgstream dead-letters discard`: gives parked events up.

use std::collections::HashSet;
use std::io::{self, BufRead as _, IsTerminal as _};
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::super::Failure;
use super::super::connect::{JsonFlag, read};
use super::super::output::{ask, note, print_json, print_line};
use super::choice::Choice;
use crate::letters::discard::{Plan, events};
use crate::store::Store;

/// Give parked events up: they are never handed over.
///
/// Of a transaction that is handed over whole, all of its events go together. Their rows stay, marked as discarded, until `[retention]` prunes them. Events that were parked behind them
/// go to their handler next, oldest first.
///
/// Asks before it does anything, unless `--yes` is given; without a terminal to ask on, `--yes` is needed.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  orgstream dead-letters discard 7\n  orgstream dead-letters discard --subscription accounts --reason undecodable --yes"
)]
pub(super) struct DiscardArgs {
    #[command(flatten)]
    choice: Choice,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    output: JsonFlag,
}

pub(super) async fn run(
    store: &dyn Store,
    unordered: &HashSet<String>,
    args: DiscardArgs,
) -> Result<ExitCode, Failure> {
    let chosen = args.choice.open(store).await?;
    if chosen.is_empty() {
        note("no parked events are open that you name");
        if args.output.json {
            print_json(&json!({"discarded": [], "released": 0}))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let plan = read(Plan::of(store, &chosen, unordered).await)?;
    if let Some(company) = plan.company() {
        note(&company);
    }
    if !args.yes && !confirmed(&plan.what())? {
        note("nothing was discarded");
        return Ok(ExitCode::FAILURE);
    }
    let discarded = read(plan.carry_out(store).await)?;
    let released = plan.released;
    if args.output.json {
        print_json(&json!({"discarded": discarded, "released": released}))?;
    } else {
        print_line(&what_was_done(discarded.len(), released))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn what_was_done(count: usize, released: usize) -> String {
    let mut text = format!("{} discarded", events(count));
    if released > 0 {
        let parked = events(released);
        text.push_str(&format!("; {parked} parked behind go to the handler now"));
    }
    text
}

/// Asks on the terminal.
fn confirmed(what: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Failed(anyhow::anyhow!(
            "there is no terminal to ask on ({what}): say --yes if you mean it"
        )));
    }
    ask(&format!("{what}. Go on? [y/N] "));
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(anyhow::Error::from)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
