use jsonwebtoken::{Algorithm, EncodingKey, Header};
use secrecy::SecretString;

use super::*;

/// A refresh token, an app with keys, and an HTTP client.
struct Login {
    emulator: Emulator,
    key: SigningKey,
    http: reqwest::Client,
}

impl Login {
    async fn start_with(apps: Vec<App>) -> Self {
        let login = Self::start(false).await;
        let config = EmulatorConfig {
            apps,
            ..EmulatorConfig::default()
        };
        Self {
            emulator: Emulator::start(config).await.unwrap(),
            ..login
        }
    }

    async fn start(tls: bool) -> Self {
        let key = SigningKey::generate().unwrap();
        let mut config = EmulatorConfig {
            tls,
            ..EmulatorConfig::default()
        };
        config.apps[0].public_keys = vec![key.public_pem.clone()];
        config.apps[0].refresh_tokens = vec![SecretString::from("granted")];
        let emulator = Emulator::start(config).await.unwrap();
        let mut http = reqwest::Client::builder().no_proxy();
        if let Some(ca) = emulator.ca_pem() {
            let ca = reqwest::Certificate::from_pem(ca.as_bytes()).unwrap();
            http = http.tls_certs_only([ca]);
        }
        Self {
            emulator,
            key,
            http: http.build().unwrap(),
        }
    }

    async fn token(&self, form: &[(&str, &str)]) -> (u16, Value) {
        let url = format!("{}/services/oauth2/token", self.emulator.login_url());
        let answer = self.http.post(url).form(form).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap())
    }

    async fn jwt(&self, claims: Value) -> (u16, Value) {
        let key = EncodingKey::from_rsa_pem(self.key.private_pem.as_bytes()).unwrap();
        let header = Header::new(Algorithm::RS256);
        let assertion = jsonwebtoken::encode(&header, &claims, &key).unwrap();
        self.assertion(&assertion).await
    }

    async fn assertion(&self, assertion: &str) -> (u16, Value) {
        let grant_type = "urn:ietf:params:oauth:grant-type:jwt-bearer";
        self.token(&[("grant_type", grant_type), ("assertion", assertion)])
            .await
    }

    fn claims(&self, exp_in_s: i64) -> Value {
        let now = std::time::SystemTime::now();
        let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        json!({
            "iss": DEFAULT_CLIENT_ID,
            "sub": DEFAULT_USERNAME,
            "aud": self.emulator.login_url(),
            "exp": i64::try_from(now).unwrap() + exp_in_s,
        })
    }
}

fn error(answer: &(u16, Value)) -> (u16, &str, &str) {
    let text = |name: &str| answer.1[name].as_str().unwrap();
    (answer.0, text("error"), text("error_description"))
}

#[tokio::test]
async fn a_signed_jwt_signs_in_and_the_answer_has_the_documented_fields() {
    for tls in [false, true] {
        let login = Login::start(tls).await;
        let short = tls;
        login
            .emulator
            .change_settings(|settings| settings.short_org_id = short);
        let (status, answer) = login.jwt(login.claims(180)).await;
        assert_eq!(status, 200);
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        assert!(text("access_token").starts_with("00D5g000004emu1!"));
        assert_eq!(text("instance_url"), login.emulator.instance_url());
        assert_eq!(text("token_type"), "Bearer");
        let id = text("id");
        let org_id = id.rsplit('/').nth(1).unwrap();
        let length = if short { 15 } else { 18 };
        assert_eq!(org_id, &login.emulator.org_id().as_str()[..length]);
        assert_eq!(text("issued_at").len(), 13, "milliseconds");
        assert!(!text("signature").is_empty() && !text("scope").is_empty());
        assert!(answer.get("expires_in").is_none());
    }
}

#[tokio::test]
async fn jwts_are_refused_for_audience_expiry_user_app_and_signature() {
    let login = Login::start(false).await;
    let with = |name: &str, value: Value| {
        let mut claims = login.claims(180);
        claims[name] = value;
        claims
    };
    let ms = login.claims(180)["exp"].as_i64().unwrap() * 1000;
    let expired = "expired authorization code";
    for (claims, expected_error, description) in [
        (
            with("aud", json!("https://other")),
            "invalid_grant",
            "audience validation failed",
        ),
        (login.claims(-5), "invalid_grant", expired),
        (login.claims(3600), "invalid_grant", expired),
        (with("exp", json!(ms)), "invalid_grant", expired),
        (
            with("sub", json!("x")),
            "invalid_grant",
            "user hasn't approved this consumer",
        ),
        (
            with("iss", json!("x")),
            "invalid_client_id",
            "client identifier invalid",
        ),
    ] {
        let answer = login.jwt(claims).await;
        assert_eq!(error(&answer), (400, expected_error, description));
    }
    let good = login
        .jwt(with("aud", json!("https://login.salesforce.com")))
        .await;
    assert_eq!(good.0, 200);
    let other = Login::start(false).await;
    let claims = login.claims(180);
    let key = EncodingKey::from_rsa_pem(other.key.private_pem.as_bytes()).unwrap();
    let header = Header::new(Algorithm::RS256);
    let forged = jsonwebtoken::encode(&header, &claims, &key).unwrap();
    for assertion in [forged.as_str(), "a.b.c", ""] {
        let answer = login.assertion(assertion).await;
        assert_eq!(error(&answer).2, "invalid assertion");
    }
    // A clock that is an hour off makes a good assertion expired.
    login.emulator.set_clock_offset_ms(3_600_000).unwrap();
    assert_eq!(error(&login.jwt(login.claims(180)).await).2, expired);
}

#[tokio::test]
async fn client_credentials_come_in_the_form_or_by_http_basic() {
    let login = Login::start(false).await;
    let grant = ("grant_type", "client_credentials");
    let (id, secret) = (DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET);
    let form = [grant, ("client_id", id), ("client_secret", secret)];
    assert_eq!(login.token(&form).await.0, 200);
    let wrong = [grant, ("client_id", id), ("client_secret", "wrong")];
    assert_eq!(error(&login.token(&wrong).await).1, "invalid_client");
    let url = format!("{}/services/oauth2/token", login.emulator.login_url());
    let basic = login
        .http
        .post(url)
        .basic_auth(id, Some(secret))
        .form(&[grant]);
    assert_eq!(basic.send().await.unwrap().status(), 200);
    for (form, expected) in [
        (&[("grant_type", "password")][..], "unsupported_grant_type"),
        (&[][..], "invalid_request"),
    ] {
        assert_eq!(error(&login.token(form).await).1, expected);
    }
}

#[tokio::test]
async fn refresh_tokens_rotate_where_set_and_reuse_revokes() {
    let login = Login::start(false).await;
    let refresh = async |token: &str| {
        let form = [
            ("grant_type", "refresh_token"),
            ("client_id", DEFAULT_CLIENT_ID),
            ("client_secret", DEFAULT_CLIENT_SECRET),
            ("refresh_token", token),
        ];
        login.token(&form).await
    };
    let (status, answer) = refresh("granted").await;
    assert!(status == 200 && answer.get("refresh_token").is_none());
    login
        .emulator
        .change_settings(|settings| settings.rotate_refresh_tokens = true);
    let (_, answer) = refresh("granted").await;
    let next = answer["refresh_token"].as_str().unwrap();
    let reused = refresh("granted").await;
    assert_eq!(error(&reused).2, "expired access/refresh token");
    assert_eq!(refresh(next).await.0, 400);
}

#[tokio::test]
async fn a_refresh_needs_the_apps_secret_unless_the_app_has_none_or_says_otherwise() {
    let app = |id: &str| App {
        refresh_tokens: vec![SecretString::from("granted")],
        ..App::new(id, "secret", DEFAULT_USERNAME)
    };
    for (app, without, right, wrong) in [
        (app("strict"), 400, 200, 400),
        (
            App {
                secret_not_required_for_refresh: true,
                ..app("lenient")
            },
            200,
            200,
            400,
        ),
        (
            App {
                client_secret: None,
                ..app("public")
            },
            200,
            400,
            400,
        ),
    ] {
        let login = Login::start_with(vec![app.clone()]).await;
        for (secret, expected) in [
            (None, without),
            (Some("secret"), right),
            (Some("wrong"), wrong),
        ] {
            let mut form = vec![
                ("grant_type", "refresh_token"),
                ("client_id", app.client_id.as_str()),
                ("refresh_token", "granted"),
            ];
            form.extend(secret.map(|secret| ("client_secret", secret)));
            let answer = login.token(&form).await;
            assert_eq!(answer.0, expected, "{}, {secret:?}", app.client_id);
            if expected == 400 {
                assert_eq!(error(&answer).1, "invalid_client");
            }
        }
    }
}

#[tokio::test]
async fn a_session_ends_after_a_time_without_use() {
    let login = Login::start(false).await;
    let lifetime_ms = 600_000;
    login
        .emulator
        .change_settings(|settings| settings.token_lifetime_ms = Some(lifetime_ms));
    let token = login.emulator.issue_token();
    let url = format!("{}/services/oauth2/userinfo", login.emulator.login_url());
    let use_at = async |minute: i64| {
        let clock = login.emulator.set_clock_offset_ms(minute * 60_000);
        clock.unwrap();
        let answer = login.http.get(&url).bearer_auth(&token).send().await;
        answer.unwrap().status().as_u16()
    };
    for minute in [9, 18, 27] {
        assert_eq!(use_at(minute).await, 200, "each use extends it");
    }
    assert_eq!(use_at(38).await, 403);
    assert_eq!(use_at(39).await, 403, "a refusal does not");
}

#[tokio::test]
async fn userinfo_names_the_org_of_a_live_token_only() {
    let login = Login::start(false).await;
    let token = login.emulator.issue_token();
    let url = |path: &str| format!("{}/services/oauth2/{path}", login.emulator.login_url());
    let ask = || login.http.get(url("userinfo")).bearer_auth(&token).send();
    let info: Value = ask().await.unwrap().json().await.unwrap();
    assert_eq!(info["organization_id"], login.emulator.org_id().as_str());
    assert_eq!(info["preferred_username"], DEFAULT_USERNAME);
    let revoke = login.http.post(url("revoke")).form(&[("token", &token)]);
    assert_eq!(revoke.send().await.unwrap().status(), 200);
    let refused = ask().await.unwrap();
    assert_eq!(refused.status(), 403);
    assert_eq!(refused.text().await.unwrap(), "Bad_OAuth_Token");
    let missing = login.http.get(url("userinfo")).send().await.unwrap();
    assert_eq!(missing.text().await.unwrap(), "Missing_OAuth_Token");
}

#[tokio::test]
async fn sign_ins_meet_faults_and_tokens_take_other_forms_where_set() {
    let login = Login::start(false).await;
    let url = format!("{}/services/oauth2/token", login.emulator.login_url());
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", DEFAULT_CLIENT_ID),
        ("client_secret", DEFAULT_CLIENT_SECRET),
    ];
    let send = || login.http.post(&url).form(&form).send();
    login.emulator.fault(Fault {
        message: Some("inactive user".to_owned()),
        ..Fault::error(Call::Token, "inactive_user")
    });
    let refused = login.token(&form).await;
    assert_eq!(error(&refused), (400, "inactive_user", "inactive user"));
    login.emulator.fault(Fault {
        status: Some(503),
        ..Fault::once(Call::Token, FaultKind::Error)
    });
    let down = send().await.unwrap();
    assert_eq!(down.status(), 503);
    assert!(down.text().await.unwrap().starts_with("<html>"));
    login
        .emulator
        .fault(Fault::once(Call::Token, FaultKind::Reset));
    let cut = async { send().await?.bytes().await };
    assert!(cut.await.is_err());
    login.emulator.change_settings(|settings| {
        settings.token_format = TokenFormat::Jwt;
        settings.omit_token_fields = vec!["instance_url".to_owned()];
    });
    let (_, answer) = login.token(&form).await;
    let token = answer["access_token"].as_str().unwrap().to_owned();
    assert!(!token.contains('!') && answer.get("instance_url").is_none());
    assert_eq!(login.emulator.calls(Call::Token), 4);
}
