//! The refresh token flow, against a token endpoint of our own and a vault in memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;

use super::testing::{LoginHost, MemoryVault, config, granted, ok, refresh_token, refused};
use super::tests::{refusal, token};
use super::{Authenticator, TokenSource};

/// A login host that rotates: each refresh token is good once, and yields the next.
async fn rotating_host(vault: Arc<MemoryVault>) -> LoginHost {
    LoginHost::start(move |call, form| {
        vault.note(format!("refresh {}", form["refresh_token"]));
        if form["refresh_token"] != format!("r{}", call - 1) {
            return refused("invalid_grant", "expired access/refresh token");
        }
        let mut answer = granted(&format!("00D!{call}"));
        answer["refresh_token"] = json!(format!("r{call}"));
        ok(answer)
    })
    .await
}

#[tokio::test]
async fn a_rotated_refresh_token_is_stored_before_its_session_is_used() {
    let vault = Arc::new(MemoryVault::default());
    let host = rotating_host(vault.clone()).await;
    let auth =
        Authenticator::new(&config(&host.url, refresh_token("r0")), Some(vault.clone())).unwrap();
    auth.session().await.unwrap();
    vault.note("session");
    auth.sign_in_now().await.unwrap();
    assert_eq!(
        *vault.log.lock().unwrap(),
        [
            "lock",
            "refresh r0",
            "save r1",
            "unlock",
            "session",
            "lock",
            "refresh r1",
            "save r2",
            "unlock"
        ]
    );
}

#[tokio::test]
async fn a_caller_that_goes_away_loses_no_rotated_token() {
    let vault = Arc::new(MemoryVault::default());
    let host = rotating_host(vault.clone()).await;
    let auth =
        Authenticator::new(&config(&host.url, refresh_token("r0")), Some(vault.clone())).unwrap();
    vault.failing_saves.store(2, Ordering::SeqCst);
    let gone = tokio::time::timeout(Duration::from_millis(50), auth.session()).await;
    assert!(gone.is_err());
    drop(auth);
    let stored = async {
        while vault.stored().as_deref() != Some("r1") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), stored)
        .await
        .unwrap();
}

#[tokio::test]
async fn two_processes_refresh_one_after_the_other() {
    let vault = Arc::new(MemoryVault::default());
    let host = rotating_host(vault.clone()).await;
    let config = config(&host.url, refresh_token("r0"));
    let one = Authenticator::new(&config, Some(vault.clone())).unwrap();
    let other = Authenticator::new(&config, Some(vault.clone())).unwrap();
    let (one, other) = tokio::join!(one.session(), other.session());
    assert_ne!(token(&one.unwrap()), token(&other.unwrap()));
    assert_eq!(vault.stored().as_deref(), Some("r2"));
}

#[tokio::test]
async fn a_new_token_in_the_configuration_is_used_once_the_stored_one_is_dead() {
    let vault = Arc::new(MemoryVault::default());
    vault.store("dead");
    let host = LoginHost::start(|_, form| match form["refresh_token"].as_str() {
        "new" => ok(granted("00D!1")),
        _ => refused("invalid_grant", "expired access/refresh token"),
    })
    .await;
    let config = config(&host.url, refresh_token("new"));
    let auth = Authenticator::new(&config, Some(vault.clone())).unwrap();
    auth.session().await.unwrap();
    assert_eq!(vault.stored().as_deref(), Some("new"));
}

#[test]
fn the_refresh_token_flow_is_refused_where_nothing_can_keep_a_rotated_token() {
    let config = config("https://login.salesforce.com", refresh_token("r0"));
    let (reason, cure) = refusal(Authenticator::new(&config, None).unwrap_err());
    assert!(reason.contains("needs a store"), "{reason}");
    assert!(cure.contains("DATABASE_URL"), "{cure}");
}

#[tokio::test]
async fn closing_waits_until_a_rotated_token_is_stored() {
    let vault = Arc::new(MemoryVault::default());
    let host = rotating_host(vault.clone()).await;
    let auth =
        Authenticator::new(&config(&host.url, refresh_token("r0")), Some(vault.clone())).unwrap();
    vault.failing_saves.store(2, Ordering::SeqCst);
    let gone = tokio::time::timeout(Duration::from_millis(50), auth.session()).await;
    assert!(gone.is_err());
    auth.close().await;
    assert_eq!(vault.stored().as_deref(), Some("r1"));
    assert_eq!(vault.log.lock().unwrap().last().unwrap(), "unlock");
    // And no other token is used up then.
    auth.sign_in_now().await.unwrap_err();
    assert_eq!(host.calls(), 1);
}

#[tokio::test]
async fn closing_gives_up_the_wait_for_the_right_to_refresh() {
    let vault = Arc::new(MemoryVault::default());
    vault.give_to_another();
    let host = rotating_host(vault.clone()).await;
    let auth =
        Authenticator::new(&config(&host.url, refresh_token("r0")), Some(vault.clone())).unwrap();
    let gone = tokio::time::timeout(Duration::from_millis(50), auth.session()).await;
    assert!(gone.is_err());
    tokio::time::timeout(Duration::from_secs(5), auth.close())
        .await
        .unwrap();
    assert_eq!(host.calls(), 0);
}

#[tokio::test]
async fn the_right_is_taken_anew_before_each_further_request() {
    let vault = Arc::new(MemoryVault::default());
    vault.store("dead");
    let noted = vault.clone();
    let host = LoginHost::start(move |_, form| {
        noted.note(format!("refresh {}", form["refresh_token"]));
        match form["refresh_token"].as_str() {
            "new" => ok(granted("00D!1")),
            _ => refused("invalid_grant", "expired access/refresh token"),
        }
    })
    .await;
    let config = config(&host.url, refresh_token("new"));
    let auth = Authenticator::new(&config, Some(vault.clone())).unwrap();
    auth.session().await.unwrap();
    assert_eq!(
        *vault.log.lock().unwrap(),
        [
            "lock",
            "refresh dead",
            "lock",
            "refresh new",
            "save new",
            "unlock"
        ]
    );
}

#[tokio::test]
async fn whoever_lost_the_right_amid_a_refresh_stops_at_once() {
    let vault = Arc::new(MemoryVault::default());
    vault.store("dead");
    let thief = vault.clone();
    let host = LoginHost::start(move |_, _| {
        thief.give_to_another();
        refused("invalid_grant", "expired access/refresh token")
    })
    .await;
    let config = config(&host.url, refresh_token("new"));
    let auth = Authenticator::new(&config, Some(vault.clone())).unwrap();
    let error = auth.session().await.unwrap_err();
    assert!(error.to_string().contains("another process"), "{error}");
    // The configured token was not presented without the right.
    assert_eq!(host.calls(), 1);
}

#[tokio::test]
async fn a_rotated_token_is_not_pressed_upon_the_store_once_the_right_is_lost() {
    let vault = Arc::new(MemoryVault::default());
    let thief = vault.clone();
    let host = LoginHost::start(move |call, form| {
        if call == 1 {
            thief.give_to_another();
        } else {
            assert_eq!(form["refresh_token"], "newer");
        }
        let mut answer = granted("00D!1");
        answer["refresh_token"] = json!("rotated");
        ok(answer)
    })
    .await;
    let config = config(&host.url, refresh_token("r0"));
    let auth = Authenticator::new(&config, Some(vault.clone())).unwrap();
    let outcome = tokio::time::timeout(Duration::from_secs(5), auth.sign_in_now()).await;
    let error = outcome.unwrap().unwrap_err();
    assert!(error.to_string().contains("lost"), "{error}");
    assert_eq!(*vault.log.lock().unwrap(), ["lock", "save refused"]);
    // What the other one has stored meanwhile is the newer one.
    vault.store("newer");
    vault.free();
    auth.sign_in_now().await.unwrap();
}
