//! Against real processes of the plain shell.

use std::path::{Path, PathBuf};
use std::time::Instant;

use tempfile::TempDir;

use super::super::testing::{batch, config};
use super::*;

/// A program that takes an event from `$line` with `$id`, in a loop.
fn each(body: &str) -> String {
    format!(
        "while IFS= read -r line; do id=${{line#*'\"id\":\"'}}; id=${{id%%'\"'*}}\n{body}\ndone\n"
    )
}

/// Answers that an event is handled.
const OK: &str = r#"printf '{"id":"%s","ok":true}\n' "$id""#;

/// A program of this script, in a folder of its own.
struct Fixture {
    handler: Arc<ExecHandler>,
    folder: TempDir,
}

impl Fixture {
    fn new(script: &str, options: &str) -> Self {
        Self::with(script, options, |_| {})
    }

    fn with(script: &str, options: &str, change: impl FnOnce(&mut Settings)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config("exec", options);
        let command = ["sh", "-c", script].map(toml::Value::from);
        config
            .options
            .insert("command".into(), toml::Value::from(command.to_vec()));
        let cwd = folder.path().to_str().unwrap();
        config.options.insert("cwd".into(), cwd.into());
        config.retry.backoff.initial = Duration::from_millis(10);
        config.retry.backoff.max = Duration::from_millis(50);
        let mut settings = read_settings(&config).unwrap();
        change(&mut settings);
        Self {
            handler: Arc::new(ExecHandler::new(settings)),
            folder,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The lines of a file of the program's; none where it is not there.
    fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The answer for event `n` of a few.
    async fn call(&self, n: usize) -> Answer {
        let mut events = batch(&["{}"; 20]);
        events.events = vec![events.events.remove(n)];
        let answer = tokio::time::timeout(Duration::from_secs(60), self.handler.handle(&events));
        match answer.await.unwrap() {
            BatchAnswer::Each(mut answers) => answers.remove(0),
            BatchAnswer::All(answer) => answer,
        }
    }

    fn spawn(self: &Arc<Self>, n: usize) -> tokio::task::JoinHandle<Answer> {
        let fixture = self.clone();
        tokio::spawn(async move { fixture.call(n).await })
    }

    /// Why it is to be tried again.
    async fn retry(&self, n: usize) -> String {
        match self.call(n).await {
            Answer::Retry(retry) => retry.reason,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until a file of the program's has so many lines.
    async fn wrote(&self, name: &str, count: usize) -> Vec<String> {
        wait_for(name, || {
            Some(self.lines(name)).filter(|lines| lines.len() >= count)
        })
        .await
    }
}

async fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "waited for {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the process of this number is gone, or dead and not yet collected by whoever adopted it.
async fn gone(pid: &str) {
    let stat = Path::new("/proc").join(pid).join("stat");
    wait_for("the end of a process", || {
        let state = std::fs::read_to_string(&stat).unwrap_or_default();
        (state.is_empty() || state.contains(") Z ")).then_some(())
    })
    .await;
}

fn retry_of(answer: Answer) -> Retry {
    match answer {
        Answer::Retry(retry) => retry,
        other => panic!("{other:?}"),
    }
}

fn handled(answer: &Answer) {
    assert_eq!(*answer, Answer::Handled);
}

#[tokio::test]
async fn each_answer_is_taken_and_one_process_serves_many_events() {
    let script = each(&format!(
        r#"case $id in
        event-1:*) printf '{{"id":"%s","retry":"busy","after":2}}\n' "$id";;
        event-2:*) printf '\n{{"id":"%s","reject":"bad"}}\n' "$id";;
        *) {OK};;
        esac"#
    ));
    let it = Fixture::new(&format!("echo $$ >>pids\n{script}"), "");
    handled(&it.call(0).await);
    let Answer::Retry(retry) = it.call(1).await else {
        panic!("no retry");
    };
    assert_eq!(retry.reason, "busy");
    assert_eq!(retry.after, Some(Duration::from_secs(2)));
    assert_eq!(
        it.call(2).await,
        Answer::Reject {
            reason: "bad".into()
        }
    );
    handled(&it.call(3).await);
    assert_eq!(it.lines("pids").len(), 1);
}

#[tokio::test]
async fn nothing_is_sent_past_an_event_that_was_not_handled() {
    let script = each(&format!(
        r#"echo "$id" >>seen
        case $id in event-1:*) printf '{{"id":"%s","retry":"busy"}}\n' "$id";; *) {OK};; esac"#
    ));
    let it = Fixture::new(&script, "");
    let BatchAnswer::Each(answers) = it.handler.handle(&batch(&["{}"; 4])).await else {
        panic!("one answer");
    };
    handled(&answers[0]);
    assert!(
        answers[1..]
            .iter()
            .all(|answer| matches!(answer, Answer::Retry(_)))
    );
    assert_eq!(it.lines("seen").len(), 2);
}

#[tokio::test]
async fn several_events_of_one_process_may_be_answered_in_any_order() {
    let script = each(
        r#"ids="$id $ids"; count=$((count + 1))
        if [ $count = 3 ]; then for id in $ids; do printf '{"id":"%s","reject":"%s"}\n' "$id" "$id"; done; fi"#,
    );
    let it = Arc::new(Fixture::new(&script, "in_flight = 3\nworkers = 1"));
    let calls = [0, 1, 2].map(|n| it.spawn(n));
    for (n, call) in calls.into_iter().enumerate() {
        let Answer::Reject { reason } = call.await.unwrap() else {
            panic!("not rejected");
        };
        assert!(reason.starts_with(&format!("event-{n}:")), "{reason}");
    }
}

#[tokio::test]
async fn a_crash_is_a_retry_and_the_next_process_goes_on() {
    let script = each(&format!("[ -e mended ] || exit 3\n{OK}"));
    let it = Fixture::new(&script, "");
    let why = it.retry(0).await;
    assert!(why.contains("`sh` ended with exit code 3"), "{why}");
    std::fs::write(it.path("mended"), "").unwrap();
    // Not at once: what ends without an answer is started again after a pause.
    let Answer::Retry(retry) = it.call(0).await else {
        panic!("no pause");
    };
    assert!(retry.after.is_some());
    wait_for("the pause", || it.handler.pool.call_at_once().then_some(())).await;
    handled(&it.call(0).await);
}

#[tokio::test]
async fn one_that_is_killed_is_said_to_be() {
    let it = Fixture::new(&each("kill -9 $$"), "");
    let why = it.retry(0).await;
    assert!(why.contains("was killed (signal 9)"), "{why}");
}

#[tokio::test]
async fn an_answer_that_was_written_before_the_end_counts_and_half_of_one_does_not() {
    let it = Fixture::new(&each(&format!("{OK}; exit 1")), "");
    handled(&it.call(0).await);
    let half = r#"printf '{"id":"%s","ok":true}' "$id"; exit 1"#;
    let it = Fixture::new(&each(half), "");
    assert!(it.retry(0).await.contains("exit code 1"));
}

#[tokio::test]
async fn one_that_hangs_is_ended_with_what_it_has_started() {
    let it = Fixture::new(
        "echo $$ >>pids; sleep 600 & echo $! >>pids; wait",
        "timeout = '300ms'",
    );
    let began = Instant::now();
    let why = it.retry(0).await;
    assert!(why.contains("no answer within 300ms"), "{why}");
    assert!(began.elapsed() < Duration::from_secs(20));
    for pid in it.lines("pids") {
        gone(&pid).await;
    }
}

#[tokio::test]
async fn one_that_writes_without_end_has_its_time_too() {
    let it = Fixture::new("read -r line; while :; do echo; done", "timeout = '300ms'");
    assert!(it.retry(0).await.contains("no answer within 300ms"));
}

#[tokio::test]
async fn garbage_ends_the_process_and_is_not_shown() {
    for (write, why) in [
        ("echo hidden", "a line of 6 bytes"),
        (r#"printf '{"id":"hidden","ok":true}\n'"#, "no such event"),
        (
            r#"printf '{"id":"%s","hidden":true}\n' "$id""#,
            "not one of",
        ),
        (
            "head -c 100000 /dev/zero | tr '\\0' x",
            "without an end of line",
        ),
        ("exec >&-; sleep 600", "closed its standard output"),
    ] {
        let it = Fixture::new(&format!("echo $$ >>pids\n{}", each(write)), "");
        let said = it.retry(0).await;
        assert!(said.contains(why), "{said}");
        assert!(!said.contains("hidden"), "{said}");
        gone(&it.lines("pids")[0]).await;
    }
}

#[tokio::test]
async fn a_second_answer_for_an_event_ends_the_process() {
    let twice = format!("echo $$ >>pids\n{}", each(&format!("{OK}\n{OK}\nsleep 1")));
    let it = Fixture::new(&twice, "");
    handled(&it.call(0).await); // the first counts
    gone(&it.lines("pids")[0]).await;
    handled(&it.call(1).await);
}

#[tokio::test]
async fn a_program_that_writes_before_it_reads_holds_nothing_up() {
    // More than pipes hold, both ways and to standard error.
    let flood = "head -c 300000 /dev/zero | tr '\\0' '\\n'";
    let script = format!("{flood}\n{flood} >&2\n{}", each(&format!("{flood}\n{OK}")));
    let it = Fixture::new(&script, "");
    let large = format!("\"{}\"", "x".repeat(1 << 20));
    let answer = it.handler.handle(&batch(&[&large, &large])).await;
    assert_eq!(answer, BatchAnswer::Each(vec![Answer::Handled; 2]));
}

#[tokio::test]
async fn an_output_that_somebody_inherited_does_not_hide_the_end() {
    // In a session of its own, so it is not ended with the group.
    let script = "setsid sleep 600 & echo $! >>pids; read -r line; exit 4";
    let it = Fixture::new(script, "");
    let began = Instant::now();
    let why = it.retry(0).await;
    assert!(why.contains("exit code 4"), "{why}");
    assert!(began.elapsed() < Duration::from_secs(20));
    let left = std::process::Command::new("kill")
        .args(it.lines("pids"))
        .status();
    assert!(left.unwrap().success());
}

#[tokio::test]
async fn as_many_processes_as_are_busy_and_one_stays() {
    let script = format!(
        "echo $$ >>pids\n{}",
        each(&format!(
            "echo $id >>seen; while [ ! -e open ]; do sleep 0.02; done\n{OK}"
        ))
    );
    let it = Arc::new(Fixture::with(&script, "", |settings| {
        settings.idle = Duration::from_millis(300);
    }));
    let calls = [0, 1, 2].map(|n| it.spawn(n));
    it.wrote("seen", 3).await;
    std::fs::write(it.path("open"), "").unwrap();
    for call in calls {
        handled(&call.await.unwrap());
    }
    assert_eq!(it.lines("pids").len(), 3);
    // A quick program needs no second process.
    wait_for("all but one to leave", || {
        (it.handler.pool.running() == 1).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(it.handler.pool.running(), 1);
    handled(&it.call(3).await);
    assert_eq!(it.lines("pids").len(), 3);
}

#[tokio::test]
async fn no_more_processes_than_allowed() {
    let script = format!("echo $$ >>pids\n{}", each(&format!("sleep 0.1\n{OK}")));
    let it = Arc::new(Fixture::new(&script, "workers = 2"));
    for call in [0, 1, 2, 3, 4, 5].map(|n| it.spawn(n)) {
        handled(&call.await.unwrap());
    }
    assert_eq!(it.lines("pids").len(), 2);
}

#[tokio::test]
async fn a_call_that_is_given_up_ends_the_process() {
    let script = format!("echo $$ >>pids\n{}", each("echo $id >>seen; sleep 600"));
    let it = Arc::new(Fixture::new(&script, ""));
    let call = it.spawn(0);
    it.wrote("seen", 1).await;
    call.abort();
    gone(&it.lines("pids")[0]).await;
    assert_eq!(it.handler.pool.running(), 0);
}

#[tokio::test]
async fn another_process_is_started_however_often_the_first_becomes_free() {
    let it = Arc::new(Fixture::new(&each(&format!("sleep 0.01; {OK}")), ""));
    let calls = (0..8).map(|n| {
        let it = it.clone();
        tokio::spawn(async move {
            let began = Instant::now();
            while it.handler.pool.running() < 2 {
                assert!(began.elapsed() < Duration::from_secs(30));
                handled(&it.call(n).await);
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
}

#[tokio::test]
async fn whoever_shared_a_process_with_a_bad_event_is_not_blamed_for_it() {
    let script = each(&format!(
        r#"case $id in event-1:*) exit 1;; event-9:*) {OK};; *) [ -n "$one" ] && {OK}; one=$id;; esac"#
    ));
    // Answers an event only once another follows it, so that some are in its hands when it ends.
    let it = Arc::new(Fixture::new(&script, "in_flight = 3\nworkers = 1"));
    handled(&{
        let first = it.spawn(9);
        first.await.unwrap()
    });
    let innocent = it.spawn(0);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let guilty = it.spawn(1);
    // Not even by a handler that gives up at once: nobody knows yet whose fault it was.
    for call in [innocent, guilty] {
        assert!(!retry_of(call.await.unwrap()).counts);
    }
    assert_eq!(it.handler.suspects().len(), 2);
    // Each by itself now.
    assert!(retry_of(it.call(1).await).counts);
    assert_eq!(it.handler.pool.running(), 0);
    assert_eq!(it.handler.suspects().len(), 2);
}

#[tokio::test]
async fn one_that_may_not_be_started_yet_is_still_to_have_a_process_of_its_own() {
    let script = each("echo $id >>seen; case $id in event-1:*) exit 1;; esac");
    let it = Fixture::with(&script, "in_flight = 3\nworkers = 1", |settings| {
        settings.restart.initial = Duration::from_secs(60);
        settings.restart.max = Duration::from_secs(60);
    });
    let it = Arc::new(it);
    let innocent = it.spawn(0);
    it.wrote("seen", 1).await;
    assert!(matches!(it.call(1).await, Answer::Retry(_)));
    assert!(matches!(innocent.await.unwrap(), Answer::Retry(_)));
    assert!(!it.handler.pool.call_at_once());
    assert!(matches!(it.call(0).await, Answer::Retry(_)));
    assert_eq!(it.lines("seen").len(), 2, "it was started");
    assert_eq!(it.handler.suspects().len(), 2);
}

/// Of a process that had many events in its hands, each comes back to a process of its own.
#[tokio::test]
async fn after_a_break_there_are_no_more_processes_than_allowed_and_one_at_a_time_for_one_event() {
    let work = format!(
        r#"if [ -e mended ]; then sleep 0.05; {OK}
        else echo $id >>seen; count=$((count + 1)); [ $count = 6 ] && exit 1; fi"#
    );
    let script = format!("echo + >>runs; trap 'echo - >>runs' EXIT\n{}", each(&work));
    for (workers, most) in [("workers = 1", 1), ("workers = 2", 2), ("", 2)] {
        let it = Arc::new(Fixture::new(&script, &format!("in_flight = 6\n{workers}")));
        // One after the other, so that they are given to one process.
        let mut calls = Vec::new();
        for n in 0..6 {
            calls.push(it.spawn(n));
            it.wrote("seen", n + 1).await;
        }
        for call in calls {
            assert!(!retry_of(call.await.unwrap()).counts);
        }
        std::fs::write(it.path("mended"), "").unwrap();
        wait_for("the pause", || it.handler.pool.call_at_once().then_some(())).await;
        // Beside what is given to any process.
        let calls = (0..9).map(|n| it.spawn(n)).collect::<Vec<_>>();
        for call in calls {
            handled(&call.await.unwrap());
        }
        assert!(it.handler.suspects().is_empty());
        handled(&it.call(9).await);
        it.handler.close(Duration::from_secs(30)).await;
        let (mut running, mut peak) = (0, 0);
        for line in it.lines("runs") {
            running += if line == "+" { 1 } else { -1 };
            peak = peak.max(running);
        }
        assert_eq!(running, 0);
        assert!(
            peak <= most,
            "{peak} at one time, {workers:?}: {:?}",
            it.lines("runs")
        );
    }
}

#[tokio::test]
async fn an_event_that_waits_for_a_process_of_its_own_is_given_back_when_the_handler_ends() {
    let script =
        each("echo $id >>seen\n[ -e mended ] && sleep 600\n[ $(wc -l <seen) = 2 ] && exit 1");
    let it = Arc::new(Fixture::new(
        &script,
        "in_flight = 2\nworkers = 1\ngrace = '100ms'",
    ));
    let calls = [it.spawn(0), {
        it.wrote("seen", 1).await;
        it.spawn(1)
    }];
    for call in calls {
        assert!(!retry_of(call.await.unwrap()).counts);
    }
    std::fs::write(it.path("mended"), "").unwrap();
    wait_for("the pause", || it.handler.pool.call_at_once().then_some(())).await;
    let first = it.spawn(0);
    it.wrote("seen", 3).await;
    let waits = it.spawn(1);
    it.handler.close(Duration::from_secs(3)).await;
    for call in [first, waits] {
        retry_of(call.await.unwrap());
    }
    assert_eq!(it.lines("seen").len(), 3);
}

#[tokio::test]
async fn one_that_never_stops_to_write_is_given_its_time_and_no_more() {
    let script = format!("{}yes ''", each(&format!("{OK}; break")));
    let it = Fixture::new(&script, "timeout = '2s'");
    handled(&it.call(0).await);
    let why = it.retry(1).await;
    assert!(why.contains("gave no answer within 2s"), "{why}");
}

#[tokio::test]
async fn at_the_end_its_input_closes_and_it_may_finish() {
    let script = format!("{}\nsleep 0.3; echo done >>end", each(OK));
    let it = Fixture::new(&script, "");
    handled(&it.call(0).await);
    it.handler.close(Duration::from_secs(30)).await;
    assert_eq!(it.lines("end"), ["done"]);
    assert!(it.retry(1).await.contains("closed"));
}

#[tokio::test]
async fn one_that_does_not_end_is_asked_and_then_made_to() {
    let stays = format!("{}\nwhile :; do sleep 0.05; done", each(OK));
    let asked = format!("trap 'echo asked >>end; exit' TERM\n{stays}");
    let it = Fixture::new(&asked, "grace = '100ms'");
    handled(&it.call(0).await);
    it.handler.close(Duration::from_secs(30)).await;
    assert_eq!(it.lines("end"), ["asked"]);

    let deaf = format!("trap '' TERM; echo $$ >>pids\n{stays}");
    // Less time than its grace.
    let it = Fixture::new(&deaf, "grace = '60s'");
    handled(&it.call(0).await);
    let began = Instant::now();
    it.handler.close(Duration::from_secs(3)).await;
    assert!(began.elapsed() < Duration::from_secs(20));
    gone(&it.lines("pids")[0]).await;
}

#[tokio::test]
async fn a_handler_that_is_dropped_lets_its_processes_end() {
    let it = Fixture::new(&format!("echo $$ >>pids\n{}", each(OK)), "");
    handled(&it.call(0).await);
    let pid = it.lines("pids").remove(0);
    drop(it.handler);
    gone(&pid).await;
}

#[tokio::test]
async fn the_check_runs_it_without_an_event() {
    for (script, why) in [
        (each(OK), None),
        (
            "echo cannot find it >&2; exit 3".to_owned(),
            Some("exit code 3 without an event, last on its standard error: cannot find it"),
        ),
        (
            "cat; echo ready".to_owned(),
            Some("wrote 6 bytes to its standard output"),
        ),
        (
            "sleep 600".to_owned(),
            Some("does not end when its standard input does"),
        ),
    ] {
        let it = Fixture::new(&script, "timeout = '2s'");
        let checked = it.handler.check().await;
        match why {
            None => assert_eq!(checked, Ok(())),
            Some(why) => {
                let error = checked.unwrap_err();
                assert!(error.contains(why), "{error}");
            }
        }
    }
}

#[test]
fn options_that_cannot_be_used_are_refused_without_showing_them() {
    for (options, part) in [
        ("", "`command` is missing"),
        ("command = 'hidden | hidden'", "[\"sh\", \"-c\", \"…\"]"),
        ("command = ['a', 1]", "`command` must be a list"),
        ("command = []", "`command` is blank"),
        (
            "command = [' ', 'hidden']",
            "must begin with the name of a program",
        ),
        (
            "command = ['a']\nenv = { 'A=B' = 'hidden' }",
            "is not the name of a variable",
        ),
        ("command = ['a']\nenv = { A = \"hidden\\u0000\" }", "U+0000"),
        ("command = ['a']\nworkers = 0", "from 1 to 256"),
        ("command = ['a']\nin_flight = 1000", "from 1 to 256"),
        ("command = ['a']\ntimeout = '0s'", "above zero"),
        ("comand = ['hidden']", "did you mean `command`?"),
    ] {
        let error = ExecHandler::from_config(&config("exec", options)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(part), "{text}");
        assert!(!text.contains("hidden"), "{text}");
    }
}
