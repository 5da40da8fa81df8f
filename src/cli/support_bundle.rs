//! `orgstream support-bundle`: what somebody else needs to know to help, and nothing that is none of their business.

mod parts;
mod redact;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use serde_json::{Map, Value, json};

use self::redact::Secrets;
use super::Failure;
use super::check;
use super::output::{note, print, print_line};
use crate::event::rfc3339;

/// Write what somebody needs who is to help you into one file, without secrets or contents of events.
///
/// The file is JSON that a person can read: version and platform; the configuration in effect, secrets masked, or
/// what is wrong with it; names, not values, of the variables that are set; the store's kind, migrations, pooler and
/// limits; each subscription with its position, lease and state; the last changes of state with their rpc ids, for
/// Salesforce's support; holes; parked events counted by handler and reason; the workers' metrics; the event
/// deliveries; with `--check` what `orgstream check` finds.
///
/// Never in it: payloads, values of fields, record IDs, what handlers said of events, tokens, keys, passwords. Please
/// read it all the same before you hand it on: it names your org, user, topics and hosts.
///
/// It works with the database away or the configuration wrong, and says what is missing. The file is for you alone
/// (mode 600), and an existing one is not replaced.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  orgstream support-bundle\n  orgstream support-bundle --check --output bundle.json\n  orgstream support-bundle --output - | less"
)]
pub(super) struct SupportBundleArgs {
    /// Where to write it; - is standard output [default: orgstream-support-TIME.json, here]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Run the checks of `orgstream check`, and put in what they find: signs in to the org
    #[arg(long)]
    check: bool,
}

/// What it is made of, for a person who is about to hand it on.
const ABOUT: &str = "made by `orgstream support-bundle`. It holds the configuration with its secrets masked, names of \
                     variables, positions, states, rpc ids, counts and metrics. It holds no payloads, no values of fields, \
                     no record IDs, no words of handlers, no tokens, keys or passwords";

pub(super) async fn run(path: Option<&Path>, args: SupportBundleArgs) -> Result<ExitCode, Failure> {
    note(&format!("{ABOUT}."));
    let mut bundle = Bundle::default();
    parts::program(&mut bundle);
    let loaded = parts::configuration(path, &mut bundle);
    parts::store(path, loaded.as_ref(), &mut bundle).await;
    if args.check {
        let mut report = check::Report::kept();
        match check::examine(path, &mut report).await {
            Ok(_) => bundle.put("check", redact::findings(report.json())),
            Err(failure) => bundle.lacks("check", &failure.text()),
        }
    }
    let text = bundle.text(&Secrets::of_process(
        loaded.as_ref().map(|loaded| &loaded.config),
    ))?;
    let file = match args.output {
        Some(file) if file == Path::new("-") => {
            print(&text)?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(file) => file,
        None => {
            let time = rfc3339(SystemTime::now()).replace([':', '-'], "");
            let time = time.split('.').next().unwrap_or_default();
            format!("orgstream-support-{}.json", time.trim_end_matches('Z')).into()
        }
    };
    write(&file, &text).map_err(|error| {
        Failure::Failed(anyhow::anyhow!("cannot write {}: {error}", file.display()))
    })?;
    print_line(&file.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// A new file, for its owner alone.
fn write(file: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// The parts so far, in their order, and what could not be had.
#[derive(Debug, Default)]
struct Bundle {
    parts: Map<String, Value>,
    missing: Vec<String>,
}

impl Bundle {
    fn put(&mut self, name: &str, value: Value) {
        self.parts.insert(name.to_owned(), value);
    }

    fn lacks(&mut self, name: &str, why: &str) {
        self.missing.push(format!("{name}: {why}"));
    }

    /// As JSON text. Whatever secret of this process is in it all the same is taken out last.
    fn text(self, secrets: &Secrets) -> Result<String, Failure> {
        let mut whole = Map::new();
        whole.insert("about".to_owned(), ABOUT.into());
        whole.insert("made_at".to_owned(), rfc3339(SystemTime::now()).into());
        whole.insert("missing".to_owned(), json!(self.missing));
        whole.extend(self.parts);
        let mut whole = Value::Object(whole);
        secrets.take_out(&mut whole);
        let text = serde_json::to_string_pretty(&whole).map_err(anyhow::Error::from)?;
        Ok(text + "\n")
    }
}
