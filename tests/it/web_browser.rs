//! The status page in a browser: no complaint in the console, up to date without being loaded again, readable in the
//! light, in the dark, and on a phone.

use serde_json::json;

use crate::support::browser::Browser;
use crate::support::page::{TOKEN, Web, quiet_store};
use crate::support::{
    Daemon, Emulator, Hook, LOG, Reply, Store, account_update, configured, record, webhook,
};

const ACCOUNTS: &str = "/data/AccountChangeEvent";
const OURS: (&str, &str, &str) = ("accounts", ACCOUNTS, "start = \"earliest\"");

/// Gives the token at the form, as a person does.
async fn sign_in(browser: &mut Browser, web: &Web) {
    browser.open(&format!("{}/", web.url)).await;
    browser
        .until("document.querySelector('#token') !== null")
        .await;
    browser.eval(&format!(
        "document.querySelector('#token').value = '{TOKEN}'; document.querySelector('form').submit()"
    ));
    browser
        .until("location.pathname === '/' && document.querySelector('#live-nav') !== null")
        .await;
}

/// Text of a part of the page.
fn text_of(selector: &str) -> String {
    format!("(document.querySelector('{selector}')?.innerText ?? '')")
}

#[tokio::test]
async fn the_page_stays_up_to_date_in_a_browser_and_its_buttons_work() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::start(|_, attempts| Reply::from(if attempts == 0 { 422 } else { 200 })).await;
    let config = configured(&org, &store, "", OURS, &webhook(&hook.url(), ""));
    let worker = Daemon::run(&config);
    store
        .until("accounts", "live", |one| one.state == "live")
        .await;
    let web = Web::start(&store, &config).await;
    browser.screen(1280, 900, false);
    sign_in(&mut browser, &web).await;
    let row = text_of("#live-subscriptions tbody tr");
    browser.until(&format!("{row}.includes('live')")).await;
    browser
        .until(&format!("{}.includes('Connected')", text_of("#link")))
        .await;
    // The very same page, which nothing loads again, tells what happens next.
    browser.eval("window.sameStill = true");
    org.publish(ACCOUNTS, &[account_update(&record(1), "one")])
        .await;
    let letters = store.parks(1).await;
    browser
        .until(&format!(
            "{}.includes('1 event parked')",
            text_of("#live-alerts")
        ))
        .await;
    browser
        .until("document.querySelector('#live-nav .badge')?.innerText === '1'")
        .await;
    assert_eq!(browser.eval("window.sameStill"), json!(true));
    // A letter is retried by its button.
    let letter = format!("{}/dead-letters/{}", web.url, letters[0].id);
    browser.open(&letter).await;
    browser
        .until(&format!("{}.includes('422')", text_of("#live-error")))
        .await;
    browser.eval("document.querySelector('#live-head form button').click()");
    browser
        .until(&format!("{}.includes('handled')", text_of("#live-head")))
        .await;
    browser
        .until("document.querySelector('#live-head form') === null")
        .await;
    // Colours follow the reader.
    let paper = "getComputedStyle(document.body).backgroundColor";
    let light = browser.eval(paper);
    browser.screen(1280, 900, true);
    let dark = browser.eval(paper);
    assert_ne!(light, dark);
    // On a phone nothing is wider than the screen.
    browser.screen(375, 800, false);
    for path in [
        "/",
        "/subscriptions/accounts",
        "/dead-letters?state=any",
        letter.strip_prefix(&web.url).unwrap(),
        "/holes",
        "/subscriptions/accounts/pause",
    ] {
        browser.open(&format!("{}{path}", web.url)).await;
        let wide = browser.eval("document.documentElement.scrollWidth");
        assert_eq!(wide, json!(375), "{path}");
    }
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
    // When nobody is there any more, the page says so; when somebody is again, too.
    browser.open(&format!("{}/", web.url)).await;
    browser
        .until(&format!("{}.includes('Connected')", text_of("#link")))
        .await;
    assert_eq!(web.daemon.stop().await.1, 0);
    browser
        .until("document.querySelector('#lost').hidden === false")
        .await;
    assert_eq!(
        browser.eval(&format!("{}.includes('Not connected')", text_of("#link"))),
        json!(true)
    );
    assert_eq!(worker.stop().await.1, 0);
}

#[tokio::test]
async fn a_page_whose_session_ended_leads_to_the_form_and_from_there_back() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let store = quiet_store().await;
    let web = Web::start(&store, "").await;
    sign_in(&mut browser, &web).await;
    browser.open(&format!("{}/holes?all=1", web.url)).await;
    browser
        .until(&format!("{}.includes('Connected')", text_of("#link")))
        .await;
    browser.call("Network.clearBrowserCookies", json!({}));
    // As after a pause: the page asks for its stream anew.
    browser.eval("document.dispatchEvent(new Event('visibilitychange'))");
    browser.until("location.pathname === '/sign-in'").await;
    browser.eval(&format!(
        "document.querySelector('#token').value = '{TOKEN}'; document.querySelector('form').submit()"
    ));
    browser
        .until("location.pathname === '/holes' && location.search === '?all=1'")
        .await;
    assert_eq!(web.daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_page_keeps_what_did_not_change_and_where_its_reader_is() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let config = configured(&org, &store, "", OURS, LOG);
    let worker = Daemon::run(&config);
    let gap = |number| json!({"ChangeEventHeader": {"recordIds": [record(number)], "changeType": "GAP_UPDATE"}});
    org.publish(ACCOUNTS, &[gap(1)]).await;
    let web = Web::start(&store, &config).await;
    sign_in(&mut browser, &web).await;
    web.sign_in().await.page_says("/holes", "Acknowledge").await;
    browser.open(&format!("{}/holes", web.url)).await;
    browser
        .until(&format!("{}.includes('Connected')", text_of("#link")))
        .await;
    // Only the age of it changes: the button stays the very same.
    browser.eval("window.button = document.querySelector('#live-holes form button')");
    browser.eval("window.age = document.querySelector('#live-holes time').textContent");
    browser
        .until("document.querySelector('#live-holes time').textContent !== window.age")
        .await;
    assert_eq!(browser.eval("window.button.isConnected"), json!(true));
    // Another hole comes before it: who was at this button still is.
    browser.eval("window.button.focus()");
    let at = "document.activeElement.closest('form')?.getAttribute('action')";
    let before = browser.eval(at);
    assert!(before.is_string(), "{before}");
    org.publish(ACCOUNTS, &[gap(2)]).await;
    browser
        .until("document.querySelectorAll('#live-holes form').length === 2")
        .await;
    assert_eq!(browser.eval("window.button.isConnected"), json!(false));
    assert_eq!(browser.eval(at), before);
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
    assert_eq!(web.daemon.stop().await.1, 0);
    assert_eq!(worker.stop().await.1, 0);
}

/// Streams that end at once, for good, and are counted.
const NO_STREAM: &str = "window.opened = 0; window.EventSource = class { static CLOSED = 2; readyState = 2; \
    constructor() { window.opened += 1; setTimeout(() => this.onerror(), 0); } \
    addEventListener() {} close() {} }; true";

/// As a browser that shows another tab, or this one.
fn hidden(so: bool) -> String {
    format!(
        "Object.defineProperty(document, 'hidden', {{ value: {so}, configurable: true }}); \
         document.dispatchEvent(new Event('visibilitychange')); true"
    )
}

#[tokio::test]
async fn a_page_that_nobody_looks_at_opens_no_stream() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let store = quiet_store().await;
    let web = Web::start(&store, "").await;
    sign_in(&mut browser, &web).await;
    browser.eval(NO_STREAM);
    browser.eval(&hidden(false));
    // It tries again, in two seconds, four, eight.
    browser.until("window.opened >= 2").await;
    browser.eval(&hidden(true));
    let opened = browser.eval("window.opened");
    browser.eval("new Promise(done => setTimeout(done, 6000))");
    assert_eq!(browser.eval("window.opened"), opened);
    // With somebody to look, it does.
    browser.eval(&hidden(false));
    browser.until(&format!("window.opened > {opened}")).await;
    assert_eq!(web.daemon.stop().await.1, 0);
}
