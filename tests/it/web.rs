//! The status page as a process: who is let in, what the buttons do, what the metrics of several workers are, and
//! that nothing from an event is markup.

use std::collections::BTreeMap;
use std::time::Duration;

use orgstream::store::{DeadLetterFilter, StoredDeadLetter};
use reqwest::StatusCode;
use serde_json::json;

use crate::support::cluster::Cluster;
use crate::support::page::{TOKEN, Visit, Web, form};
use crate::support::{
    Daemon, Emulator, Hook, LOG, Reply, Store, account_update, configured, eventually, record,
    webhook,
};

const ACCOUNTS: &str = "/data/AccountChangeEvent";
const OURS: (&str, &str, &str) = ("accounts", ACCOUNTS, "start = \"earliest\"");

/// A store with its tables, which nobody runs on.
async fn quiet_store() -> Store {
    let store = Store::sqlite();
    let env = BTreeMap::from([("DATABASE_URL", store.url.clone())]);
    let (code, _, said) = Daemon::output(&["migrate"], "", &env).await;
    assert_eq!(code, 0, "{said}");
    store
}

#[tokio::test]
async fn nobody_is_let_in_without_the_token_and_three_ways_lead_in_with_it() {
    let store = quiet_store().await;
    let web = Web::start(&store, "").await;
    // What is open to everyone says a word.
    for (path, word) in [("/healthz", "ok\n"), ("/readyz", "ready\n")] {
        let answer = web.get(path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.text().await.unwrap(), word);
    }
    let closed = [
        "/",
        "/metrics",
        "/events?page=/",
        "/dead-letters",
        "/dead-letters/1",
        "/holes",
        "/subscriptions/x",
        "/nothing/here",
    ];
    for path in closed {
        let answer = web.get(path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
        assert!(
            answer.headers()["www-authenticate"]
                .to_str()
                .unwrap()
                .starts_with("Bearer")
        );
        let visit = web
            .get(path)
            .header("accept", "text/html")
            .send()
            .await
            .unwrap();
        assert_eq!(visit.status(), StatusCode::SEE_OTHER, "{path}");
        let to = visit.headers()["location"].to_str().unwrap();
        assert!(to.starts_with("/sign-in?next=%2F"), "{to}");
        for wrong in ["", "wrong", &TOKEN[1..]] {
            // A few only: too many would be refused unseen.
            if path == "/" {
                let answer = web.get(path).bearer_auth(wrong).send().await.unwrap();
                assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{wrong}");
            }
        }
    }
    let bearer = web.get("/").bearer_auth(TOKEN).send().await.unwrap();
    assert_eq!(bearer.status(), StatusCode::OK);
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "same-origin"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(bearer.headers()[name], value, "{name}");
    }
    let policy = bearer.headers()["content-security-policy"]
        .to_str()
        .unwrap();
    assert!(
        policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"),
        "{policy}"
    );
    let basic = web
        .get("/")
        .basic_auth("anybody", Some(TOKEN))
        .send()
        .await
        .unwrap();
    assert_eq!(basic.status(), StatusCode::OK);
    let page = web.sign_in().await.page("/").await;
    assert!(
        page.contains("No subscription yet") && !page.contains(TOKEN),
        "{page}"
    );
    let refused = web
        .post("/sign-in", &[("token", "wrong")])
        .send()
        .await
        .unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert!(refused.headers().get("set-cookie").is_none());
    assert_eq!(web.daemon.stop().await.1, 0);
}

#[tokio::test]
async fn who_guesses_is_held_up_and_who_is_signed_in_is_not() {
    let store = quiet_store().await;
    let web = Web::start(&store, "").await;
    let visit = web.sign_in().await;
    // Another address than the one that was let in; the loopback has many.
    let guesser = reqwest::Client::builder()
        .no_proxy()
        .local_address(Some("127.0.0.2".parse().unwrap()))
        .build()
        .unwrap();
    let guess = async |token: &str| {
        let request = guesser
            .get(format!("{}/metrics", web.url))
            .bearer_auth(token);
        request.send().await.unwrap().status()
    };
    let mut answers = Vec::new();
    for n in 0..40 {
        answers.push(guess(&format!("guess {n}")).await);
    }
    assert_eq!(answers[0], StatusCode::UNAUTHORIZED);
    assert_eq!(answers.last(), Some(&StatusCode::TOO_MANY_REQUESTS));
    // Right by chance, it would not even know.
    assert_eq!(guess(TOKEN).await, StatusCode::TOO_MANY_REQUESTS);
    visit.page("/").await;
    assert!(web.metrics().await.contains("orgstream_stored_up 1"));
    assert_eq!(web.daemon.stop().await.1, 0);
}

#[tokio::test]
async fn it_ends_with_what_is_wrong_and_how_to_mend_it() {
    let run = async |env: &[(&'static str, &str)]| {
        let env = env.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
        Daemon::output(&["web"], "", &env).await
    };
    let sqlite = ("DATABASE_URL", "sqlite::memory:");
    let (code, _, said) = run(&[sqlite]).await;
    assert_eq!(code, 78, "{said}");
    assert!(
        said.contains("ORGSTREAM_WEB_TOKEN") && said.contains("openssl rand -hex 32"),
        "{said}"
    );
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let env = [
        sqlite,
        ("ORGSTREAM_WEB_TOKEN", TOKEN),
        ("ORGSTREAM_WEB_ADDR", addr.as_str()),
    ];
    let (code, _, said) = run(&env).await;
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains(&addr) && said.contains("ORGSTREAM_WEB_ADDR"),
        "{said}"
    );
}

/// Letters of a subscription whose handler refuses what `refuses` says, and a page of it.
struct Parked {
    org: Emulator,
    store: Store,
    hook: Hook,
    worker: Daemon,
    web: Web,
}

impl Parked {
    async fn new(events: &[serde_json::Value], more: &str) -> Self {
        let org = Emulator::start().await;
        let store = Store::sqlite();
        let hook = Hook::start(|event, attempts| {
            // Good at the second attempt, but for those that are bad for good.
            let bad = event["data"]["Name"]
                .as_str()
                .is_some_and(|name| name.starts_with("bad"));
            Reply::from(if bad || attempts == 0 { 422 } else { 200 })
        })
        .await;
        let config = configured(&org, &store, "", OURS, &webhook(&hook.url(), more));
        let worker = Daemon::run(&config);
        org.publish(ACCOUNTS, events).await;
        store.parks(events.len()).await;
        let web = Web::start(&store, &config).await;
        Self {
            org,
            store,
            hook,
            worker,
            web,
        }
    }

    async fn letter(&self, id: i64) -> StoredDeadLetter {
        let store = self.store.opened().await;
        let letter = store.dead_letter(id).await.unwrap().unwrap();
        store.close().await;
        letter
    }

    async fn ids(&self) -> Vec<i64> {
        self.store.parked().await.iter().map(|one| one.id).collect()
    }

    async fn end(self) {
        assert_eq!(self.web.daemon.stop().await.1, 0);
        assert_eq!(self.worker.stop().await.1, 0);
        drop((self.org, self.hook));
    }
}

#[tokio::test]
async fn a_retry_at_the_page_is_carried_out_and_the_page_says_so() {
    let parked = Parked::new(&[account_update(&record(1), "one")], "").await;
    let id = parked.ids().await[0];
    let visit = parked.web.sign_in().await;
    let path = format!("/dead-letters/{id}");
    let page = visit.page(&path).await;
    for shown in [
        "rejected",
        "422",
        "after 1 attempt",
        "&quot;Name&quot;: &quot;one&quot;",
        &record(1),
    ] {
        assert!(page.contains(shown), "{shown} in {page}");
    }
    let answer = visit.press(&path, &format!("{path}/retry")).await;
    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    assert_eq!(answer.headers()["location"], path.as_str());
    let page = visit.page_says(&path, "handled").await;
    assert!(!page.contains("/retry\""), "{page}");
    assert_eq!(parked.letter(id).await.state, "handled");
    assert_eq!(parked.hook.accepted().len(), 1);
    // Once more is too late, and is told in the words of the command.
    let old = form(&visit.page("/").await, "/sign-out");
    let fields: Vec<(&str, &str)> = old.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let answer = visit.post(&format!("{path}/retry"), &fields).await;
    assert_eq!(answer.status(), StatusCode::CONFLICT);
    let text = answer.text().await.unwrap();
    assert!(
        text.contains(&format!("parked event {id} is handled already")),
        "{text}"
    );
    parked.end().await;
}

#[tokio::test]
async fn discarding_asks_first_says_what_follows_and_lets_those_behind_go() {
    let events = [
        account_update(&record(1), "bad"),
        account_update(&record(1), "behind"),
        account_update(&record(2), "other"),
    ];
    let parked = Parked::new(&events, "").await;
    let letters = parked.store.parked().await;
    let of_first = |reason: &str| {
        let is_it = |one: &&StoredDeadLetter| {
            one.letter.record_ids == [record(1)] && one.letter.reason == reason
        };
        letters.iter().find(is_it).unwrap().id
    };
    let ids = [of_first("rejected"), of_first("parked_behind")];
    let visit = parked.web.sign_in().await;
    let path = format!("/dead-letters/{}", ids[0]);
    let question = visit.page(&format!("{path}/discard")).await;
    assert!(
        question
            .contains("1 event given up for good; 1 event parked behind go to the handler then"),
        "{question}"
    );
    assert_eq!(
        parked.letter(ids[0]).await.state,
        "open",
        "asking changes nothing"
    );
    let answer = visit
        .press(&format!("{path}/discard"), &format!("{path}/discard"))
        .await;
    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    assert_eq!(parked.letter(ids[0]).await.state, "discarded");
    let behind = format!("/dead-letters/{}", ids[1]);
    // It is refused at its first attempt, as all are, and then by its own fault.
    visit.page_says(&behind, "rejected").await;
    let list = visit.page("/dead-letters?state=discarded").await;
    assert!(
        list.contains(&format!("href=\"{path}\"")) && !list.contains(&format!("href=\"{behind}\"")),
        "{list}"
    );
    // All that are left at once.
    let answer = visit
        .press(
            "/dead-letters/retry?subscription=accounts",
            "/dead-letters/retry",
        )
        .await;
    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    eventually("both handled", async || {
        let open = DeadLetterFilter {
            state: Some("open".into()),
            limit: 9,
            ..DeadLetterFilter::default()
        };
        let store = parked.store.opened().await;
        let left = store.dead_letters(&open).await.unwrap_or_default().len();
        store.close().await;
        (left == 0).then_some(())
    })
    .await;
    parked.end().await;
}

#[tokio::test]
async fn a_button_counts_only_from_a_page_of_ours_in_the_same_session() {
    let parked = Parked::new(&[account_update(&record(1), "bad")], "").await;
    let id = parked.ids().await[0];
    let (web, visit) = (&parked.web, parked.web.sign_in().await);
    let action = format!("/dead-letters/{id}/retry");
    let token = form(&visit.page(&format!("/dead-letters/{id}")).await, &action);
    let token = token[0].1.as_str();
    let other = web.sign_in().await;
    let others = form(&other.page("/").await, "/sign-out");
    let forged = async |cookie: &str, given: &str, header: (&'static str, &str)| {
        let request = web.post(&action, &[("form_token", given)]);
        let request = request.header("cookie", cookie).header(header.0, header.1);
        request.send().await.unwrap().status()
    };
    let ours = ("sec-fetch-site", "same-origin");
    let own = visit.cookie.as_str();
    for (cookie, given, header) in [
        (own, "", ours),
        (own, "wrong", ours),
        (own, others[0].1.as_str(), ours),
        (own, token, ("sec-fetch-site", "cross-site")),
        (own, token, ("sec-fetch-site", "same-site")),
        (own, token, ("origin", "https://evil.example")),
        (own, token, ("origin", "null")),
    ] {
        assert_eq!(
            forged(cookie, given, header).await,
            StatusCode::FORBIDDEN,
            "{given} {header:?}"
        );
    }
    assert_eq!(forged("", token, ours).await, StatusCode::UNAUTHORIZED);
    // Basic auth is sent by browsers by themselves, and so needs a form, too.
    let basic = web
        .post(&action, &[("form_token", token)])
        .basic_auth("x", Some(TOKEN));
    assert_eq!(basic.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    // Nothing is changed by a mere visit.
    let visited = visit.answer(&action).await;
    assert_eq!(visited.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(parked.letter(id).await.retry_asked_at, None);
    // A script with the token needs none of it.
    let scripted = web
        .post(&action, &[])
        .bearer_auth(TOKEN)
        .send()
        .await
        .unwrap();
    assert_eq!(scripted.status(), StatusCode::SEE_OTHER);
    // Signed out, the cookie is taken away.
    let answer = visit.press("/", "/sign-out").await;
    assert!(
        answer.headers()["set-cookie"]
            .to_str()
            .unwrap()
            .contains("Max-Age=0")
    );
    // Forms are small.
    let large = "x".repeat(64 * 1024);
    let answer = visit
        .post(&action, &[("form_token", token), ("more", &large)])
        .await;
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    parked.end().await;
}

/// What would be markup, a script, an attribute's end, or a text turned round.
const PLANTED: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u{202e}gpj.exe";

/// A program that refuses each event for the reason in `REASON`. A dollar sign of its own is written twice.
const REFUSES: &str = r#"while read -r line; do id=$${line#*'"id":"'}; id=$${id%%'"'*}; printf '{"id":"%s","reject":%s}\n' "$$id" "$$REASON"; done"#;

/// Whatever is in the page, it is text.
fn is_text(page: &str, place: &str) {
    for markup in ["<script>alert", "<img src=x", "\u{202e}", "\"'>"] {
        assert!(!page.contains(markup), "{markup:?} on {place}: {page}");
    }
}

#[tokio::test]
async fn nothing_from_an_event_or_an_error_is_markup() {
    // The handler quotes what it was given, as many do.
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let reason = serde_json::to_string(PLANTED).unwrap();
    let program = format!(
        "[[subscription.handler]]\nname = \"out\"\ntype = \"exec\"\nenv = {{ REASON = '''{reason}''' }}\n\
         command = [\"sh\", \"-c\", '''{REFUSES}''']\n"
    );
    let config = configured(&org, &store, "", OURS, &program);
    let worker = Daemon::run(&config);
    let mut event = account_update(&record(1), PLANTED);
    event["ChangeEventHeader"]["recordIds"] = json!([PLANTED]);
    org.publish(ACCOUNTS, &[event]).await;
    let letters = store.parks(1).await;
    assert!(
        letters[0].letter.error.contains("<script>"),
        "{:?}",
        letters[0].letter.error
    );
    let web = Web::start(&store, &config).await;
    let visit = web.sign_in().await;
    let letter = format!("/dead-letters/{}", letters[0].id);
    for path in [
        "/",
        "/subscriptions/accounts",
        "/dead-letters",
        letter.as_str(),
        &format!("{letter}/discard"),
        "/dead-letters?handler=%22%3E%3Cscript%3Ealert(1)%3C/script%3E&state=any",
        "/holes?subscription=%3Cscript%3Ealert(1)",
        "/sign-in?next=/%22%3E%3Cscript%3Ealert(1)%3C/script%3E",
    ] {
        let page = visit.page(path).await;
        is_text(&page, path);
    }
    let page = visit.page(&letter).await;
    assert!(
        page.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && page.contains("\\u202e"),
        "{page}"
    );
    let missing = visit.answer("/subscriptions/%3Cscript%3Ealert(1)").await;
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
    is_text(
        &missing.text().await.unwrap(),
        "a page that says there is none",
    );
    // Nor is it in what a page is sent later.
    let stream = first_parts(&visit, &letter).await;
    is_text(&stream, "the stream");
    assert!(stream.contains("&lt;script&gt;"), "{stream}");
    assert_eq!(web.daemon.stop().await.1, 0);
    assert_eq!(worker.stop().await.1, 0);
}

/// The first event of a page's stream.
async fn first_parts(visit: &Visit<'_>, page: &str) -> String {
    let mut answer = visit.answer(&format!("/events?page={page}")).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut text = String::new();
    while !text.contains("\n\n") {
        text.push_str(&String::from_utf8_lossy(
            &answer.chunk().await.unwrap().unwrap(),
        ));
    }
    text
}

#[tokio::test]
async fn what_a_handler_is_not_shown_no_page_shows() {
    let key = "encryption_key = \"0123456789abcdef0123456789abcdef\"\n";
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::start(|_, _| Reply::from(422)).await;
    let handler = webhook(&hook.url(), "fields = { mask = [\"Name\"] }");
    let config = configured(&org, &store, "", OURS, &handler)
        .replace("[store]\n", &format!("[store]\n{key}"));
    let worker = Daemon::run(&config);
    org.publish(ACCOUNTS, &[account_update(&record(1), "planted name")])
        .await;
    let letters = store.parks(1).await;
    let path = format!("/dead-letters/{}", letters[0].id);
    let web = Web::start(&store, &config).await;
    let page = web.sign_in().await.page(&path).await;
    assert!(page.contains("&quot;Name&quot;: &quot;***&quot;"), "{page}");
    assert!(!page.contains("planted name"), "{page}");
    // Without the configuration nobody can tell what may be shown.
    let blind = Web::start(
        &store,
        key.replacen("encryption_key", "[store]\nencryption_key", 1)
            .as_str(),
    )
    .await;
    let page = blind.sign_in().await.page(&path).await;
    assert!(
        page.contains("Not shown: ")
            && !page.contains("planted name")
            && !page.contains("LastModified"),
        "{page}"
    );
    assert_eq!(web.daemon.stop().await.1, 0);
    assert_eq!(blind.daemon.stop().await.1, 0);
    assert_eq!(worker.stop().await.1, 0);
}

#[tokio::test]
async fn a_subscription_is_paused_and_resumed_and_a_hole_acknowledged() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let config = configured(&org, &store, "", OURS, LOG);
    let worker = Daemon::run(&config);
    store
        .until("accounts", "live", |one| one.state == "live")
        .await;
    org.publish(
        ACCOUNTS,
        &[json!({"ChangeEventHeader": {"recordIds": [record(1)], "changeType": "GAP_UPDATE"}})],
    )
    .await;
    let web = Web::start(&store, &config).await;
    let visit = web.sign_in().await;
    visit.page_says("/holes", "gap").await;
    let hole = store.holes().await[0].id;
    let action = format!("/holes/{hole}/acknowledge");
    let answer = visit.press("/holes", &action).await;
    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    assert!(store.holes().await[0].acknowledged_at.is_some());
    visit
        .page_says("/holes", "No holes wait for a person.")
        .await;
    let pause = "/subscriptions/accounts/pause";
    let question = visit.page(pause).await;
    assert!(question.contains("Pause accounts?"), "{question}");
    assert_eq!(
        visit.press(pause, pause).await.status(),
        StatusCode::SEE_OTHER
    );
    store
        .until("accounts", "let go", |one| {
            one.paused_at.is_some() && !one.held
        })
        .await;
    visit
        .page_says("/subscriptions/accounts", "paused by a person")
        .await;
    let resume = "/subscriptions/accounts/resume";
    let answer = visit.press("/subscriptions/accounts", resume).await;
    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    store
        .until("accounts", "live again", |one| {
            one.held && one.state == "live"
        })
        .await;
    assert_eq!(web.daemon.stop().await.1, 0);
    assert_eq!(worker.stop().await.1, 0);
}

/// The value of a sample whose line holds all of these texts.
fn value(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let is_it = |line: &&str| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    };
    let line = text.lines().find(is_it)?;
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn metrics_of_all_workers_stand_beside_what_the_store_tells() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let org = Emulator::start().await;
    let both: String = ["one", "two"]
        .map(|name| format!("[[subscription]]\nname = \"{name}\"\ntopic = \"{ACCOUNTS}\"\nstart = \"earliest\"\n{LOG}"))
        .concat();
    let config = format!(
        "{}\n[store]\nurl = \"{}\"\nlease = \"4s\"\n{both}",
        org.salesforce(),
        store.url
    );
    let first = Daemon::run_with(&config, &[("DYNO", "worker.1")]);
    let second = Daemon::run_with(&config, &[("DYNO", "worker.2")]);
    let web = Web::start(&store, &config).await;
    org.publish(ACCOUNTS, &[account_update(&record(1), "one")])
        .await;
    store
        .until("one", "an event finished", |one| one.finished == 1)
        .await;
    let live = "orgstream_stored_state{subscription=\"one\",state=\"live\"} 1";
    let text = web
        .metrics_until("both workers", |text| {
            text.contains("orgstream_events_received_total")
                || text.contains(live)
                    && text.contains("dyno=\"worker.1\"")
                    && text.contains("dyno=\"worker.2\"")
        })
        .await;
    for family in text.lines().filter(|line| line.starts_with("# TYPE ")) {
        let times = text.lines().filter(|line| *line == family).count();
        assert_eq!(times, 1, "{family}");
    }
    assert_eq!(value(&text, "orgstream_stored_up", &[]), Some(1.0));
    assert_eq!(value(&text, "orgstream_stored_held", &["one"]), Some(1.0));
    assert!(
        !text
            .lines()
            .any(|line| line.starts_with("orgstream_stored_") && line.contains("dyno="))
    );
    promtool(&text);
    // The one that runs `one` is killed: its metrics go, the lag grows, nobody holds it, and then the other does.
    let owner = store.subscription("one").await.unwrap().worker.unwrap();
    let (killed, left, other) = if owner == "worker.1" {
        (first, second, "worker.2")
    } else {
        (second, first, "worker.1")
    };
    let before = value(&text, "orgstream_stored_lag_seconds", &["one"]).unwrap();
    assert!(before.is_finite(), "{text}");
    // The other one looks away meanwhile.
    left.signal("STOP");
    killed.kill();
    let gone = format!("dyno=\"{owner}\"");
    web.metrics_until("nobody to hold it", |text| {
        let lag = value(text, "orgstream_stored_lag_seconds", &["one"]);
        value(text, "orgstream_stored_held", &["one"]) == Some(0.0)
            && lag.is_some_and(|lag| lag > before + 3.0)
            && !text.contains(&gone)
    })
    .await;
    left.signal("CONT");
    let text = web
        .metrics_until("the other worker", |text| {
            value(text, "orgstream_stored_held", &["one"]) == Some(1.0)
                && value(text, "orgstream_workers_alive", &[]) == Some(1.0)
                && text.contains(&format!("dyno=\"{other}\""))
        })
        .await;
    assert!(text.contains(&format!("dyno=\"{other}\"")), "{text}");
    assert!(!text.contains(&gone), "{text}");
    assert_eq!(left.stop().await.1, 0);
    let text = web
        .metrics_until("no worker", |text| {
            value(text, "orgstream_workers_alive", &[]) == Some(0.0)
        })
        .await;
    assert_eq!(value(&text, "orgstream_stored_held", &["one"]), Some(0.0));
    promtool(&text);
    assert_eq!(web.daemon.stop().await.1, 0);
}

/// Prometheus' own judgement of a text, where it is installed.
fn promtool(text: &str) {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let tool = crate::support::server::find("promtool", "ORGSTREAM_REQUIRE_PROMTOOL");
    let Some(tool) = tool else { return };
    let mut child = Command::new(tool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}\n{text}");
}

#[tokio::test]
async fn a_database_that_is_away_is_told_and_what_was_known_stays_to_be_seen() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    cluster.sql("postgres", "create database orgstream").await;
    let url = Cluster::url(&cluster.addr(), "postgres", "orgstream");
    let store = Store::at(url);
    let org = Emulator::start().await;
    let config = configured(&org, &store, "", OURS, LOG);
    let worker = Daemon::run(&config);
    store
        .until("accounts", "live", |one| one.state == "live")
        .await;
    let web = Web::start(&store, &config).await;
    let visit = web.sign_in().await;
    visit.page_says("/", "live").await;
    assert_eq!(worker.stop().await.1, 0);
    cluster.down("fast");
    let word = async |path: &str| web.get(path).send().await.unwrap();
    eventually("not ready", async || {
        (word("/readyz").await.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(())
    })
    .await;
    assert_eq!(word("/readyz").await.text().await.unwrap(), "unavailable\n");
    assert_eq!(word("/healthz").await.status(), StatusCode::OK);
    let page = visit.page("/").await;
    assert!(
        page.contains("The database does not answer.") && page.contains("accounts"),
        "{page}"
    );
    let text = web.metrics().await;
    assert_eq!(value(&text, "orgstream_stored_up", &[]), Some(0.0));
    assert!(text.contains("orgstream_build_info"), "{text}");
    assert!(!text.contains("orgstream_stored_lag"), "{text}");
    promtool(&text);
    let letters = visit.answer("/dead-letters").await;
    assert_eq!(letters.status(), StatusCode::SERVICE_UNAVAILABLE);
    // Started without a database, it says the same, and is well once there is one.
    let early = Web::start(&store, &config).await;
    let page = early.sign_in().await.page("/").await;
    assert!(page.contains("Nothing is known until it does."), "{page}");
    cluster.up();
    for web in [&web, &early] {
        eventually("ready again", async || {
            let ready = web.get("/readyz").send().await.unwrap();
            (ready.status() == StatusCode::OK).then_some(())
        })
        .await;
    }
    let page = visit.page("/").await;
    assert!(!page.contains("The database does not answer."), "{page}");
    assert_eq!(early.daemon.stop().await.1, 0);
    assert_eq!(web.daemon.stop().await.1, 0);
}

#[tokio::test]
async fn streams_and_slow_clients_do_not_hold_the_end_up() {
    let store = quiet_store().await;
    let mut web = Web::start(&store, "").await;
    let cookie = web.sign_in().await.cookie;
    let events = web.get("/events?page=/").header("cookie", &cookie);
    let stream = events.send().await.unwrap();
    assert_eq!(stream.status(), StatusCode::OK);
    let addr = web.url.trim_start_matches("http://").to_owned();
    let _idle = tokio::net::TcpStream::connect(&addr).await.unwrap();
    web.daemon.signal("TERM");
    let status = web.daemon.ended_within(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(0));
    drop(stream);
}
