//! One sign-in for everybody: shared while it runs, remembered when it fails, renewed ahead of time.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use super::access_token::AccessToken;
use super::client_credentials::ClientCredentials;
use super::errors::{Failure, Kind};
use super::http::LoginHttp;
use super::jwt::Jwt;
use super::refresh_token::RefreshToken;
use super::{AuthError, CredentialVault, Session, TokenSource, org};
use crate::config::{AuthConfig, BackoffConfig, SalesforceConfig};
use crate::salesforce::Origin;
use crate::telemetry::metrics;

/// How long callers wait for a renewal while the old session still serves.
const RENEWAL_PATIENCE: Duration = Duration::from_secs(3);
/// A session that the org refuses within this time was not worn out by use.
const YOUNG: Duration = Duration::from_secs(60);
/// So many young sessions refused in a row are no accident.
const REFUSED_YOUNG_LIMIT: u32 = 5;
/// The first pause after a failed sign-in, and the longest where nobody has to act.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PASSING_PAUSE: Duration = Duration::from_secs(30);

/// Signs in to an org as the configuration says, and gives all streams and calls one session.
///
/// Callers that ask at the same time share one sign-in and its outcome. A sign-in runs in a task of its
/// own, so a caller that goes away interrupts nothing. After a failure the next sign-in waits, one second
/// at first, growing to the configured `blocked_retry` where a person has to act; until then callers are
/// given the same failure, so that nothing knocks at the login host in a hot loop. A session older than
/// `token_max_age` is renewed; where that fails, the old one serves on until the org itself refuses it.
#[derive(Clone)]
pub struct Authenticator {
    inner: Arc<Inner>,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator")
            .field("flow", &self.inner.flow.name())
            .finish_non_exhaustive()
    }
}

struct Inner {
    flow: Flow,
    login: Origin,
    http: LoginHttp,
    max_age: Duration,
    blocked_retry: BackoffConfig,
    reconnect: BackoffConfig,
    state: Mutex<State>,
}

enum Flow {
    Jwt(Box<Jwt>),
    ClientCredentials(Box<ClientCredentials>),
    RefreshToken(Box<RefreshToken>),
    AccessToken(Box<AccessToken>),
}

type SignIn = Shared<BoxFuture<'static, Result<Arc<Session>, AuthError>>>;

#[derive(Default)]
struct State {
    current: Option<Arc<Session>>,
    under_way: Option<SignIn>,
    /// The last failure, in force until the time beside it.
    failure: Option<(AuthError, Instant)>,
    /// Failed sign-ins in a row.
    failures: u32,
    /// Sessions in a row that the org refused while they were young.
    refused_young: u32,
    /// When the current session, or one before it, was last doubted.
    doubted_at: Option<Instant>,
    /// The current session is doubted: renew it, however young it is.
    renew: bool,
}

impl State {
    fn is_current(&self, session: &Arc<Session>) -> bool {
        matches!(&self.current, Some(current) if Arc::ptr_eq(current, session))
    }

    fn failure_in_force(&self) -> Option<AuthError> {
        self.failure
            .as_ref()
            .filter(|(_, until)| Instant::now() < *until)
            .map(|(error, _)| error.clone())
    }
}

impl Authenticator {
    /// Prepares the configured flow; sends nothing. A configuration that can never sign in (an unusable
    /// private key, a login URL without TLS, the refresh token flow without a vault) is
    /// [`AuthError::Refused`].
    pub fn new(
        config: &SalesforceConfig,
        vault: Option<Arc<dyn CredentialVault>>,
    ) -> Result<Self, AuthError> {
        Self::prepare(config, vault).map_err(|failure| failure.error)
    }

    fn prepare(
        config: &SalesforceConfig,
        vault: Option<Arc<dyn CredentialVault>>,
    ) -> Result<Self, Failure> {
        let login = Origin::parse(&config.login_url).map_err(|error| {
            Failure::refused(
                format!("`salesforce.login_url` {error}"),
                "Set it (SALESFORCE_LOGIN_URL) to https://login.salesforce.com, https://test.salesforce.com or the \
                 org's My Domain",
            )
        })?;
        let http = LoginHttp::new(&login, config.ca_file.as_deref())?;
        let flow = Flow::new(&config.auth, login.clone(), vault)?;
        // A ready token cannot be renewed.
        let max_age = match flow {
            Flow::AccessToken(_) => Duration::MAX,
            _ => config.token_max_age,
        };
        metrics::begin_to_count_sign_ins();
        Ok(Self {
            inner: Arc::new(Inner {
                flow,
                login,
                http,
                max_age,
                blocked_retry: config.blocked_retry,
                reconnect: config.reconnect,
                state: Mutex::default(),
            }),
        })
    }

    /// Signs in now, whatever is held or remembered; joins a sign-in that is under way. For a person who
    /// asks, such as `orgstream check`.
    pub async fn sign_in_now(&self) -> Result<Arc<Session>, AuthError> {
        let sign_in = self.inner.begin(&mut self.inner.state());
        sign_in.await
    }

    /// By how many seconds this machine's clock is ahead of the login host's, below zero where it is
    /// behind; `None` where the host does not tell the time. Signs nothing in. The error is
    /// [`AuthError::Unavailable`]: the host cannot be reached.
    pub async fn clock_ahead(&self) -> Result<Option<i64>, AuthError> {
        let answer = self.inner.http.clock_ahead(&self.inner.login).await;
        answer.map_err(|failure| failure.error)
    }

    /// How it signs in, in the words of the configuration: `jwt`, `client_credentials`, …
    pub fn flow(&self) -> &'static str {
        self.inner.flow.name()
    }
}

#[async_trait]
impl TokenSource for Authenticator {
    async fn session(&self) -> Result<Arc<Session>, AuthError> {
        let (old, sign_in) = {
            let mut state = self.inner.state();
            let old = state.current.clone();
            if let Some(session) = &old
                && !state.renew
                && session.obtained_at.elapsed() < self.inner.max_age
            {
                return Ok(session.clone());
            }
            if let Some(error) = state.failure_in_force() {
                return old.ok_or(error);
            }
            (old, self.inner.begin(&mut state))
        };
        let Some(old) = old else {
            return sign_in.await;
        };
        match tokio::time::timeout(RENEWAL_PATIENCE, sign_in.clone()).await {
            Ok(Ok(session)) => Ok(session),
            // Whatever the login host says of a new one, the org decides when this one is over.
            _ if self.inner.state().is_current(&old) => Ok(old),
            Ok(Err(error)) => Err(error),
            Err(_) => sign_in.await,
        }
    }

    fn invalidate(&self, refused: &Arc<Session>) {
        let mut state = self.inner.state();
        if !state.is_current(refused) {
            return;
        }
        state.current = None;
        if refused.obtained_at.elapsed() < YOUNG {
            state.refused_young = state.refused_young.saturating_add(1);
        } else {
            state.refused_young = 0;
        }
        let times = state.refused_young;
        if let Some((error, pause)) = self.inner.refused_session(times) {
            state.failure = Some((error, Instant::now() + pause));
        }
    }

    /// At most one session a minute is renewed for it: several topics may be forbidden at once, and the
    /// answer to that is no storm of sign-ins.
    fn doubt(&self, session: &Arc<Session>) {
        let mut state = self.inner.state();
        let lately = state.doubted_at.is_some_and(|at| at.elapsed() < YOUNG);
        let renewable = !matches!(self.inner.flow, Flow::AccessToken(_));
        if renewable && !lately && state.is_current(session) {
            state.doubted_at = Some(Instant::now());
            state.renew = true;
        }
    }

    fn accepted(&self, session: &Arc<Session>) {
        let mut state = self.inner.state();
        if state.is_current(session) {
            state.refused_young = 0;
        }
    }

    async fn close(&self) {
        // Other flows leave nothing behind that a next process would miss.
        let Flow::RefreshToken(flow) = &self.inner.flow else {
            return;
        };
        flow.close();
        let under_way = self.inner.state().under_way.clone();
        if let Some(sign_in) = under_way {
            // However it ends, it has been told where it was begun.
            let _ = sign_in.await;
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sign-in under way, or a new one.
    fn begin(self: &Arc<Self>, state: &mut State) -> SignIn {
        if let Some(sign_in) = &state.under_way {
            return sign_in.clone();
        }
        let inner = self.clone();
        let task = tokio::spawn(async move {
            let outcome = inner.flow.sign_in(&inner.http).await;
            inner.settle(outcome)
        });
        let inner = self.clone();
        let sign_in = async move {
            match task.await {
                Ok(outcome) => outcome,
                // It panicked, or the runtime is shutting down.
                Err(error) => inner.settle(Err(Failure::passing(error.to_string()))),
            }
        }
        .boxed()
        .shared();
        state.under_way = Some(sign_in.clone());
        sign_in
    }

    /// Notes how a sign-in ended.
    fn settle(&self, outcome: Result<Session, Failure>) -> Result<Arc<Session>, AuthError> {
        let mut state = self.state();
        state.under_way = None;
        metrics::token_refreshed(match &outcome {
            Ok(_) => "signed_in",
            Err(Failure {
                error: AuthError::Refused { .. },
                ..
            }) => "refused",
            Err(_) => "unavailable",
        });
        match outcome {
            Ok(session) => {
                tracing::info!(
                    flow = self.flow.name(),
                    org_id = %session.org_id,
                    instance_url = session.instance_url,
                    "signed in"
                );
                let session = Arc::new(session);
                state.current = Some(session.clone());
                state.renew = false;
                state.failure = None;
                state.failures = 0;
                Ok(session)
            }
            Err(Failure { error, kind }) => {
                state.failures = state.failures.saturating_add(1);
                let pause = self.pause(kind, state.failures);
                if state.current.is_some() {
                    tracing::warn!(
                        flow = self.flow.name(),
                        %error,
                        "the session could not be renewed; it serves on until the org refuses it"
                    );
                }
                state.failure = Some((error.clone(), Instant::now() + pause));
                Err(error)
            }
        }
    }

    /// How long a failure is remembered, the `count`th in a row.
    fn pause(&self, kind: Kind, count: u32) -> Duration {
        let (first, longest) = match kind {
            Kind::Passing => (
                FIRST_PAUSE.min(self.reconnect.initial),
                LONGEST_PASSING_PAUSE.min(self.reconnect.max),
            ),
            Kind::Throttled => (self.blocked_retry.initial, self.blocked_retry.max),
            Kind::Refused | Kind::DeadToken => (
                FIRST_PAUSE.min(self.blocked_retry.initial),
                self.blocked_retry.max,
            ),
        };
        let doublings = count.saturating_sub(1).min(20);
        first.saturating_mul(1 << doublings).min(longest)
    }

    /// What follows when the org has refused this many young sessions in a row: nothing at first, for a
    /// session may be revoked; then pauses between sign-ins that achieve nothing.
    fn refused_session(&self, times: u32) -> Option<(AuthError, Duration)> {
        if let Flow::AccessToken(_) = self.flow {
            let failure = Failure::refused(
                "the org does not accept the access token (any more)",
                "Set `salesforce.access_token` (SALESFORCE_ACCESS_TOKEN) to a new one, or configure a flow that can \
                 sign in again by itself (`auth = \"jwt\"` or \"client_credentials\")",
            );
            return Some((failure.error, self.pause(failure.kind, times.max(1))));
        }
        if times < 2 {
            return None;
        }
        let reason = format!(
            "signing in works, but the org has refused the last {times} access tokens at once"
        );
        let failure = if times < REFUSED_YOUNG_LIMIT {
            Failure::passing(reason)
        } else {
            Failure::refused(
                reason,
                "Check that the app has the scope \"Manage user data via APIs (api)\", that it does not issue JSON Web \
                 Token (JWT)-based access tokens, and that the user has the permission \"API Enabled\"",
            )
        };
        let pause = self.pause(failure.kind, times - 1);
        Some((failure.error, pause))
    }
}

impl Flow {
    fn new(
        auth: &AuthConfig,
        login: Origin,
        vault: Option<Arc<dyn CredentialVault>>,
    ) -> Result<Self, Failure> {
        Ok(match auth {
            AuthConfig::Jwt {
                client_id,
                username,
                private_key,
                audience,
            } => Self::Jwt(Box::new(Jwt::new(
                login,
                client_id,
                username,
                private_key,
                audience.as_deref(),
            )?)),
            AuthConfig::ClientCredentials {
                client_id,
                client_secret,
            } => Self::ClientCredentials(Box::new(ClientCredentials::new(
                &login,
                client_id,
                client_secret,
            )?)),
            AuthConfig::RefreshToken {
                client_id,
                client_secret,
                refresh_token,
            } => Self::RefreshToken(Box::new(RefreshToken::new(
                &login,
                client_id,
                client_secret.as_ref(),
                refresh_token,
                vault,
            )?)),
            AuthConfig::AccessToken {
                access_token,
                instance_url,
                org_id,
            } => Self::AccessToken(Box::new(AccessToken::new(
                access_token,
                instance_url,
                org_id.as_deref(),
            )?)),
        })
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Jwt(_) => "jwt",
            Self::ClientCredentials(_) => "client_credentials",
            Self::RefreshToken(_) => "refresh_token",
            Self::AccessToken(_) => "access_token",
        }
    }

    async fn sign_in(&self, http: &LoginHttp) -> Result<Session, Failure> {
        let answer = match self {
            Self::Jwt(flow) => flow.grant(http).await?,
            Self::ClientCredentials(flow) => flow.grant(http).await?,
            Self::RefreshToken(flow) => flow.grant(http).await?,
            Self::AccessToken(flow) => return flow.session(http).await,
        };
        org::session(http, &answer).await
    }
}
