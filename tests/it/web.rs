//! The status page as a process: who is let in, and what the buttons do.

use orgstream::store::{DeadLetterFilter, StoredDeadLetter};
use reqwest::StatusCode;
use serde_json::json;

use crate::support::page::{TOKEN, Web, form, quiet_store};
use crate::support::{
    Daemon, Emulator, Hook, LOG, Reply, Store, account_update, configured, eventually, record,
    webhook,
};

const ACCOUNTS: &str = "/data/AccountChangeEvent";
const OURS: (&str, &str, &str) = ("accounts", ACCOUNTS, "start = \"earliest\"");

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

#[tokio::test]
async fn events_of_a_killed_worker_are_in_flight_no_more() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let org = Emulator::start().await;
    // The first is taken, the others wait for a better time.
    let hook = Hook::start(|event, _| {
        Reply::from(if event["data"]["Name"] == "one" {
            200
        } else {
            503
        })
    })
    .await;
    let config = configured(&org, &store, "", OURS, &webhook(&hook.url(), ""));
    let config = config.replacen("[store]\n", "[store]\nlease = \"4s\"\n", 1);
    let worker = Daemon::run(&config);
    org.publish(
        ACCOUNTS,
        &[
            account_update(&record(1), "one"),
            account_update(&record(2), "two"),
        ],
    )
    .await;
    store
        .until("accounts", "one in flight", |one| {
            one.received > one.finished
        })
        .await;
    worker.kill();
    store
        .until("accounts", "nobody to run it", |one| !one.held)
        .await;
    let web = Web::start(&store, &config).await;
    let page = web.sign_in().await.page("/subscriptions/accounts").await;
    let fact = page.split("<dt>In flight</dt>").nth(1).unwrap();
    let fact = fact.split("</dd>").next().unwrap();
    assert!(fact.contains("class=\"none\""), "{fact}");
    assert_eq!(web.daemon.stop().await.1, 0);
}
