//! `exec`: programs as real processes of the daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use serde_json::Value;
use tempfile::TempDir;

use super::endurance::{FarSide, Received, endure};
use super::throughput::measure;
use crate::support::daemon::project;
use crate::support::{
    Daemon, Emulator, Store, account_update, configured, eventually, names, record,
};

const ACCOUNTS: &str = "/data/AccountChangeEvent";

/// Appends each event to `events`, its process ID to `pids` and a word at its end to `ends`.
const APPEND: &str = r#"echo $$ >>pids
while IFS= read -r line; do
    id=${line#*'"id":"'}; id=${id%%'"'*}
    if printf '%s\n' "$line" >>events; then answer='"ok":true'; else answer='"retry":"not written"'; fi
    printf '{"id":"%s",%s}\n' "$id" "$answer"
done
echo done >>ends
"#;

/// A handler in a folder of its own.
struct Far {
    folder: TempDir,
    options: String,
    /// How much of `events` was read, and what came of it.
    read: Mutex<(usize, Vec<Received>)>,
}

impl Far {
    /// A shell program.
    fn shell(script: &str) -> Self {
        Self::new(&["sh", "-c", script], "")
    }

    fn new(command: &[&str], options: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let command = toml::Value::from(command.to_vec());
        let cwd = toml::Value::from(folder.path().to_str().unwrap());
        Self {
            folder,
            read: Mutex::default(),
            options: format!(
                "type = \"exec\"\ncommand = {}\ncwd = {cwd}\n{options}\n",
                // The shell's own variables.
                command.to_string().replace('$', "$$")
            ),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Events in `events`; half a line at the end of it is none.
    fn events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("events")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let parsed = whole.lines().map(serde_json::from_str);
        parsed.map(|event| event.expect("a whole event")).collect()
    }

    fn config(&self, org: &Emulator, store: &Store) -> String {
        let subscription = ("accounts", ACCOUNTS, "start = \"earliest\"");
        let handler = format!(
            "[[subscription.handler]]\nname = \"program\"\n\
             retry = {{ attempts = 3, initial = \"20ms\", max = \"100ms\" }}\n{}",
            self.options
        );
        configured(org, store, "", subscription, &handler)
    }

    async fn handles(&self, count: usize) -> Vec<Value> {
        eventually(&format!("{count} events"), async || {
            Some(self.events()).filter(|events| events.len() >= count)
        })
        .await
    }

    /// Waits until every process that it has noted is gone.
    async fn gone(&self) {
        for pid in self.lines("pids") {
            let place = Path::new("/proc").join(&pid).join("stat");
            eventually("the end of a program", async || {
                let state = std::fs::read_to_string(&place).unwrap_or_default();
                (state.is_empty() || state.contains(") Z ")).then_some(())
            })
            .await;
        }
    }
}

async fn publish(org: &Emulator, numbers: std::ops::Range<usize>) {
    let events: Vec<Value> = numbers
        .map(|n| account_update(&record(n % 10), &n.to_string()))
        .collect();
    org.publish(ACCOUNTS, &events).await;
}

fn all(count: usize) -> BTreeSet<String> {
    (0..count).map(|n| n.to_string()).collect()
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

fn python() -> Option<String> {
    interpreter(
        "python3",
        &["-c", "import sqlite3, sys; print(sys.executable)"],
    )
}

fn node() -> Option<String> {
    interpreter("node", &["--print", "process.execPath"])
}

fn example(name: &str) -> String {
    let path = project().join("examples/handlers").join(name);
    path.to_str().unwrap().to_owned()
}

/// Runs an example with events in two portions, and gives its folder once it has ended.
async fn run_example(command: &[&str], options: &str, count: impl Fn(&Far) -> usize) -> Far {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let far = Far::new(command, options);
    let config = far.config(&org, &store);
    let (code, out, err) = Daemon::output(&["check"], &config, &BTreeMap::new()).await;
    assert_eq!(code, 0, "{out}{err}");
    publish(&org, 0..100).await;
    let daemon = Daemon::run(&config);
    eventually("the first events", async || {
        (count(&far) >= 100).then_some(())
    })
    .await;
    publish(&org, 100..200).await;
    eventually("all events", async || (count(&far) >= 200).then_some(())).await;
    let troubles = |line: &String| line.contains("level=warn") && line.contains("program");
    let troubles: Vec<String> = daemon.log().into_iter().filter(troubles).collect();
    assert_eq!(troubles, [""; 0]);
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(store.parked().await, []);
    far
}

#[tokio::test]
async fn the_python_example_keeps_every_event_once() {
    let Some(python) = python() else { return };
    let rows = |far: &Far, query: &str| {
        let script = "import sqlite3, sys; print(*[r[0] for r in sqlite3.connect(sys.argv[1]).execute(sys.argv[2])])";
        let output = Command::new(&python)
            .args(["-c", script, far.path("events.db").to_str().unwrap(), query])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let count = |far: &Far| rows(far, "select count(*) from event").parse().unwrap_or(0);
    let far = run_example(&[&python, &example("table.py"), "events.db"], "", count).await;
    let query = "select json_extract(data, '$.Name') from event order by number";
    let kept = rows(&far, query);
    let kept: BTreeSet<String> = kept.split(' ').map(str::to_owned).collect();
    assert_eq!(kept, all(200));
}

#[tokio::test]
async fn the_node_example_handles_several_events_at_a_time_in_one_process() {
    let Some(node) = node() else { return };
    let count = |far: &Far| far.events().len();
    let options = "in_flight = 20\nworkers = 1";
    let far = run_example(&[&node, &example("append.mjs"), "events"], options, count).await;
    let kept: BTreeSet<String> = names(&far.events()).into_iter().collect();
    assert_eq!(kept, all(200));
}

#[tokio::test]
async fn the_shell_example_needs_nothing_but_a_shell() {
    let count = |far: &Far| {
        std::fs::read_dir(far.path("spool")).map_or(0, |folder| {
            let names = folder.map(|file| file.unwrap().file_name());
            names
                .filter(|name| name.to_str().unwrap().ends_with(".json"))
                .count()
        })
    };
    let far = run_example(&["sh", &example("spool.sh"), "spool"], "", count).await;
    let kept: BTreeSet<String> = std::fs::read_dir(far.path("spool"))
        .unwrap()
        .map(|file| {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            let event: Value = serde_json::from_str(&text).unwrap();
            event["data"]["Name"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(kept, all(200));
}

#[tokio::test]
async fn a_wrong_command_names_handler_and_cure_and_events_wait() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let far = Far::new(&["./handler"], "");
    let config = far.config(&org, &store);
    let (code, out, _) = Daemon::output(&["check"], &config, &BTreeMap::new()).await;
    assert_eq!(code, 1);
    let line = out
        .lines()
        .find(|line| line.contains("handler program of accounts"));
    assert!(
        line.unwrap_or_default().contains("look at `command`"),
        "{out}"
    );

    publish(&org, 0..5).await;
    let daemon = Daemon::run(&config);
    daemon
        .logged(&[
            "handler=program",
            "cannot start `./handler`",
            "look at `command`",
        ])
        .await;
    // Not yet to be run, and said so.
    std::fs::write(far.path("handler"), format!("#!/bin/sh\n{APPEND}")).unwrap();
    let chmod = Command::new("chmod")
        .arg("+x")
        .arg(far.path("handler"))
        .status();
    assert!(chmod.unwrap().success());
    far.handles(5).await;
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(store.parked().await, []);
}

#[tokio::test]
async fn a_full_disk_keeps_events_until_there_is_room() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let far = Far::shell(APPEND);
    std::os::unix::fs::symlink("/dev/full", far.path("events")).unwrap();
    publish(&org, 0..5).await;
    let daemon = Daemon::run(&far.config(&org, &store));
    daemon.logged(&["handler=program", "not written"]).await;
    // What it says of it itself.
    daemon
        .logged(&["handler=program", "standard error of the program", "pid="])
        .await;
    std::fs::remove_file(far.path("events")).unwrap();
    assert_eq!(names(&far.handles(5).await).len(), 5);
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(store.parked().await, []);
}

#[tokio::test]
async fn crashes_hangs_and_garbage_lose_nothing_and_keep_the_order_of_a_record() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    // Every seventh time it does one of these instead of its work.
    let trouble = r#"count=$((count + 1))
    if [ $((($$ + count) % 7)) = 0 ]; then
        case $((count % 3)) in 0) exit 1;; 1) echo "hidden";; *) sleep 600;; esac
    fi
    if printf"#;
    let script = APPEND.replace("if printf", trouble);
    let mut far = Far::shell(&script);
    far.options.push_str("timeout = \"300ms\"\n");
    let config = far
        .config(&org, &store)
        .replace("attempts = 3", "attempts = 100");
    publish(&org, 0..100).await;
    let daemon = Daemon::run(&config);
    eventually("all events", async || {
        let kept: BTreeSet<String> = names(&far.events()).into_iter().collect();
        (kept == all(100)).then_some(())
    })
    .await;
    let log = daemon.log().join("\n");
    assert!(!log.contains("hidden"), "{log}");
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(store.parked().await, []);
    let mut newest = BTreeMap::new();
    for event in far.events() {
        let number: i32 = event["data"]["Name"].as_str().unwrap().parse().unwrap();
        let before = newest.insert(event["subject"].to_string(), number);
        assert!(before.is_none_or(|before| before <= number));
    }
    far.gone().await;
}

#[tokio::test]
async fn what_it_rejects_is_parked_with_its_reason() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let script = APPEND.replace(
        "if printf",
        "case $line in *'\"Name\":\"3\"'*) printf '{\"id\":\"%s\",\"reject\":\"no threes\"}\\n' \"$id\"; continue;; esac\nif printf",
    );
    let far = Far::shell(&script);
    publish(&org, 0..10).await;
    let daemon = Daemon::run(&far.config(&org, &store));
    far.handles(9).await;
    let parked = store.parks(1).await;
    assert_eq!(parked[0].letter.error, "no threes");
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(far.events().len(), 9);
}

#[tokio::test]
async fn at_a_stop_its_input_ends_and_it_may_finish() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let far = Far::shell(&APPEND.replace("echo done", "sleep 1; echo done"));
    publish(&org, 0..10).await;
    let daemon = Daemon::run(&far.config(&org, &store));
    far.handles(10).await;
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(far.lines("ends").len(), far.lines("pids").len());
    far.gone().await;
}

#[tokio::test]
async fn when_the_daemon_is_killed_its_programs_end_by_themselves() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let far = Far::shell(APPEND);
    publish(&org, 0..10).await;
    let daemon = Daemon::run(&far.config(&org, &store));
    far.handles(10).await;
    daemon.kill();
    far.gone().await;
    assert_eq!(far.lines("ends").len(), far.lines("pids").len());
}

#[tokio::test]
async fn it_sees_what_it_is_given_and_not_what_signs_in_to_the_org() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let mut far = Far::shell(&format!("env >env\necho to the log >&2\n{APPEND}"));
    far.options
        .push_str("env = { COLOUR = \"hunter2\", DATABASE_URL = \"given\" }\n");
    let config = far.config(&org, &store);
    let env = [
        ("SALESFORCE_USERNAME", "hidden"),
        ("SF_PRIVATE_KEY", "hidden"),
        (
            "ORGSTREAM_ENCRYPTION_KEY",
            "hidden-hidden-hidden-hidden-hidden",
        ),
        ("DATABASE_URL", "hidden"),
        ("OTHER", "seen"),
    ];
    let shown = env.map(|(name, value)| (name, value.to_owned())).into();
    let (_, out, _) = Daemon::output(&["config"], &config, &shown).await;
    assert!(
        out.contains("COLOUR = \"***\"") && !out.contains("hunter2"),
        "{out}"
    );

    publish(&org, 0..1).await;
    let daemon = Daemon::run_with(&config, &env);
    far.handles(1).await;
    let seen = far.lines("env").join("\n");
    assert!(!seen.contains("hidden"), "{seen}");
    for kept in [
        "OTHER=seen",
        "COLOUR=hunter2",
        "DATABASE_URL=given",
        "ORGSTREAM_SUBSCRIPTION=accounts",
        "ORGSTREAM_HANDLER=program",
    ] {
        assert!(seen.lines().any(|line| line == kept), "{kept} in {seen}");
    }
    daemon
        .logged(&["handler=program", "to the log", "pid="])
        .await;
    assert!(!daemon.log().join("\n").contains("hunter2"));
    assert_eq!(daemon.stop().await.1, 0);
}

impl FarSide for Far {
    fn handler(&self) -> String {
        self.options.clone()
    }

    fn store(&self) -> Option<Store> {
        Some(Store::sqlite())
    }

    /// Kills every process of the program; the daemon starts others.
    async fn restart(&mut self) {
        let home = self.folder.path().canonicalize().unwrap();
        for pid in self.lines("pids") {
            // The number of one that is gone may be somebody else's by now.
            let cwd = std::fs::read_link(Path::new("/proc").join(&pid).join("cwd"));
            if cwd.is_ok_and(|cwd| cwd == home) {
                Command::new("kill").args(["-9", &pid]).status().unwrap();
            }
        }
    }

    /// Reads on from where it was before: it is asked often, and the file grows.
    async fn received(&self) -> Vec<Received> {
        let mut read = self.read.lock().unwrap();
        let text = std::fs::read_to_string(self.path("events")).unwrap_or_default();
        let (from, end) = (read.0, text.rfind('\n').map_or(0, |end| end + 1));
        for line in text[from..end].lines() {
            let event: Value = serde_json::from_str(line).unwrap();
            read.1.push(Received::of(&event));
        }
        read.0 = end;
        read.1.clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_events_with_daemon_and_programs_killed() {
    endure(Far::shell(APPEND)).await;
}

#[tokio::test]
#[ignore = "a bench: run scripts/bench-handlers"]
async fn bench_exec() {
    measure("exec, sh", async || Some(Far::shell(APPEND))).await;
    let start = async || {
        let (node, program) = (node()?, example("append.mjs"));
        let options = "in_flight = 20\nworkers = 1";
        Some(Far::new(&[&node, &program, "events"], options))
    };
    measure("exec, append.mjs", start).await;
}
