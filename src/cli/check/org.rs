//! The org: clock, login, endpoint, topics and their schemas.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::finding::Report;
use super::store::{self, Opened};
use crate::avro::Schema;
use crate::cli::Failure;
use crate::cli::output::length;
use crate::cli::schema::field_names;
use crate::config::{AuthConfig, SalesforceConfig, SubscriptionConfig};
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

/// How long the endpoint may take to accept a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

const LOGIN: &str = "sign-in";
const ENDPOINT: &str = "Pub/Sub API";

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
    clock(authenticator, config, report).await?;
    let session = match authenticator.sign_in_now().await {
        Ok(session) => {
            report.ok(LOGIN, &signed_in(authenticator, config, &session))?;
            Some(session)
        }
        Err(error) => {
            refused(LOGIN, &error, report)?;
            None
        }
    };
    if let (Some(opened), Some(session)) = (opened, &session) {
        store::positions(opened, &session.org_id, subscriptions, report).await?;
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
        Err(error) => report.ok(WHAT, &format!("not known: {error}")),
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

/// Whether the endpoint takes connections at all; what it says is seen with the topics.
async fn endpoint(config: &SalesforceConfig, report: &mut Report) -> Result<bool, Failure> {
    const CURE: &str = "Let this machine reach it (firewall, DNS), or correct `salesforce.pubsub_endpoint` \
                        (SALESFORCE_PUBSUB_ENDPOINT)";
    let origin = match Origin::parse(&config.pubsub_endpoint) {
        Ok(origin) => origin,
        Err(error) => {
            let why = format!("`salesforce.pubsub_endpoint` {error}");
            report.failed(ENDPOINT, &why, None)?;
            return Ok(false);
        }
    };
    let authority = origin.authority();
    match tokio::time::timeout(CONNECT_PATIENCE, TcpStream::connect(&authority)).await {
        Ok(Ok(_)) => {
            report.ok(ENDPOINT, &format!("{authority} accepts connections"))?;
            Ok(true)
        }
        Ok(Err(error)) => {
            report.failed(
                ENDPOINT,
                &format!("cannot reach {authority}: {error}"),
                Some(CURE),
            )?;
            Ok(false)
        }
        Err(_) => {
            let seconds = CONNECT_PATIENCE.as_secs();
            let why = format!("{authority} did not accept a connection within {seconds} s");
            report.failed(ENDPOINT, &why, Some(CURE))?;
            Ok(false)
        }
    }
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
