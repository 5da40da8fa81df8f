//! What must not leave: free text that is not ours, and secrets of this process wherever they turn up.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use serde_json::Value;

use crate::config::{self, Config};

/// What stands in the place of a secret.
const MASK: &str = "***";

/// Parts of a variable's name that mark its value as a secret.
const SECRET_NAMES: [&str; 11] = [
    "SECRET",
    "TOKEN",
    "KEY",
    "PASSWORD",
    "PASSWD",
    "CREDENTIAL",
    "AUTH",
    "HEADER",
    "COOKIE",
    "URL",
    "DSN",
];

/// Shorter values are words, and would be taken out of everything.
const SHORTEST: usize = 8;

/// Values that this process was given in confidence.
#[derive(Debug)]
pub(super) struct Secrets(Vec<String>);

impl Secrets {
    /// By the names of the variables that this process was given, and by its configuration, where that could be read.
    pub(super) fn of_process(config: Option<&Config>) -> Self {
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Self::of(variables, config.map(config::secrets).unwrap_or_default())
    }

    fn of(variables: impl Iterator<Item = (String, String)>, configured: Vec<String>) -> Self {
        let is_secret = |name: &str| {
            let name = name.to_ascii_uppercase();
            SECRET_NAMES.iter().any(|part| name.contains(part))
        };
        let variables = variables.filter(|(name, _)| is_secret(name));
        let values = variables.map(|(_, value)| value).chain(configured);
        let mut secrets = Vec::new();
        for value in values {
            match value.split_once("://") {
                // Of an address the place is no secret, and worth knowing.
                Some((_, rest)) => secrets.extend(parts_of_address(rest)),
                None => {
                    secrets.extend(value.split("\\n").map(str::to_owned));
                    secrets.extend(value.lines().map(str::to_owned));
                    secrets.push(value);
                }
            }
        }
        secrets.retain(|secret| secret.trim().len() >= SHORTEST);
        // The longest first: another may be a part of it.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.dedup();
        Self(secrets)
    }

    /// Puts a mask in the place of each, in every text of `value`.
    pub(super) fn take_out(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                for secret in &self.0 {
                    if text.contains(secret.as_str()) {
                        *text = text.replace(secret.as_str(), MASK);
                    }
                }
            }
            Value::Array(list) => list.iter_mut().for_each(|one| self.take_out(one)),
            Value::Object(fields) => fields.values_mut().for_each(|one| self.take_out(one)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

/// The password of an address, and the values of its query.
fn parts_of_address(rest: &str) -> Vec<String> {
    let mut parts = Vec::new();
    if let Some((userinfo, _)) = rest.rsplit_once('@')
        && let Some((_, password)) = userinfo.split_once(':')
    {
        parts.push(password.to_owned());
    }
    if let Some((_, query)) = rest.split_once('?') {
        let values = query.split('&').filter_map(|one| one.split_once('='));
        parts.extend(values.map(|(_, value)| value.to_owned()));
    }
    // As a driver or a server may quote it: decoded.
    let decoded: Vec<String> = parts
        .iter()
        .filter_map(|part| percent_decode_str(part).decode_utf8().ok())
        .map(Cow::into_owned)
        .collect();
    parts.extend(decoded);
    parts
}

/// What a check found of handlers, without their words, which may name or quote events.
pub(super) fn findings(mut findings: Value) -> Value {
    let all = findings.as_array_mut().into_iter().flatten();
    for finding in all.filter_map(Value::as_object_mut) {
        let what = finding.get("what").and_then(Value::as_str);
        if what.is_some_and(|what| what.starts_with("handler ")) {
            finding.insert("why".to_owned(), "(its words are left out)".into());
        }
    }
    findings
}

/// The detail of a state. What a handler says of events are its own words, and may name or quote them; the rest are
/// ours, or the platform's about a call.
pub(super) fn detail(text: &str) -> String {
    let Some(rest) = text.strip_prefix("handler `") else {
        return text.to_owned();
    };
    let (name, said) = rest.split_once('`').unwrap_or((rest, ""));
    let what = match said.contains("fails for all") {
        true => "fails for all events",
        false => "could not handle an event",
    };
    format!("handler `{name}` {what} (its words are left out)")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_of_the_environment_are_taken_out_of_every_text() {
        let variables = [
            ("SALESFORCE_CLIENT_SECRET", "confidential-1"),
            ("MY_PRIVATE_KEY", "-----BEGIN\\nconfidential-2\\n-----END"),
            (
                "DATABASE_URL",
                "postgres://me:confidential-3@db.example/x?sslmode=require&options=confidential-4",
            ),
            ("HOME", "/home/confidential"),
            ("SHORT_TOKEN", "live"),
        ];
        let of = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let configured = [
            "confidential-5",
            "https://hooks.example/x?sig=confidential-6",
            "postgres://me:confidential%2D7%40@db.example/x",
        ];
        let configured = configured.map(str::to_owned).to_vec();
        let secrets = Secrets::of(variables.into_iter().map(of), configured);
        let mut value = json!({
            "a": ["x confidential-1 y", {"b": "confidential-2"}],
            "c": "confidential-3 at db.example, confidential-4",
            "d": "live in /home/confidential",
            "e": 5,
            "f": "confidential-5 confidential-6 confidential-7@ confidential%2D7%40",
        });
        secrets.take_out(&mut value);
        assert_eq!(
            value,
            json!({
                "a": ["x *** y", {"b": "***"}],
                "c": "*** at db.example, ***",
                "d": "live in /home/confidential",
                "e": 5,
                "f": "*** *** *** ***",
            })
        );
    }

    #[test]
    fn what_a_check_found_of_a_handler_is_told_without_its_words() {
        let found = findings(json!([
            {"level": "failed", "what": "handler out of accounts", "why": "said: Acme", "cure": null},
            {"level": "ok", "what": "login host", "why": "it answers", "cure": null},
        ]));
        assert_eq!(found[0]["level"], "failed");
        assert_eq!(found[0]["why"], "(its words are left out)");
        assert_eq!(found[1]["why"], "it answers");
    }

    #[test]
    fn of_a_handler_it_is_told_that_it_fails_and_not_what_it_says() {
        let down = detail(
            "handler `out` fails for all events, which are held until it takes them: no 001xx",
        );
        assert_eq!(
            down,
            "handler `out` fails for all events (its words are left out)"
        );
        let stopped =
            detail("handler `out` could not handle event 6254:001xx after 3 attempts (said: Acme)");
        assert!(
            stopped.contains("`out`") && !stopped.contains("001xx") && !stopped.contains("Acme")
        );
        assert_eq!(detail("sign-in refused"), "sign-in refused");
    }
}
