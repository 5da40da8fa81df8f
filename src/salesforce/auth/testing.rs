//! What the tests of signing in share: keys, a login host, a vault.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use axum::Router;
use axum::body::Bytes;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::{CredentialVault, StoredCredential, VaultError};
use crate::config::{AuthConfig, BackoffConfig, SalesforceConfig};

pub(crate) const ORG: &str = "00D58000000arpqEAA";

pub(crate) struct Keys {
    pub(crate) private_pem: String,
    /// PKCS#1.
    pub(crate) public_der: Vec<u8>,
}

/// One key pair for all tests: making one takes a while.
pub(crate) fn key_pair() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        Keys {
            private_pem: format!(
                "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
                STANDARD.encode(der.as_ref())
            ),
            public_der: pair.public_key().as_ref().to_vec(),
        }
    })
}

/// A configuration with pauses so long that a test sees none of them end.
pub(crate) fn config(login_url: &str, auth: AuthConfig) -> SalesforceConfig {
    let minute = BackoffConfig {
        initial: Duration::from_secs(60),
        max: Duration::from_secs(300),
    };
    SalesforceConfig {
        login_url: login_url.to_owned(),
        auth,
        pubsub_endpoint: "http://127.0.0.1:1".to_owned(),
        ca_file: None,
        silence_limit: Duration::from_secs(300),
        ping_interval: Duration::from_secs(30),
        ping_timeout: Duration::from_secs(10),
        token_max_age: Duration::from_secs(3600),
        retention: SalesforceConfig::RETENTION,
        retention_warning: SalesforceConfig::RETENTION_WARNING,
        limits_interval: minute.max,
        reconnect: minute,
        blocked_retry: minute,
        allocation_retry: minute,
    }
}

pub(crate) fn client_credentials() -> AuthConfig {
    AuthConfig::ClientCredentials {
        client_id: "consumer".to_owned(),
        client_secret: SecretString::from("hush"),
    }
}

pub(crate) fn jwt() -> AuthConfig {
    AuthConfig::Jwt {
        client_id: "consumer".to_owned(),
        username: "user@example.com".to_owned(),
        private_key: SecretString::from(key_pair().private_pem.as_str()),
        audience: None,
    }
}

pub(crate) fn refresh_token(token: &str) -> AuthConfig {
    AuthConfig::RefreshToken {
        client_id: "consumer".to_owned(),
        client_secret: None,
        refresh_token: SecretString::from(token),
    }
}

pub(crate) type Form = BTreeMap<String, String>;

/// A token endpoint that answers as the test says.
pub(crate) struct LoginHost {
    pub(crate) url: String,
    calls: Arc<AtomicU32>,
    server: tokio::task::JoinHandle<()>,
}

impl LoginHost {
    /// `answer` is given the number of the call, from 1 on, and the form.
    pub(crate) async fn start<A>(answer: A) -> Self
    where
        A: Fn(u32, &Form) -> Response + Clone + Send + Sync + 'static,
    {
        let calls = Arc::new(AtomicU32::new(0));
        let counted = calls.clone();
        let router = Router::new().fallback(move |body: Bytes| {
            let call = counted.fetch_add(1, Ordering::SeqCst) + 1;
            let answer = answer.clone();
            async move {
                let query = String::from_utf8_lossy(&body).into_owned();
                let url = reqwest::Url::parse(&format!("http://form/?{query}")).unwrap();
                answer(call, &url.query_pairs().into_owned().collect())
            }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, calls, server }
    }

    pub(crate) fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }
}

impl Drop for LoginHost {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A token answer as the platform sends it.
pub(crate) fn granted(token: &str) -> Value {
    json!({
        "access_token": token,
        "signature": "x",
        "scope": "api",
        "instance_url": "https://acme.my.salesforce.com/",
        "id": format!("https://login.salesforce.com/id/{ORG}/00558000000xyzABC"),
        "token_type": "Bearer",
        "issued_at": "1708058728442",
    })
}

pub(crate) fn ok(answer: Value) -> Response {
    axum::Json(answer).into_response()
}

pub(crate) fn refused(error: &str, description: &str) -> Response {
    (
        axum::http::StatusCode::BAD_REQUEST,
        axum::Json(json!({ "error": error, "error_description": description })),
    )
        .into_response()
}

/// A vault in memory that notes what is done with it and fails on demand.
#[derive(Default)]
pub(crate) struct MemoryVault {
    pub(crate) log: Mutex<Vec<String>>,
    token: Mutex<Option<String>>,
    held_by: Mutex<Option<String>>,
    pub(crate) failing_saves: AtomicU32,
}

impl MemoryVault {
    pub(crate) fn note(&self, what: impl Into<String>) {
        self.log.lock().unwrap().push(what.into());
    }

    pub(crate) fn stored(&self) -> Option<String> {
        self.token.lock().unwrap().clone()
    }

    /// The right goes to another process.
    pub(crate) fn give_to_another(&self) {
        *self.held_by.lock().unwrap() = Some("another".to_owned());
    }

    /// Nobody has the right.
    pub(crate) fn free(&self) {
        *self.held_by.lock().unwrap() = None;
    }

    pub(crate) fn store(&self, token: &str) {
        *self.token.lock().unwrap() = Some(token.to_owned());
    }
}

#[async_trait]
impl CredentialVault for MemoryVault {
    async fn lock(
        &self,
        _key: &str,
        holder: &str,
        _ttl: Duration,
    ) -> Result<Option<StoredCredential>, VaultError> {
        let mut held_by = self.held_by.lock().unwrap();
        if held_by.as_deref().is_some_and(|other| other != holder) {
            return Ok(None);
        }
        *held_by = Some(holder.to_owned());
        self.note("lock");
        Ok(Some(StoredCredential {
            refresh_token: self.stored().map(SecretString::from),
        }))
    }

    async fn save(&self, _key: &str, holder: &str, token: &SecretString) -> Result<(), VaultError> {
        if self.held_by.lock().unwrap().as_deref() != Some(holder) {
            self.note("save refused");
            return Err(VaultError::LostRight);
        }
        let failing = |left: u32| left.checked_sub(1);
        if self
            .failing_saves
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, failing)
            .is_ok()
        {
            self.note("save failed");
            return Err(VaultError::Failed("connection refused".to_owned()));
        }
        self.note(format!("save {}", token.expose_secret()));
        self.store(token.expose_secret());
        Ok(())
    }

    async fn unlock(&self, _key: &str, holder: &str) -> Result<(), VaultError> {
        let mut held_by = self.held_by.lock().unwrap();
        if held_by.as_deref() == Some(holder) {
            *held_by = None;
        }
        self.note("unlock");
        Ok(())
    }
}
