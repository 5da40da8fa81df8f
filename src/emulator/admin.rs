//! The admin API: the same operations as the methods of [`Handle`], over HTTP with JSON. On loopback
//! only, without sign-in. `docs/EMULATOR.md` describes it.

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::Handle;
use super::bus::StoredEvent;
use super::faults::Fault;
use super::publishing::{PublishJson, TransactionJson};
use super::topics::Member;
use crate::event::SchemaId;

/// Large enough for any captured response.
const MAX_BODY: usize = 64 * 1024 * 1024;

/// A request that cannot be carried out: 400 and `{"error": …}`.
struct BadRequest(String);

impl IntoResponse for BadRequest {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, Json(json!({"error": self.0}))).into_response()
    }
}

impl<E: std::error::Error> From<E> for BadRequest {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

type Answer = Result<Json<Value>, BadRequest>;

/// The routes.
pub(super) fn router(emulator: Handle) -> Router {
    Router::new()
        .route("/publish", post(publish))
        .route("/transaction", post(transaction))
        .route("/schemas", post(schemas))
        .route("/channels", post(channels))
        .route("/topics/withdraw", post(withdraw))
        .route("/captured", post(captured))
        .route("/raw", post(raw))
        .route("/raw/many", post(raw_many))
        .route("/faults", post(fault).get(faults).delete(clear_faults))
        .route("/tokens/expire", post(expire_tokens))
        .route("/tokens/revoke", post(revoke_tokens))
        .route("/tokens/access", post(issue_token))
        .route("/tokens/refresh", post(grant_refresh))
        .route("/bus/reset", post(reset))
        .route("/bus/expire", post(expire))
        .route("/bus/skip", post(skip))
        .route("/clock", post(clock))
        .route("/connections/drop", post(drop_connections))
        .route("/deliveries/reset", post(reset_deliveries))
        .route("/settings", get(settings).post(change_settings))
        .route("/state", get(state))
        .route("/", get(endpoints))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(emulator)
}

/// A JSON body, whatever its content type says; none is an empty object.
fn body<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, BadRequest> {
    let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { bytes };
    Ok(serde_json::from_slice(bytes)?)
}

async fn endpoints(State(emulator): State<Handle>) -> Json<Value> {
    Json(json!(emulator.endpoints()))
}

async fn publish(State(emulator): State<Handle>, bytes: Bytes) -> Answer {
    let request: PublishJson = body(&bytes)?;
    Ok(Json(json!({"events": emulator.publish_json(&request)?})))
}

async fn transaction(State(emulator): State<Handle>, bytes: Bytes) -> Answer {
    let request: TransactionJson = body(&bytes)?;
    Ok(Json(
        json!({"events": emulator.publish_transaction(&request)?}),
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SchemaJson {
    topic: Option<String>,
    /// Kept verbatim: as JSON, or as a string that holds the text.
    schema: Box<RawValue>,
    schema_id: Option<String>,
}

async fn schemas(State(emulator): State<Handle>, bytes: Bytes) -> Answer {
    let request: SchemaJson = body(&bytes)?;
    let text = match serde_json::from_str::<String>(request.schema.get()) {
        Ok(text) => text,
        Err(_) => request.schema.get().to_owned(),
    };
    let id = emulator
        .add_schema(
            request.topic.as_deref(),
            &text,
            request.schema_id.as_deref(),
        )
        .map_err(BadRequest)?;
    Ok(Json(json!({"schema_id": id.as_str()})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChannelJson {
    channel: String,
    members: Vec<Member>,
}

async fn channels(State(emulator): State<Handle>, bytes: Bytes) -> Answer {
    let request: ChannelJson = body(&bytes)?;
    emulator
        .set_channel(&request.channel, request.members)
        .map_err(BadRequest)?;
    Ok(Json(json!({})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TopicJson {
    topic: String,
}

async fn withdraw(State(emulator): State<Handle>, bytes: Bytes) -> Answer {
    let request: TopicJson = body(&bytes)?;
    Ok(Json(
        json!({"withdrawn": emulator.withdraw_topic(&request.topic)}),
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CapturedJson {
    topic: String,
    response: Value,
}

async fn captured(State(emulator): State<Handle>, bytes: Bytes) -> Answer {
    let request: CapturedJson = body(&bytes)?;
    let published = emulator.publish_captured(&request.topic, &request.response)?;
    Ok(Json(json!({"events": published})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawJson {
    topic: String,
    schema_id: String,
    payload: String,
    id: Option<String>,
}

async fn raw(State(emulator): State<Handle>, bytes: Bytes) -> Answer {
    let request: RawJson = body(&bytes)?;
    let event = StoredEvent {
        id: request
            .id
            .unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
        schema_id: SchemaId::new(&request.schema_id),
        payload: BASE64_STANDARD.decode(&request.payload)?.into(),
    };
    let published = emulator.publish_raw(&request.topic, vec![event])?;
    Ok(Json(json!({"events": published})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawManyJson {
    topic: String,
    schema_id: String,
    payloads: Vec<String>,
    count: usize,
}

async fn raw_many(State(emulator): State<Handle>, bytes: Bytes) -> Answer {
    let request: RawManyJson = body(&bytes)?;
    let schema_id = SchemaId::new(&request.schema_id);
    let payloads = request.payloads.iter().map(|payload| {
        let payload = BASE64_STANDARD.decode(payload)?;
        Ok::<Bytes, base64::DecodeError>(payload.into())
    });
    let payloads: Vec<Bytes> = payloads.collect::<Result<_, _>>()?;
    let of_payload = |payload: &Bytes| StoredEvent {
        id: uuid::Uuid::new_v4().to_string(),
        schema_id: schema_id.clone(),
        payload: payload.clone(),
    };
    let events = payloads.iter().cycle().take(request.count);
    let published = emulator.publish_raw(&request.topic, events.map(of_payload).collect())?;
    Ok(Json(json!({"count": published.len()})))
}

async fn fault(State(emulator): State<Handle>, bytes: Bytes) -> Answer {
    let fault: Fault = body(&bytes)?;
    emulator.fault(fault);
    Ok(Json(json!({})))
}

async fn faults(State(emulator): State<Handle>) -> Json<Value> {
    Json(json!(emulator.state().faults))
}

async fn clear_faults(State(emulator): State<Handle>) -> Json<Value> {
    emulator.clear_faults();
    Json(json!({}))
}

async fn expire_tokens(State(emulator): State<Handle>) -> Json<Value> {
    emulator.expire_tokens();
    Json(json!({}))
}

async fn revoke_tokens(State(emulator): State<Handle>) -> Json<Value> {
    emulator.revoke_tokens();
    Json(json!({}))
}

async fn issue_token(State(emulator): State<Handle>) -> Json<Value> {
    Json(json!({
        "access_token": emulator.issue_token(),
        "instance_url": emulator.instance_url(),
        "organization_id": emulator.org_id().as_str(),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RefreshJson {
    client_id: String,
    username: String,
}

async fn grant_refresh(State(emulator): State<Handle>, bytes: Bytes) -> Answer {
    let request: RefreshJson = body(&bytes)?;
    let token = emulator.grant_refresh_token(&request.client_id, &request.username);
    Ok(Json(json!({"refresh_token": token})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResetJson {
    position: Option<u64>,
}

async fn reset(State(emulator): State<Handle>, bytes: Bytes) -> Answer {
    let request: ResetJson = body(&bytes)?;
    emulator.reset_bus(request.position);
    Ok(Json(json!({})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpireJson {
    replay_id: Option<String>,
}

async fn expire(State(emulator): State<Handle>, bytes: Bytes) -> Answer {
    let request: ExpireJson = body(&bytes)?;
    emulator
        .expire_events(request.replay_id.as_deref())
        .map_err(BadRequest)?;
    Ok(Json(json!({})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SkipJson {
    places: u64,
}

async fn skip(State(emulator): State<Handle>, bytes: Bytes) -> Answer {
    let request: SkipJson = body(&bytes)?;
    emulator.skip_places(request.places);
    Ok(Json(json!({})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClockJson {
    offset_ms: Option<i64>,
    advance_ms: Option<i64>,
}

async fn clock(State(emulator): State<Handle>, bytes: Bytes) -> Answer {
    let request: ClockJson = body(&bytes)?;
    let from = request
        .offset_ms
        .unwrap_or_else(|| emulator.state().clock_offset_ms);
    let offset_ms = from.saturating_add(request.advance_ms.unwrap_or(0));
    emulator.set_clock_offset_ms(offset_ms)?;
    Ok(Json(json!({"offset_ms": offset_ms})))
}

async fn drop_connections(State(emulator): State<Handle>) -> Json<Value> {
    emulator.drop_connections();
    Json(json!({}))
}

async fn reset_deliveries(State(emulator): State<Handle>) -> Json<Value> {
    emulator.reset_deliveries();
    Json(json!({}))
}

async fn settings(State(emulator): State<Handle>) -> Answer {
    Ok(Json(serde_json::to_value(emulator.settings())?))
}

async fn change_settings(State(emulator): State<Handle>, bytes: Bytes) -> Answer {
    let changes: Value = body(&bytes)?;
    let settings = emulator.settings().with(&changes)?;
    emulator.set_settings(settings.clone());
    Ok(Json(serde_json::to_value(settings)?))
}

async fn state(State(emulator): State<Handle>) -> Answer {
    Ok(Json(serde_json::to_value(emulator.state())?))
}
