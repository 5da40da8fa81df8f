//! `orgstream handler-test`: the command as a process, with the handlers that orgstream brings along.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};

use orgstream::config::{HandlerConfig, StoreConfig, SubscriptionConfig};
use orgstream::conformance::{self, FarSide, Mistake, Outcome, Report, Script, Step};
use orgstream::handler::{
    BatchAnswer, EventBatch, Options, Registry, TransactionalHandler, async_trait, sql,
};
use orgstream::sqlx::Connection as _;
use orgstream::sqlx::{self as sqlx, PgConnection};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::daemon::project;
use crate::support::{Daemon, Receiver, Store};

/// A configuration with one subscription and these handlers. Nothing of it says how to sign in.
fn configured(store: &str, handlers: &str) -> String {
    format!(
        "[store]\nurl = \"{store}\"\n[[subscription]]\nname = \"accounts\"\n\
         topic = \"/data/AccountChangeEvent\"\n{handlers}"
    )
}

pub(super) fn sqlite(handlers: &str) -> String {
    configured("sqlite://nothing-is-kept-there.db", handlers)
}

/// What the command said.
pub(super) struct Said {
    code: i32,
    report: Value,
    err: String,
}

impl Said {
    /// How each step ended, but for those that were fine.
    fn troubles(&self) -> Vec<(&str, &str)> {
        let steps = self.report["steps"].as_array().unwrap().iter();
        steps
            .map(|step| {
                let word = |key: &str| step[key].as_str().unwrap();
                (word("step"), word("outcome"))
            })
            .filter(|(_, outcome)| *outcome != "ok")
            .collect()
    }

    fn found(&self, mistake: &str) -> &Value {
        let mut findings = self.report["findings"].as_array().unwrap().iter();
        findings
            .find(|finding| finding["mistake"] == mistake)
            .unwrap_or_else(|| panic!("no {mistake} in {:#}", self.report))
    }

    pub(super) fn is_sound(&self) {
        assert_eq!(
            (self.code, self.troubles()),
            (0, vec![]),
            "{:#}\n{}",
            self.report,
            self.err
        );
    }
}

/// `orgstream handler-test --yes --json` with these arguments.
pub(super) async fn tested(config: &str, arguments: &[&str]) -> Said {
    let arguments = [&["handler-test", "--yes", "--json"], arguments].concat();
    let path = std::env::var("PATH").unwrap_or_default();
    let env = BTreeMap::from([("PATH", path)]);
    let (code, out, err) = Daemon::output(&arguments, config, &env).await;
    let report = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}\n{err}"));
    Said { code, report, err }
}

#[tokio::test]
async fn log_is_sound_and_its_lines_go_elsewhere_than_the_result() {
    let config = sqlite("[[subscription.handler]]\ntype = \"log\"\n");
    let said = tested(&config, &["log"]).await;
    said.is_sound();
    let mark = said.report["mark"].as_str().unwrap();
    let events = said
        .err
        .lines()
        .filter(|line| line.contains(mark) && line.starts_with('{'));
    assert!(events.count() > 200);
    assert!(said.err.contains("00D000000000000EAA"), "{}", said.err);
}

#[tokio::test]
async fn webhook_is_sound_with_a_receiver_that_is() {
    let receiver = receiver(422).await;
    let bad = ["hook", "--bad", r#"{"Phone": "unwanted"}"#];
    let said = tested(&hook(&receiver, ""), &bad).await;
    said.is_sound();
    let mark = said.report["mark"].as_str().unwrap();
    let accepted = receiver.accepted();
    let ids: BTreeSet<&str> = accepted
        .iter()
        .filter_map(|event| event["id"].as_str())
        .collect();
    assert!(ids.len() > 150 && ids.iter().all(|id| id.starts_with(mark)));
    assert!(
        accepted
            .iter()
            .all(|event| event["orgid"] == "00D000000000000EAA")
    );
}

#[tokio::test]
async fn what_a_webhooks_receiver_gets_wrong_is_found() {
    // What it does not want it answers with as if it were not well.
    let receiver = receiver(500).await;
    let bad = [
        "hook",
        "--patience",
        "1s",
        "--bad",
        r#"{"Phone": "unwanted"}"#,
    ];
    let said = tested(&hook(&receiver, ""), &bad).await;
    assert_eq!((said.code, said.troubles()), (1, vec![("reject", "wrong")]));
    let finding = said.found("retries_bad");
    assert!(
        finding["came"].as_str().unwrap().contains("500"),
        "{finding}"
    );
    assert!(
        finding["mend"].as_str().unwrap().contains("Reject"),
        "{finding}"
    );
}

fn hook(receiver: &Receiver, options: &str) -> String {
    let url = receiver.url();
    sqlite(&format!(
        "[[subscription.handler]]\nname = \"hook\"\ntype = \"webhook\"\nurl = \"{url}\"\n\
         allow_private_addresses = true\n{options}\n"
    ))
}

/// One that answers with this status to what it does not want.
async fn receiver(refusal: u16) -> Receiver {
    Receiver::start(
        move |_, event| match event.to_string().contains("unwanted") {
            true => refusal,
            false => 204,
        },
    )
    .await
}

/// Programs for `exec` in a folder of their own.
struct Programs(TempDir);

impl Programs {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn config(&self, command: &[&str], options: &str) -> String {
        let command = toml::Value::from(command.to_vec()).to_string();
        let cwd = toml::Value::from(self.0.path().to_str().unwrap());
        // The shell's own variables.
        let command = command.replace('$', "$$");
        sqlite(&format!(
            "[[subscription.handler]]\nname = \"program\"\ntype = \"exec\"\ncommand = {command}\ncwd = {cwd}\n{options}\n"
        ))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }
}

/// The path of an interpreter; `None`, with a line that says so, where it is not there.
fn interpreter(name: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(name)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    if let Ok(output) = output
        && output.status.success()
    {
        return Some(String::from_utf8(output.stdout).unwrap().trim().to_owned());
    }
    assert!(
        std::env::var_os("ORGSTREAM_REQUIRE_INTERPRETERS").is_none(),
        "{name} is required"
    );
    println!("skipped: no {name}");
    None
}

fn example(name: &str) -> String {
    let path = project().join("examples/handlers").join(name);
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_python_example_is_sound_and_what_arrived_is_looked_at() {
    let arguments = ["-c", "import sqlite3, sys; print(sys.executable)"];
    let Some(python) = interpreter("python3", &arguments) else {
        return;
    };
    let programs = Programs::new();
    let config = programs.config(&[&python, &example("table.py"), "events.db"], "");
    let script = "import sqlite3, sys; [print(r[0]) for r in sqlite3.connect(sys.argv[1], timeout=30)\
                  .execute('select id from event order by number')]";
    let look = format!(
        "'{python}' -c \"{script}\" '{}'",
        programs.path("events.db")
    );
    let said = tested(&config, &["accounts/program", "--received", &look]).await;
    said.is_sound();
    assert!(
        said.report.to_string().contains("they are there once"),
        "{:#}",
        said.report
    );
}

#[tokio::test]
async fn the_node_example_is_sound_with_several_events_at_a_time() {
    let Some(node) = interpreter("node", &["--print", "process.execPath"]) else {
        return;
    };
    let programs = Programs::new();
    let options = "in_flight = 20\nworkers = 1";
    let config = programs.config(&[&node, &example("append.mjs"), "events"], options);
    let look = format!("cat '{}'", programs.path("events"));
    tested(&config, &["program", "--received", &look])
        .await
        .is_sound();
}

#[tokio::test]
async fn the_shell_example_is_sound() {
    let programs = Programs::new();
    let config = programs.config(&["sh", &example("spool.sh"), "spool"], "");
    tested(&config, &["program"]).await.is_sound();
    let spooled = std::fs::read_dir(Path::new(&programs.path("spool"))).unwrap();
    assert!(spooled.count() > 150);
}

#[tokio::test]
async fn a_program_that_answers_before_it_has_written_is_found() {
    let programs = Programs::new();
    let script = r#"while IFS= read -r line; do
        id=${line#*'"id":"'}; id=${id%%'"'*}
        (sleep 0.3; printf '%s\n' "$line" >>events) &
        printf '{"id":"%s","ok":true}\n' "$id"
    done; wait"#;
    let config = programs.config(&["sh", "-c", script], "workers = 1\nin_flight = 100");
    let look = format!("cat '{}'", programs.path("events"));
    let said = tested(&config, &["program", "--received", &look]).await;
    assert_eq!(said.code, 1, "{:#}", said.report);
    let finding = said.found("not_there");
    assert_eq!(finding["severity"], "wrong");
    assert!(
        said.troubles().contains(&("restart", "wrong")),
        "{:#}",
        said.report
    );
}

#[tokio::test]
async fn postgres_is_tried_in_transactions_that_are_rolled_back_unless_asked() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let handler =
        "[[subscription.handler]]\nname = \"rows\"\ntype = \"postgres\"\nmode = \"append\"\n";
    let config = configured(&store.url, handler);
    let rows = async || {
        let mut connection = sqlx::PgConnection::connect(&store.url).await.unwrap();
        let count = "select count(*) from orgstream_events";
        sqlx::query_scalar::<_, i64>(count)
            .fetch_one(&mut connection)
            .await
            .ok()
    };
    let said = tested(&config, &["rows"]).await;
    said.is_sound();
    assert!(
        said.report.to_string().contains("rolled back"),
        "{:#}",
        said.report
    );
    assert_eq!(rows().await, None, "not even the table");
    tested(&config, &["rows", "--commit"]).await.is_sound();
    assert!(rows().await.unwrap() > 150);
}

/// Rows as somebody else sees them.
struct Rows(String);

#[async_trait]
impl FarSide for Rows {
    async fn received(&self) -> Result<Vec<String>, String> {
        let connection = sqlx::PgConnection::connect(&self.0).await;
        let mut connection = connection.map_err(|error| error.to_string())?;
        let ids = sqlx::query_scalar("select id from orgstream_events order by number");
        Ok(ids.fetch_all(&mut connection).await.unwrap_or_default())
    }
}

#[tokio::test]
async fn committed_rows_are_there_and_in_order_through_the_library() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let mut handler = HandlerConfig::new("postgres");
    handler.options.insert("mode".into(), "append".into());
    let mut script = Script::default();
    script.store = Some(StoreConfig::new(store.url.clone()));
    script.commit = true;
    script.far_side = Some(std::sync::Arc::new(Rows(store.url.clone())));
    let subscription = SubscriptionConfig::new("accounts", "Account".parse().unwrap());
    let report = conformance::run(&Registry::builtin(), &subscription, &handler, &script).await;
    let report = report.unwrap();
    assert!(report.is_sound() && report.findings.is_empty(), "{report}");
    assert!(
        report.to_string().contains("they are there once"),
        "{report}"
    );
}

/// What is wrong with a handler that writes within transactions of the store.
#[derive(Clone, Copy, PartialEq)]
enum Flaw {
    EndsTheTransaction,
    GoesOnAfterAFailedStatement,
    RefusesWhatIsThere,
}

struct Subject(Flaw);

#[async_trait]
impl TransactionalHandler for Subject {
    async fn handle(
        &self,
        connection: &mut PgConnection,
        batch: &EventBatch,
    ) -> Result<BatchAnswer, sqlx::Error> {
        for event in &batch.events {
            sql::query("insert into public.subject values ($1)")
                .bind(event.identity().as_str())
                .execute(&mut *connection)
                .await?;
        }
        match self.0 {
            Flaw::EndsTheTransaction => {
                sqlx::raw_sql("commit").execute(connection).await?;
            }
            Flaw::GoesOnAfterAFailedStatement => {
                let failed = sqlx::raw_sql("select 1 / 0").execute(connection).await;
                assert!(failed.is_err());
            }
            Flaw::RefusesWhatIsThere => {}
        }
        Ok(BatchAnswer::HANDLED)
    }
}

async fn tried(flaw: Flaw, store: &Store) -> Report {
    let mut registry = Registry::builtin();
    registry.register_transactional("subject", move |config| {
        Options::new(config).finish(Some(()))?;
        Ok(std::sync::Arc::new(Subject(flaw)))
    });
    let mut script = Script::default();
    script.store = Some(StoreConfig::new(store.url.clone()));
    script.patience = std::time::Duration::from_secs(1);
    let subscription = SubscriptionConfig::new("accounts", "Account".parse().unwrap());
    let handler = HandlerConfig::new("subject");
    let report = conformance::run(&registry, &subscription, &handler, &script).await;
    report.unwrap()
}

#[tokio::test]
async fn what_a_transactional_handler_gets_wrong_is_found() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    store
        .execute("create table public.subject (id text primary key)")
        .await;
    for (flaw, mistake, step, severity) in [
        (
            Flaw::EndsTheTransaction,
            Mistake::OwnTransactionEnd,
            Step::Order,
            Outcome::Wrong,
        ),
        (
            Flaw::GoesOnAfterAFailedStatement,
            Mistake::FailedStatement,
            Step::Order,
            Outcome::Wrong,
        ),
        // Only a replay brings what is there already.
        (
            Flaw::RefusesWhatIsThere,
            Mistake::RepeatRefused,
            Step::Repeats,
            Outcome::Note,
        ),
    ] {
        let report = tried(flaw, &store).await;
        let finding = report
            .finding(mistake)
            .unwrap_or_else(|| panic!("{report}"));
        assert_eq!(
            (finding.step, finding.severity),
            (step, severity),
            "{report}"
        );
        assert_eq!(report.is_sound(), severity == Outcome::Note, "{report}");
    }
}

#[tokio::test]
async fn nothing_is_sent_unasked_and_a_name_has_to_name_one_handler() {
    let config = sqlite(
        "[[subscription.handler]]\ntype = \"log\"\n[[subscription.handler]]\nname = \"other\"\ntype = \"log\"\n",
    );
    for (arguments, said) in [
        (["handler-test", "log", "--json"], "say --yes"),
        (
            ["handler-test", "accounts", "--yes"],
            "accounts/log, accounts/other",
        ),
        (["handler-test", "nobody", "--yes"], "it has accounts/log"),
    ] {
        let (code, out, err) = Daemon::output(&arguments, &config, &BTreeMap::new()).await;
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.contains(said), "{err}");
    }
}

#[tokio::test]
async fn a_far_side_that_is_away_is_found_before_anything_is_sent() {
    let receiver = receiver(204).await;
    let config = hook(&receiver, "");
    drop(receiver);
    let said = tested(&config, &["hook"]).await;
    assert_eq!(said.code, 1);
    said.found("not_ready");
    assert_eq!(said.report["events"], 0);
}
