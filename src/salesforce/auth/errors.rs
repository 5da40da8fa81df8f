//! What a token endpoint's refusals mean, and what to change where: one table (facts 8.7).

use super::AuthError;
use crate::text::one_line;

/// How a sign-in failed, which decides how soon it is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Passes by itself: try again soon.
    Passing,
    /// Passes by itself, and trying again soon makes it worse.
    Throttled,
    /// A person has to change something.
    Refused,
    /// As `Refused`: this refresh token is dead, though another one may be alive.
    DeadToken,
}

/// A failed sign-in.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{error}")]
pub(super) struct Failure {
    pub(super) error: AuthError,
    pub(super) kind: Kind,
}

impl Failure {
    pub(super) fn passing(reason: impl Into<String>) -> Self {
        Self {
            error: AuthError::Unavailable {
                reason: reason.into(),
            },
            kind: Kind::Passing,
        }
    }

    pub(super) fn throttled(reason: impl Into<String>) -> Self {
        Self {
            kind: Kind::Throttled,
            ..Self::passing(reason)
        }
    }

    pub(super) fn refused(reason: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            error: AuthError::Refused {
                reason: reason.into(),
                cure: cure.into(),
            },
            kind: Kind::Refused,
        }
    }
}

/// One refusal: the answer's `error`, and a part of its `error_description` in lower case (empty: any).
struct Rule {
    error: &'static str,
    says: &'static str,
    kind: Kind,
    cure: &'static str,
}

const fn rule(error: &'static str, says: &'static str, kind: Kind, cure: &'static str) -> Rule {
    Rule {
        error,
        says,
        kind,
        cure,
    }
}

const CLIENT: &str = "Copy the consumer key and secret anew from Setup > External Client App Manager > the app > \
    Settings > OAuth Settings into `salesforce.client_id` (SALESFORCE_CLIENT_ID) and `salesforce.client_secret` \
    (SALESFORCE_CLIENT_SECRET), and check that `salesforce.login_url` names the org that holds the app; a new app \
    takes up to 10 minutes to be known";
/// The same for a flow that signs, which has no secret.
const CLIENT_SIGNED: &str = "Copy the consumer key anew from Setup > External Client App Manager > the app > Settings > \
    OAuth Settings into `salesforce.client_id` (SALESFORCE_CLIENT_ID), and check that `salesforce.login_url` names the org \
    that holds the app; a new app takes up to 10 minutes to be known";
const APPROVE: &str = "In Setup > External Client App Manager > the app > Policies, set Permitted Users to \"Admin \
    approved users are pre-authorized\" and add a profile or permission set of the user whom the app acts for \
    (after a sandbox refresh this has to be done again)";
/// The same for a flow that names its user. The platform says no more where the app lacks a scope (facts 8.2), or knows
/// no such user.
const APPROVE_SIGNED: &str = "In Setup > External Client App Manager > the app > Policies, set Permitted Users to \"Admin \
    approved users are pre-authorized\" and add a profile or permission set of the user in \
    `salesforce.username` (after a sandbox refresh this has to be done again). Under Settings > OAuth Settings the app needs \
    two scopes: \"Manage user data via APIs (api)\" and \"Perform requests at any time (refresh_token, offline_access)\". \
    And see that the user is one of the org that `salesforce.login_url` leads to: user names of a sandbox end in its name";
const USER: &str = "In Setup > Users, see that the user is active and not locked, and in Setup > Login History why \
    the login failed; the user's profile must allow logins from this machine's address and at this hour";
const ORG: &str =
    "The org is not active: see in a browser that it opens, and check `salesforce.login_url`";
const CLOCK: &str =
    "The times in the signed assertion were not accepted: set this machine's clock by NTP";
const ENABLED: &str = "In Setup > External Client App Manager > the app, see that the app is enabled, that Enable \
    OAuth is on, and that this flow is enabled under Policies > OAuth Policies; it recovers here without a restart";
const RUN_AS: &str = "In Setup > External Client App Manager > the app > Policies > OAuth Flows, enable the client \
    credentials flow and choose an active user under Run As";
const SCOPES: &str = "In Setup > External Client App Manager > the app > Settings > OAuth Settings, add the scope \
    \"Manage user data via APIs (api)\"";
/// The same for a flow that signs.
const SCOPES_SIGNED: &str = "In Setup > External Client App Manager > the app > Settings > OAuth Settings, add the scopes \
    \"Manage user data via APIs (api)\" and \"Perform requests at any time (refresh_token, offline_access)\"";
const OURS: &str = "The request itself was not understood: check that `salesforce.login_url` is a Salesforce login \
    host with nothing rewriting requests on the way; otherwise this is a fault of orgstream, please report it";
const UNKNOWN: &str = "See Setup > Login History in the org for the reason, and check `salesforce.login_url`, \
    `salesforce.client_id` and the user";

use Kind::{DeadToken, Passing, Refused, Throttled};

/// The first row that fits decides. Sources: facts 8.7; the descriptions of concurrent refreshes, of
/// login rates and of the client credentials flow are the platform's well-known texts.
const RULES: &[Rule] = &[
    rule(
        "invalid_grant",
        "expired access/refresh token",
        DeadToken,
        "The refresh token has expired or was revoked or \
        rotated away: authorise the app again and set the new token as `salesforce.refresh_token` \
        (SALESFORCE_REFRESH_TOKEN)",
    ),
    rule(
        "invalid_grant",
        "audience",
        Refused,
        "Set `salesforce.audience` (SALESFORCE_AUDIENCE) to \
        https://login.salesforce.com for a production or Developer org, or https://test.salesforce.com for a sandbox",
    ),
    rule(
        "invalid_grant",
        "expired authorization code",
        Refused,
        CLOCK,
    ),
    rule("invalid_grant", "approved this consumer", Refused, APPROVE),
    rule("invalid_grant", "not admin approved", Refused, APPROVE),
    rule("invalid_grant", "locked", Refused, USER),
    rule("invalid_grant", "inactive user", Refused, USER),
    rule("invalid_grant", "inactive org", Refused, ORG),
    rule(
        "invalid_grant",
        "ip restricted",
        Refused,
        "Let this machine's address in: Setup > External Client App \
        Manager > the app > Policies > IP Relaxation, and the login IP ranges of the user's profile",
    ),
    rule("invalid_grant", "login hours", Refused, USER),
    rule("invalid_grant", "authentication failure", Refused, USER),
    rule("invalid_grant", "no valid scopes", Refused, SCOPES),
    rule(
        "invalid_grant",
        "no client credentials user",
        Refused,
        RUN_AS,
    ),
    rule(
        "invalid_grant",
        "not supported on this domain",
        Refused,
        "Set `salesforce.login_url` (SALESFORCE_LOGIN_URL) \
        to the org's My Domain, for example https://acme.my.salesforce.com (Setup > My Domain)",
    ),
    rule("invalid_grant", "already being processed", Passing, ""),
    rule("invalid_grant", "login rate exceeded", Throttled, ""),
    rule(
        "invalid_grant",
        "assertion",
        Refused,
        "Check that `salesforce.username` (SALESFORCE_USERNAME) is a user \
        name of this org, that `salesforce.private_key` belongs to the certificate uploaded to the app (Setup > \
        External Client App Manager > the app > Settings > Use digital signatures), and that this machine's clock is right",
    ),
    rule("invalid_grant", "", Refused, UNKNOWN),
    rule("invalid_client", "", Refused, CLIENT),
    rule("invalid_client_id", "", Refused, CLIENT),
    rule("invalid_client_credentials", "", Refused, CLIENT),
    rule("unauthorized_client", "", Refused, ENABLED),
    rule("app_not_found", "", Refused, CLIENT),
    rule("invalid_app_access", "", Refused, APPROVE),
    rule("oauth_flow_disabled", "", Refused, ENABLED),
    rule("invalid_scope", "", Refused, SCOPES),
    rule("inactive_user", "", Refused, USER),
    rule("inactive_org", "", Refused, ORG),
    rule("rate_limit_exceeded", "", Throttled, ""),
    rule("unsupported_grant_type", "", Refused, OURS),
    rule("invalid_request", "", Refused, OURS),
    rule("server_error", "", Passing, ""),
    rule("temporarily_unavailable", "", Passing, ""),
    rule("unknown_error", "", Passing, ""),
];

/// What is to be said instead where the request was signed, and named its user.
fn of_signed(cure: &'static str) -> &'static str {
    match cure {
        CLIENT => CLIENT_SIGNED,
        APPROVE => APPROVE_SIGNED,
        SCOPES => SCOPES_SIGNED,
        other => other,
    }
}

/// What an answer with `error` and `error_description` means, to a request that was `signed` or brought a secret.
/// `clock` names a clock difference worth mentioning.
pub(super) fn classify(
    error: &str,
    description: &str,
    signed: bool,
    clock: Option<String>,
) -> Failure {
    let lower = description.to_lowercase();
    let (kind, cure) = RULES
        .iter()
        .find(|rule| rule.error == error && lower.contains(rule.says))
        .map_or((Refused, UNKNOWN), |rule| (rule.kind, rule.cure));
    let cure = if signed { of_signed(cure) } else { cure };
    let mut reason = shown(error);
    if !description.trim().is_empty() {
        reason.push_str(": ");
        reason.push_str(&shown(description));
    }
    let error = match kind {
        Passing | Throttled => AuthError::Unavailable { reason },
        Refused | DeadToken => AuthError::Refused {
            reason,
            cure: match clock {
                Some(clock) => format!("{clock}. {cure}"),
                None => cure.to_owned(),
            },
        },
    };
    Failure { error, kind }
}

/// A server's words, made fit for one line of a log.
fn shown(text: &str) -> String {
    one_line(text.trim(), 200)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row of facts 8.7 with the class it must have and a word that its cure must hold.
    const EXPECTED: &[(&str, &str, Kind, &str)] = &[
        (
            "invalid_grant",
            "expired access/refresh token",
            DeadToken,
            "salesforce.refresh_token",
        ),
        (
            "invalid_grant",
            "audience validation failed",
            Refused,
            "salesforce.audience",
        ),
        (
            "invalid_grant",
            "expired authorization code",
            Refused,
            "clock",
        ),
        (
            "invalid_grant",
            "user hasn't approved this consumer",
            Refused,
            "Permitted Users",
        ),
        (
            "invalid_grant",
            "authentication failure",
            Refused,
            "Login History",
        ),
        ("invalid_grant", "user is locked", Refused, "locked"),
        ("invalid_grant", "inactive user", Refused, "active"),
        (
            "invalid_grant",
            "ip restricted or invalid login hours",
            Refused,
            "address",
        ),
        ("invalid_grant", "invalid assertion", Refused, "certificate"),
        ("invalid_grant", "no valid scopes defined", Refused, "scope"),
        (
            "invalid_client",
            "invalid client credentials",
            Refused,
            "salesforce.client_secret",
        ),
        (
            "invalid_client_id",
            "client identifier invalid",
            Refused,
            "salesforce.client_id",
        ),
        (
            "invalid_client_credentials",
            "",
            Refused,
            "salesforce.client_secret",
        ),
        (
            "invalid_app_access",
            "user is not admin approved to access this app",
            Refused,
            "Permitted Users",
        ),
        ("oauth_flow_disabled", "", Refused, "enabled"),
        ("inactive_user", "", Refused, "active"),
        ("inactive_org", "", Refused, "org"),
        ("rate_limit_exceeded", "login rate exceeded", Throttled, ""),
        (
            "unsupported_grant_type",
            "grant type not supported",
            Refused,
            "login_url",
        ),
        ("invalid_request", "", Refused, "login_url"),
        (
            "invalid_grant",
            "user is not admin approved to access this app",
            Refused,
            "Permitted Users",
        ),
        (
            "invalid_grant",
            "inactive organization: inactive org",
            Refused,
            "org",
        ),
        ("invalid_grant", "outside of login hours", Refused, "hour"),
        (
            "invalid_grant",
            "no client credentials user enabled",
            Refused,
            "Run As",
        ),
        (
            "invalid_grant",
            "request not supported on this domain",
            Refused,
            "My Domain",
        ),
        (
            "invalid_grant",
            "token request is already being processed",
            Passing,
            "",
        ),
        ("invalid_grant", "login rate exceeded", Throttled, ""),
        ("invalid_grant", "something new", Refused, "Login History"),
        ("unauthorized_client", "", Refused, "enabled"),
        ("app_not_found", "", Refused, "salesforce.client_id"),
        ("invalid_scope", "", Refused, "scope"),
        ("server_error", "", Passing, ""),
        ("temporarily_unavailable", "", Passing, ""),
        ("unknown_error", "retry your request", Passing, ""),
        ("never_heard_of", "", Refused, "Login History"),
    ];

    #[test]
    fn every_rule_has_an_example_that_it_is_the_first_to_fit() {
        for (index, rule) in RULES.iter().enumerate() {
            let fits = |error: &str, description: &str| {
                let first = RULES
                    .iter()
                    .position(|rule| rule.error == error && description.contains(rule.says));
                first == Some(index)
            };
            let example = EXPECTED
                .iter()
                .any(|(error, description, ..)| fits(error, description));
            assert!(example, "{}: {}", rule.error, rule.says);
        }
    }

    #[test]
    fn every_refusal_of_the_token_endpoint_says_what_to_change() {
        for &(error, description, kind, word) in EXPECTED {
            let failure = classify(error, description, false, None);
            assert_eq!(failure.kind, kind, "{error}: {description}");
            match failure.error {
                AuthError::Refused { reason, cure } => {
                    assert!(reason.contains(error) && reason.contains(description));
                    assert!(cure.contains(word), "{error}: {description}: {cure}");
                    assert!(matches!(kind, Refused | DeadToken));
                }
                AuthError::Unavailable { .. } => {
                    assert!(matches!(kind, Passing | Throttled), "{error}");
                }
            }
        }
    }

    #[test]
    fn who_signs_is_told_of_scopes_and_user_names_and_not_of_a_secret() {
        let cure = |error: &str, description: &str, signed| match classify(
            error,
            description,
            signed,
            None,
        )
        .error
        {
            AuthError::Refused { cure, .. } => cure,
            other => panic!("{other}"),
        };
        let not_approved = cure("invalid_grant", "user hasn't approved this consumer", true);
        for word in ["Permitted Users", "refresh_token", "salesforce.login_url"] {
            assert!(not_approved.contains(word), "{not_approved}");
        }
        assert!(cure("invalid_scope", "", true).contains("offline_access"));
        assert!(!cure("invalid_client_id", "", true).contains("SECRET"));
        assert!(cure("invalid_client_id", "", false).contains("SECRET"));
        // The client credentials flow has no use for a refresh token, and no user name.
        assert!(!cure("invalid_scope", "", false).contains("offline_access"));
        assert!(!cure("invalid_app_access", "", false).contains("salesforce.username"));
    }

    #[test]
    fn every_rule_that_a_person_must_act_on_has_a_cure() {
        for rule in RULES {
            let acts = matches!(rule.kind, Refused | DeadToken);
            assert_eq!(acts, !rule.cure.is_empty(), "{}: {}", rule.error, rule.says);
        }
    }

    #[test]
    fn no_rule_is_hidden_by_one_above_it() {
        for (i, rule) in RULES.iter().enumerate() {
            assert!(
                !RULES[..i]
                    .iter()
                    .any(|above| above.error == rule.error && rule.says.contains(above.says)),
                "{}: {}",
                rule.error,
                rule.says
            );
        }
    }

    #[test]
    fn a_clock_difference_is_said_first() {
        let failure = classify(
            "invalid_grant",
            "invalid assertion",
            true,
            Some("This clock is 1 h ahead".into()),
        );
        assert!(failure.to_string().contains("This clock is 1 h ahead. "));
    }

    #[test]
    fn long_or_odd_descriptions_stay_on_one_line() {
        let failure = classify("invalid_grant", &"x\n".repeat(5000), false, None);
        let AuthError::Refused { reason, .. } = failure.error else {
            panic!("{failure:?}");
        };
        assert!(reason.len() < 300 && !reason.contains('\n'));
    }
}
