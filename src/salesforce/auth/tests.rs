//! Signing in, against a token endpoint of our own.

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::IntoResponse;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

use super::testing::{
    LoginHost, ORG, client_credentials, config, granted, jwt, key_pair, ok, refused,
};
use super::{AuthError, Authenticator, TokenSource};
use crate::config::{AuthConfig, BackoffConfig};

pub(super) fn token(session: &super::Session) -> &str {
    session.access_token.expose_secret()
}

pub(super) fn refusal(error: AuthError) -> (String, String) {
    match error {
        AuthError::Refused { reason, cure } => (reason, cure),
        AuthError::Unavailable { reason } => panic!("not refused: {reason}"),
    }
}

#[tokio::test]
async fn the_jwt_flow_sends_a_signed_assertion_and_reads_the_org_from_the_answer() {
    let host = LoginHost::start(|_, form| {
        assert_eq!(
            form["grant_type"],
            "urn:ietf:params:oauth:grant-type:jwt-bearer"
        );
        let mut validation = Validation::new(Algorithm::RS256);
        validation.validate_aud = false;
        let key = DecodingKey::from_rsa_der(&key_pair().public_der);
        match jsonwebtoken::decode::<serde_json::Value>(&form["assertion"], &key, &validation) {
            Ok(_) => ok(granted("00D!1")),
            Err(_) => refused("invalid_grant", "invalid assertion"),
        }
    })
    .await;
    let auth = Authenticator::new(&config(&host.url, jwt()), None).unwrap();
    let session = auth.session().await.unwrap();
    assert_eq!(token(&session), "00D!1");
    assert_eq!(session.org_id.as_str(), ORG);
    assert_eq!(session.instance_url, "https://acme.my.salesforce.com");
    assert!(!format!("{session:?} {auth:?}").contains("00D!1"));
}

#[tokio::test]
async fn client_credentials_go_into_the_body() {
    let host = LoginHost::start(|_, form| {
        assert_eq!(form["grant_type"], "client_credentials");
        assert_eq!(form["client_id"], "consumer");
        assert_eq!(form["client_secret"], "hush");
        ok(granted("00D!1"))
    })
    .await;
    let auth = Authenticator::new(&config(&host.url, client_credentials()), None).unwrap();
    assert_eq!(token(&auth.session().await.unwrap()), "00D!1");
}

#[tokio::test]
async fn a_hundred_callers_share_one_sign_in() {
    let host = LoginHost::start(|call, _| ok(granted(&format!("00D!{call}")))).await;
    let auth = Authenticator::new(&config(&host.url, client_credentials()), None).unwrap();
    let sessions = join_all((0..100).map(|_| auth.session())).await;
    assert!(
        sessions
            .iter()
            .all(|s| token(s.as_ref().unwrap()) == "00D!1")
    );
    assert_eq!(host.calls(), 1);
}

#[tokio::test]
async fn a_hundred_callers_share_one_failure_and_the_next_one_does_not_knock_again() {
    let host = LoginHost::start(|_, _| refused("invalid_grant", "user is locked")).await;
    let auth = Authenticator::new(&config(&host.url, client_credentials()), None).unwrap();
    for outcome in join_all((0..100).map(|_| auth.session())).await {
        let (reason, cure) = refusal(outcome.unwrap_err());
        assert_eq!(reason, "invalid_grant: user is locked");
        assert!(cure.contains("Login History"));
    }
    auth.session().await.unwrap_err();
    assert_eq!(host.calls(), 1);
    // A person who asks is heard at once.
    auth.sign_in_now().await.unwrap_err();
    assert_eq!(host.calls(), 2);
}

#[tokio::test]
async fn a_refusal_that_is_mended_is_recovered_from_without_a_restart() {
    let host = LoginHost::start(|call, _| match call {
        1 => refused("oauth_flow_disabled", ""),
        _ => ok(granted("00D!1")),
    })
    .await;
    let mut config = config(&host.url, client_credentials());
    config.blocked_retry = BackoffConfig {
        initial: Duration::from_millis(20),
        max: Duration::from_millis(20),
    };
    let auth = Authenticator::new(&config, None).unwrap();
    auth.session().await.unwrap_err();
    tokio::time::sleep(Duration::from_millis(30)).await;
    auth.session().await.unwrap();
}

#[tokio::test]
async fn a_caller_that_goes_away_interrupts_nobody() {
    let host = LoginHost::start(|_, _| ok(granted("00D!1"))).await;
    let auth = Authenticator::new(&config(&host.url, client_credentials()), None).unwrap();
    // Asks once and is gone. Not by a timeout: where the machine is busy, even the shortest fires after the answer.
    assert!(auth.session().now_or_never().is_none());
    auth.session().await.unwrap();
    assert_eq!(host.calls(), 1);
}

#[tokio::test]
async fn only_the_current_session_can_be_invalidated() {
    let host = LoginHost::start(|call, _| ok(granted(&format!("00D!{call}")))).await;
    let auth = Authenticator::new(&config(&host.url, client_credentials()), None).unwrap();
    let first = auth.session().await.unwrap();
    auth.invalidate(&first);
    let second = auth.session().await.unwrap();
    assert_eq!(token(&second), "00D!2");
    // A second stream learns late that the first session was refused.
    auth.invalidate(&first);
    assert_eq!(token(&auth.session().await.unwrap()), "00D!2");
    assert_eq!(host.calls(), 2);
}

#[tokio::test]
async fn an_org_that_refuses_every_new_token_causes_no_hot_login_loop() {
    let host = LoginHost::start(|call, _| ok(granted(&format!("00D!{call}")))).await;
    let auth = Authenticator::new(&config(&host.url, client_credentials()), None).unwrap();
    for _ in 0..50 {
        if let Ok(session) = auth.session().await {
            auth.invalidate(&session);
        }
    }
    assert_eq!(host.calls(), 2);
    let error = auth.session().await.unwrap_err();
    assert!(error.to_string().contains("refused the last 2"), "{error}");
}

#[tokio::test]
async fn an_old_session_is_renewed_and_serves_on_where_that_fails_for_now() {
    let host = LoginHost::start(|call, _| match call {
        1 | 3 => ok(granted(&format!("00D!{call}"))),
        _ => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    })
    .await;
    let mut config = config(&host.url, client_credentials());
    config.token_max_age = Duration::ZERO;
    config.reconnect.initial = Duration::from_millis(10);
    let auth = Authenticator::new(&config, None).unwrap();
    assert_eq!(token(&auth.session().await.unwrap()), "00D!1");
    // The renewal fails, and is not tried again at once.
    assert_eq!(token(&auth.session().await.unwrap()), "00D!1");
    assert_eq!(token(&auth.session().await.unwrap()), "00D!1");
    assert_eq!(host.calls(), 2);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(token(&auth.session().await.unwrap()), "00D!3");
}

#[tokio::test]
async fn answers_that_grant_no_usable_session_are_named_and_not_kept() {
    for (strange, words) in [
        (json!({ "instance_url": null }), "instance_url"),
        (json!({ "instance_url": "http://evil.example" }), "https://"),
        (json!({ "access_token": "eyJa.eyJb.c" }), "JSON Web Token"),
    ] {
        let host = LoginHost::start(move |_, _| {
            let mut answer = granted("00D!1");
            for (key, value) in strange.as_object().unwrap() {
                answer[key] = value.clone();
            }
            ok(answer)
        })
        .await;
        let auth = Authenticator::new(&config(&host.url, client_credentials()), None).unwrap();
        let (reason, cure) = refusal(auth.session().await.unwrap_err());
        assert!(reason.contains(words), "{reason}");
        assert!(!cure.is_empty());
        auth.sign_in_now().await.unwrap_err();
    }
}

#[tokio::test]
async fn trouble_at_the_login_host_is_no_refusal() {
    let host = LoginHost::start(|call, _| match call {
        1 => (StatusCode::BAD_GATEWAY, "<html>bad gateway</html>").into_response(),
        2 => ok(json!({ "token_type": "Bearer", "instance_url": "https://acme.example" })),
        3 => "<html>welcome to the hotel's network</html>".into_response(),
        _ => "x".repeat(200_000).into_response(),
    })
    .await;
    let auth = Authenticator::new(&config(&host.url, jwt()), None).unwrap();
    for _ in 0..4 {
        let error = auth.sign_in_now().await.unwrap_err();
        assert!(matches!(error, AuthError::Unavailable { .. }), "{error}");
    }
    drop(host);
    let nobody = Authenticator::new(&config("http://127.0.0.1:1", jwt()), None).unwrap();
    let error = nobody.session().await.unwrap_err();
    assert!(matches!(error, AuthError::Unavailable { .. }));
    assert!(
        error
            .to_string()
            .to_lowercase()
            .contains("connection refused"),
        "{error}"
    );
}

#[tokio::test]
async fn a_clock_that_is_off_is_said_where_an_assertion_is_refused() {
    let host = LoginHost::start(|_, _| {
        let mut response = refused("invalid_grant", "expired authorization code");
        let date = "Sun, 06 Nov 1994 08:49:37 GMT".parse().unwrap();
        response.headers_mut().insert("date", date);
        response
    })
    .await;
    let auth = Authenticator::new(&config(&host.url, jwt()), None).unwrap();
    let (_, cure) = refusal(auth.session().await.unwrap_err());
    assert!(cure.starts_with("This machine's clock is "), "{cure}");
    // Other flows send no times, so there it is not the cause.
    let auth = Authenticator::new(&config(&host.url, client_credentials()), None).unwrap();
    let (_, cure) = refusal(auth.session().await.unwrap_err());
    assert!(!cure.contains("This machine's clock"), "{cure}");
}

#[tokio::test]
async fn the_clock_is_compared_with_any_answer_of_the_login_host() {
    let host = LoginHost::start(|_, _| {
        let mut response = refused("invalid_request", "must use HTTP POST");
        let date = "Sun, 06 Nov 1994 08:49:37 GMT".parse().unwrap();
        response.headers_mut().insert("date", date);
        response
    })
    .await;
    let auth = Authenticator::new(&config(&host.url, jwt()), None).unwrap();
    let ahead = auth.clock_ahead().await.unwrap().unwrap();
    assert!(ahead > 20 * 365 * 86_400, "{ahead}");
    drop(host);
    let gone = Authenticator::new(&config("http://127.0.0.1:1", jwt()), None).unwrap();
    assert!(matches!(
        gone.clock_ahead().await,
        Err(AuthError::Unavailable { .. })
    ));
}

#[tokio::test]
async fn a_ready_token_names_its_org_and_is_not_used_again_once_refused() {
    let ready = |token: &str| AuthConfig::AccessToken {
        access_token: SecretString::from(token),
        instance_url: "https://acme.my.salesforce.com/".to_owned(),
        org_id: None,
    };
    let config = config("https://login.salesforce.com", ready("00D58000000arpq!x"));
    let auth = Authenticator::new(&config, None).unwrap();
    let session = auth.session().await.unwrap();
    assert_eq!(session.org_id.as_str(), ORG);
    auth.invalidate(&session);
    let (_, cure) = refusal(auth.session().await.unwrap_err());
    assert!(cure.contains("SALESFORCE_ACCESS_TOKEN"), "{cure}");
}

#[tokio::test]
async fn the_org_is_asked_for_where_nothing_names_it() {
    let host = LoginHost::start(|_, _| ok(json!({ "organization_id": ORG }))).await;
    let auth = AuthConfig::AccessToken {
        access_token: SecretString::from("opaque"),
        instance_url: host.url.clone(),
        org_id: None,
    };
    let auth = Authenticator::new(&config(&host.url, auth), None).unwrap();
    assert_eq!(auth.session().await.unwrap().org_id.as_str(), ORG);
}

#[test]
fn a_configuration_that_can_never_sign_in_is_refused_before_anything_is_sent() {
    let with_key = |key: &str| {
        let mut auth = jwt();
        if let AuthConfig::Jwt { private_key, .. } = &mut auth {
            *private_key = SecretString::from(key);
        }
        Authenticator::new(&config("https://login.salesforce.com", auth), None).unwrap_err()
    };
    assert!(with_key("nonsense").to_string().contains("private_key"));
    let plain = config("http://login.salesforce.com", client_credentials());
    let error = Authenticator::new(&plain, None).unwrap_err();
    assert!(error.to_string().contains("https://"), "{error}");
}

#[tokio::test]
async fn a_refused_renewal_leaves_the_session_until_the_org_refuses_it() {
    let host = LoginHost::start(|call, _| match call {
        1 => ok(granted("00D!1")),
        _ => refused("invalid_client", "no such app"),
    })
    .await;
    let mut config = config(&host.url, client_credentials());
    config.token_max_age = Duration::ZERO;
    let auth = Authenticator::new(&config, None).unwrap();
    let session = auth.session().await.unwrap();
    for _ in 0..3 {
        assert_eq!(token(&auth.session().await.unwrap()), "00D!1");
    }
    assert_eq!(host.calls(), 2);
    auth.invalidate(&session);
    let (reason, _) = refusal(auth.session().await.unwrap_err());
    assert!(reason.contains("invalid_client"), "{reason}");
}

#[tokio::test]
async fn a_doubted_session_is_renewed_once_and_locks_nobody_out() {
    let host = LoginHost::start(|call, _| ok(granted(&format!("00D!{call}")))).await;
    let auth = Authenticator::new(&config(&host.url, client_credentials()), None).unwrap();
    for _ in 0..20 {
        let session = auth.session().await.unwrap();
        auth.doubt(&session);
    }
    assert_eq!(token(&auth.session().await.unwrap()), "00D!2");
    assert_eq!(host.calls(), 2);
}

#[tokio::test]
async fn a_doubted_session_serves_on_where_it_cannot_be_renewed() {
    let host = LoginHost::start(|call, _| match call {
        1 => ok(granted("00D!1")),
        _ => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    })
    .await;
    let auth = Authenticator::new(&config(&host.url, client_credentials()), None).unwrap();
    let session = auth.session().await.unwrap();
    auth.doubt(&session);
    assert_eq!(token(&auth.session().await.unwrap()), "00D!1");
    assert_eq!(host.calls(), 2);
}

#[tokio::test]
async fn sessions_that_the_org_took_for_a_call_do_not_count_as_refused() {
    let host = LoginHost::start(|call, _| ok(granted(&format!("00D!{call}")))).await;
    let auth = Authenticator::new(&config(&host.url, client_credentials()), None).unwrap();
    for _ in 0..10 {
        let session = auth.session().await.unwrap();
        auth.accepted(&session);
        auth.invalidate(&session);
    }
    assert_eq!(host.calls(), 10);
}
