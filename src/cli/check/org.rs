//! The org: clock, login, endpoint, topics and their schemas.

use std::sync::Arc;
use std::time::Duration;

use super::finding::Report;
use super::reach::Target;
use super::store::{self, Opened};
use crate::avro::Schema;
use crate::cli::Failure;
use crate::cli::output::length;
use crate::cli::schema::field_names;
use crate::config::{AuthConfig, Env as _, ProcessEnv, SalesforceConfig, SubscriptionConfig};
use crate::event::{SchemaId, Topic, TopicKind};
use crate::salesforce::Origin;
use crate::salesforce::auth::{
    AuthError, Authenticator, CredentialVault, Session, TokenSource as _,
};
use crate::salesforce::limits::{Deliveries, Limits};
use crate::salesforce::pubsub::{PubSub, PubSubError, TopicInfo};

/// A clock that is off by more is worth a word; the platform's tolerance of a signed assertion's times is
/// a few minutes (facts 8.1).
const CLOCK_WARNING: u64 = 30;
const CLOCK_FAILURE: u64 = 180;

const LOGIN: &str = "sign-in";
const ENDPOINT: &str = "Pub/Sub API";

/// What to do about a CA file that cannot be used.
const CA_FILE: &str =
    "Set `salesforce.ca_file` (SALESFORCE_CA_FILE) to a PEM file of the CA to trust, or remove it";

/// Checks everything on the org's side.
pub(super) async fn check(
    config: &SalesforceConfig,
    subscriptions: &[SubscriptionConfig],
    opened: Option<&Opened>,
    report: &mut Report,
) -> Result<(), Failure> {
    let vault = match (&config.auth, opened) {
        (AuthConfig::RefreshToken { .. }, Some(opened)) => {
            Some(opened.store.clone() as Arc<dyn CredentialVault>)
        }
        // To try the configured token could use it up, or revoke the one that replaced it long ago.
        (AuthConfig::RefreshToken { .. }, None) => {
            let why = "not tried, the store that holds the refresh token does not answer";
            report.warning(LOGIN, why, None)?;
            return endpoint(config, report).await.map(|_| ());
        }
        _ => None,
    };
    let authenticator = match Authenticator::new(config, vault) {
        Ok(authenticator) => Arc::new(authenticator),
        Err(error) => return refused(LOGIN, &error, report),
    };
    let result = calls(config, &authenticator, subscriptions, opened, report).await;
    // A call of the last topics may have begun a second sign-in.
    authenticator.close().await;
    result
}

/// Signs in, and checks what can be seen then.
async fn calls(
    config: &SalesforceConfig,
    authenticator: &Arc<Authenticator>,
    subscriptions: &[SubscriptionConfig],
    opened: Option<&Opened>,
    report: &mut Report,
) -> Result<(), Failure> {
    let session = match login_host(config, report).await? {
        true => sign_in(config, authenticator, report).await?,
        false => None,
    };
    if let (Some(opened), Some(session)) = (opened, &session) {
        store::positions(opened, (&session.org_id, config), subscriptions, report).await?;
    }
    if session.is_some() {
        deliveries(config, authenticator, report).await?;
    }
    let reachable = endpoint(config, report).await?;
    if session.is_none() || !reachable {
        return Ok(());
    }
    match PubSub::connect(config, authenticator.clone()) {
        Ok(bus) => topics(&bus, subscriptions, report).await,
        Err(error) => report.failed(ENDPOINT, &error.to_string(), error.cure()),
    }
}

/// Compares the clocks and signs in.
async fn sign_in(
    config: &SalesforceConfig,
    authenticator: &Arc<Authenticator>,
    report: &mut Report,
) -> Result<Option<Arc<Session>>, Failure> {
    clock(authenticator, config, report).await?;
    match authenticator.sign_in_now().await {
        Ok(session) => {
            report.ok(LOGIN, &signed_in(authenticator, config, &session))?;
            token(&session, report)?;
            Ok(Some(session))
        }
        Err(error) => {
            refused(LOGIN, &error, report)?;
            Ok(None)
        }
    }
}

/// What kind of token it is, and what it may be used for. One that is a JSON Web Token was refused before.
fn token(session: &Session, report: &mut Report) -> Result<(), Failure> {
    const WHAT: &str = "access token";
    // `full` is all that the user may do.
    const ENOUGH: [&str; 2] = ["api", "full"];
    let Some(scopes) = &session.scopes else {
        return report.ok(WHAT, "opaque; its scopes are not told");
    };
    let listed = scopes.join(", ");
    if scopes.iter().any(|scope| ENOUGH.contains(&scope.as_str())) {
        return report.ok(WHAT, &format!("opaque, with the scopes {listed}"));
    }
    let why = format!("its scopes ({listed}) do not allow the use of APIs");
    let cure = "In Setup > External Client App Manager > the app > Settings > OAuth Settings, add the scope \
                \"Manage user data via APIs (api)\"";
    report.failed(WHAT, &why, Some(cure))
}

/// What is left of the daily deliveries. Nothing depends on its being shown.
async fn deliveries(
    config: &SalesforceConfig,
    authenticator: &Arc<Authenticator>,
    report: &mut Report,
) -> Result<(), Failure> {
    const WHAT: &str = "event deliveries";
    let left = match Limits::new(config, authenticator.clone()) {
        Ok(limits) => limits.deliveries().await,
        Err(error) => Err(error),
    };
    match left {
        Ok(Deliveries { max, remaining: 0 }) => report.warning(
            WHAT,
            &format!("all {max} of 24 hours are used up: streams will be refused"),
            Some("Wait until a day has passed, or buy the add-on that raises the allocation"),
        ),
        Ok(Deliveries { max, remaining }) => {
            report.ok(WHAT, &format!("{remaining} of {max} in 24 hours are left"))
        }
        Err(error) => {
            let cure = "Streams do not need it; `orgstream status` and its metrics lack the allocation for as long as it fails";
            report.warning(WHAT, &format!("not known: {error}"), Some(cure))
        }
    }
}

fn refused(what: &str, error: &AuthError, report: &mut Report) -> Result<(), Failure> {
    match error {
        AuthError::Refused { reason, cure } => report.failed(what, reason, Some(cure)),
        AuthError::Unavailable { reason } => {
            let cure = "See that this machine reaches the login host (network, DNS, proxy, \
                        `salesforce.login_url`), and try again";
            report.failed(what, reason, Some(cure))
        }
    }
}

fn signed_in(
    authenticator: &Authenticator,
    config: &SalesforceConfig,
    session: &Session,
) -> String {
    let user = match &config.auth {
        AuthConfig::Jwt { username, .. } => format!(" as {username}"),
        _ => String::new(),
    };
    format!(
        "{}{user}, org {} at {}",
        authenticator.flow(),
        session.org_id,
        session.instance_url
    )
}

/// The clock matters where times are signed; elsewhere a wrong one only makes logs and lags wrong.
async fn clock(
    authenticator: &Authenticator,
    config: &SalesforceConfig,
    report: &mut Report,
) -> Result<(), Failure> {
    const WHAT: &str = "clock";
    const CURE: &str = "Set this machine's clock by NTP";
    let ahead = match authenticator.clock_ahead().await {
        Ok(Some(ahead)) => ahead,
        Ok(None) => return report.ok(WHAT, "the login host does not tell the time"),
        // Signing in meets the same and says more.
        Err(_) => {
            return report.warning(WHAT, "not compared: the login host did not answer", None);
        }
    };
    let direction = if ahead < 0 { "behind" } else { "ahead of" };
    let off = length(Duration::from_secs(ahead.unsigned_abs()));
    let why = format!("{off} {direction} the login host's");
    let signs_times = matches!(config.auth, AuthConfig::Jwt { .. });
    match ahead.unsigned_abs() {
        0..=CLOCK_WARNING => report.ok(
            WHAT,
            &format!("within {CLOCK_WARNING} s of the login host's"),
        ),
        off if off >= CLOCK_FAILURE && signs_times => report.failed(WHAT, &why, Some(CURE)),
        _ => report.warning(WHAT, &why, Some(CURE)),
    }
}

/// Whether the endpoint can be reached; what it says is seen with the topics.
async fn endpoint(config: &SalesforceConfig, report: &mut Report) -> Result<bool, Failure> {
    const KEY: &str = "`salesforce.pubsub_endpoint` (SALESFORCE_PUBSUB_ENDPOINT)";
    let Some(origin) = origin(ENDPOINT, KEY, &config.pubsub_endpoint, report)? else {
        return Ok(false);
    };
    let target = match Target::new(&origin, config.ca_file.as_deref(), true) {
        Ok(target) => target,
        Err(why) => {
            report.failed(ENDPOINT, &why, Some(CA_FILE))?;
            return Ok(false);
        }
    };
    let obstacle = match target.reach().await {
        Ok(found) => {
            report.ok(ENDPOINT, &found)?;
            return Ok(true);
        }
        Err(obstacle) => obstacle,
    };
    let mut cure = obstacle.cure(KEY);
    if let Some(port) = target.other_port().filter(|_| obstacle.is_of_port())
        && target.answers_on(port).await
    {
        cure = format!(
            "Port {port} works: set {KEY} to https://{}:{port}, or let port {} through",
            origin.host(),
            origin.port()
        );
    } else if let Some(variable) = proxy(&origin) {
        cure.push_str(&format!(
            ". It is reached directly, not through the proxy that {variable} names, because gRPC does not pass \
             through it"
        ));
    }
    report.failed(ENDPOINT, &obstacle.why(&target), Some(&cure))?;
    Ok(false)
}

/// Whether the login host can be reached. With a proxy, only a sign-in shows that.
async fn login_host(config: &SalesforceConfig, report: &mut Report) -> Result<bool, Failure> {
    const WHAT: &str = "login host";
    let (key, url) = match &config.auth {
        AuthConfig::AccessToken { instance_url, .. } => (
            "`salesforce.instance_url` (SALESFORCE_INSTANCE_URL)",
            instance_url,
        ),
        _ => (
            "`salesforce.login_url` (SALESFORCE_LOGIN_URL)",
            &config.login_url,
        ),
    };
    let Some(origin) = origin(WHAT, key, url, report)? else {
        return Ok(false);
    };
    if let Some(variable) = proxy(&origin) {
        let host = origin.host();
        let why = format!("{host} is asked through the proxy that {variable} names");
        report.ok(WHAT, &why)?;
        return Ok(true);
    }
    let target = match Target::new(&origin, config.ca_file.as_deref(), false) {
        Ok(target) => target,
        Err(why) => {
            report.failed(WHAT, &why, Some(CA_FILE))?;
            return Ok(false);
        }
    };
    match target.reach().await {
        Ok(found) => report.ok(WHAT, &found)?,
        Err(obstacle) => {
            report.failed(WHAT, &obstacle.why(&target), Some(&obstacle.cure(key)))?;
            return Ok(false);
        }
    }
    Ok(true)
}

fn origin(
    what: &str,
    key: &str,
    url: &str,
    report: &mut Report,
) -> Result<Option<Origin>, Failure> {
    match Origin::parse(url) {
        Ok(origin) => Ok(Some(origin)),
        Err(error) => {
            report.failed(what, &format!("{key} {error}"), None)?;
            Ok(None)
        }
    }
}

/// The variable that names a proxy for this host, as the HTTP client understands it. Exceptions (NO_PROXY) are not
/// looked at: the sign-in shows.
fn proxy(origin: &Origin) -> Option<&'static str> {
    const VARIABLES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    let set = |name: &&str| ProcessEnv.var(name).is_some();
    VARIABLES
        .into_iter()
        .find(set)
        .filter(|_| !origin.is_loopback())
}

/// Asks about each configured topic, once.
async fn topics(
    bus: &PubSub,
    subscriptions: &[SubscriptionConfig],
    report: &mut Report,
) -> Result<(), Failure> {
    for (index, subscription) in subscriptions.iter().enumerate() {
        let topic = &subscription.topic;
        let what = format!("topic {topic}");
        let earlier = subscriptions[..index].iter().any(|one| one.topic == *topic);
        if earlier {
            continue;
        }
        let info = match bus.topic(topic).await {
            Ok(info) => info,
            Err(error) if is_transport(&error) => {
                let why = format!("{error}; the other topics were not asked for");
                return report.failed(ENDPOINT, &why, error.cure());
            }
            Err(error) => {
                report.failed(&what, &error.to_string(), error.cure())?;
                continue;
            }
        };
        if !info.can_subscribe {
            report.failed(
                &what,
                "this user may not subscribe to it",
                Some(permission(topic)),
            )?;
            continue;
        }
        match &info.schema_id {
            Some(id) => schema(bus, subscription, id, &what, report).await?,
            None => report.ok(&what, &of_channel(topic, &info))?,
        }
    }
    Ok(())
}

/// The answer came from no org: no code of the platform's, and a status that lost connections and other
/// servers have.
fn is_transport(error: &PubSubError) -> bool {
    matches!(
        error,
        PubSubError::Rpc {
            code: None,
            status: tonic::Code::Unavailable
                | tonic::Code::DeadlineExceeded
                | tonic::Code::Unimplemented
                | tonic::Code::Unknown,
            ..
        }
    )
}

fn permission(topic: &Topic) -> &'static str {
    match topic.kind() {
        TopicKind::PlatformEvent | TopicKind::PlatformEventChannel => {
            "Give the user Read on the platform event, in a permission set (Object Settings)"
        }
        TopicKind::ChangeEvent | TopicKind::ChangeEventChannel => {
            "Give the user View All Records on the object (or View All Data), in a permission set, and see that \
             the object is selected in Setup > Change Data Capture"
        }
    }
}

/// Facts section 0, 4: on a channel a missing permission is silence.
fn of_channel(topic: &Topic, info: &TopicInfo) -> String {
    if topic.is_channel() {
        "may be subscribed to; on a channel, events of objects that this user may not see do not come, \
         without an error"
            .to_owned()
    } else {
        format!("{} may be subscribed to; it names no schema", info.topic)
    }
}

/// Whether the topic's newest schema can be had and used.
async fn schema(
    bus: &PubSub,
    subscription: &SubscriptionConfig,
    id: &SchemaId,
    what: &str,
    report: &mut Report,
) -> Result<(), Failure> {
    let text = match bus.schema(id).await {
        Ok(text) => text,
        Err(error) => return report.failed(what, &error.to_string(), error.cure()),
    };
    let schema = match Schema::parse(&text) {
        Ok(schema) => schema,
        Err(error) => {
            let why = format!("schema {id} cannot be used: {error}");
            let cure = "Its events are parked with their bytes; report it with the output of `orgstream schema \
                        --raw`";
            return report.failed(what, &why, Some(cure));
        }
    };
    if let Some(key) = &subscription.key
        && !field_names(&schema).contains(key)
    {
        let why = format!(
            "schema {id} has no field `{key}`, which `key` of subscription `{}` names",
            subscription.name
        );
        let cure =
            "Without it these events have no order among each other; name a field of the event";
        report.warning(what, &why, Some(cure))?;
    }
    if schema.fingerprint() != *id {
        let why = format!("schema {id} has the fingerprint {}", schema.fingerprint());
        let cure = "It is used all the same; please report it with the schema";
        return report.warning(what, &why, Some(cure));
    }
    let why = format!(
        "may be subscribed to, schema {id} of {}",
        schema.record_name()
    );
    report.ok(what, &why)
}
