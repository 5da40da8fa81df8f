//! What is left of the org's allocations: the REST resource `limits`, as far as events are concerned.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;

use super::oauth::bearer;
use super::org::SharedOrg;
use super::settings::LimitsShown;
use super::tokens::TokenState;

/// Daily deliveries of an org whose emulator sets no limit: those of the larger editions (facts, section 9).
const DAILY_DELIVERIES: u64 = 50_000;

/// The route, which an org serves on its instance URL.
pub(super) fn router(org: SharedOrg) -> Router {
    Router::new()
        .route("/services/data/{version}/limits", get(limits))
        .route("/services/data/{version}/limits/", get(limits))
        .with_state(org)
}

async fn limits(State(org): State<SharedOrg>, headers: HeaderMap) -> Response {
    let live = bearer(&headers).is_some_and(|token| org.use_token(token) == TokenState::Live);
    if !live {
        return refused(
            StatusCode::UNAUTHORIZED,
            "INVALID_SESSION_ID",
            "Session expired or invalid",
        );
    }
    let state = org.state();
    match state.settings.limits {
        LimitsShown::Yes => {}
        LimitsShown::Forbidden => {
            return refused(
                StatusCode::FORBIDDEN,
                "FUNCTIONALITY_NOT_ENABLED",
                "the user may not see the org's limits",
            );
        }
        LimitsShown::Missing => {
            return refused(
                StatusCode::NOT_FOUND,
                "NOT_FOUND",
                "the resource does not exist",
            );
        }
    }
    let max = state.settings.delivery_limit.unwrap_or(DAILY_DELIVERIES);
    let remaining = max.saturating_sub(state.deliveries);
    axum::Json(json!({"DailyDeliveredPlatformEvents": {"Max": max, "Remaining": remaining}}))
        .into_response()
}

/// REST errors are a list.
fn refused(status: StatusCode, code: &str, message: &str) -> Response {
    let body = json!([{"message": message, "errorCode": code}]);
    (status, axum::Json(body)).into_response()
}
