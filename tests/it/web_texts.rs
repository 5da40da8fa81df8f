//! The status page shows what handlers are shown, as text and never as markup.

use reqwest::StatusCode;
use serde_json::json;

use crate::support::page::{Visit, Web};
use crate::support::{
    Daemon, Emulator, Hook, Reply, Store, account_update, configured, record, webhook,
};

const ACCOUNTS: &str = "/data/AccountChangeEvent";
const OURS: (&str, &str, &str) = ("accounts", ACCOUNTS, "start = \"earliest\"");

/// What would be markup, a script, an attribute's end, or a text turned round.
const PLANTED: &str =
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u{202e}gpj.exe\u{9b}31m\u{7f}";

/// A program that refuses each event for the reason in `REASON`. A dollar sign of its own is written twice.
const REFUSES: &str = r#"while read -r line; do id=$${line#*'"id":"'}; id=$${id%%'"'*}; printf '{"id":"%s","reject":%s}\n' "$$id" "$$REASON"; done"#;

/// Whatever is in the page, it is text.
fn is_text(page: &str, place: &str) {
    for markup in ["<script>alert", "<img src=x", "\u{202e}", "\u{9b}", "\"'>"] {
        assert!(!page.contains(markup), "{markup:?} on {place}: {page}");
    }
}

#[tokio::test]
async fn nothing_from_an_event_or_an_error_is_markup() {
    // The handler quotes what it was given, as many do.
    let org = Emulator::start().await;
    let store = Store::sqlite();
    // TOML takes no control but spelt out, as JSON may have it, too.
    let reason = serde_json::to_string(PLANTED).unwrap();
    let reason = reason.replace('\u{7f}', "\\u007f");
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
    // At a terminal it steers nothing, either.
    let id = letters[0].id.to_string();
    let env = std::collections::BTreeMap::new();
    let (code, shown, _) = Daemon::output(&["dead-letters", "show", &id], &config, &env).await;
    assert_eq!(code, 0);
    let shown = shown.to_string();
    assert!(shown.contains("gpj.exe"), "{shown}");
    let steers = |c: char| c != '\n' && c.is_control() || c == '\u{202e}';
    assert!(!shown.contains(steers), "{shown:?}");
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
