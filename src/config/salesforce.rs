//! The `[salesforce]` section: how to sign in, and where the Pub/Sub API is.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::address::{is_loopback_origin, login_origin, origin};
use super::section::{Given, Section, Var, either};
use super::{AuthConfig, BackoffConfig, Checks, SalesforceConfig, parse_duration};
use crate::event::OrgId;

/// Longest key file that is read: ten times what a 16,384-bit key needs.
const KEY_FILE_LIMIT: u64 = 256 * 1024;

/// The platform promises an empty response within 270 s while events are asked for (facts 3.3): whoever
/// waits for less takes a quiet stream for a dead one.
const KEEPALIVE_PROMISE: Duration = Duration::from_secs(270);

/// Reads the section; `None` where something is wrong with it, and then it has been noted.
pub(super) fn read(section: Section<'_>, checks: &Checks<'_>) -> Option<SalesforceConfig> {
    let text_url = |key, var| section.parsed(key, Var::Salesforce(var), origin);
    let login_url = section.parsed("login_url", Var::Salesforce("LOGIN_URL"), login_origin);
    let pubsub_endpoint = text_url("pubsub_endpoint", "PUBSUB_ENDPOINT");
    let ca_file = section
        .text("ca_file", Var::Salesforce("CA_FILE"))
        .and_then(|given| readable(&section, &given));
    let login_url = login_url.unwrap_or_else(|| SalesforceConfig::LOGIN_URL.to_owned());

    let auth = AuthKeys::read(&section, checks).choose(&section, &login_url);
    // Whatever was wrong with `auth` is noted already; the other keys are looked at all the same.
    let mut config = SalesforceConfig::new(
        login_url,
        auth.clone().unwrap_or(AuthConfig::AccessToken {
            access_token: String::new().into(),
            instance_url: String::new(),
            org_id: None,
        }),
    );
    if let Some(endpoint) = pubsub_endpoint {
        config.pubsub_endpoint = endpoint;
    }
    config.ca_file = ca_file;
    read_timing(&section, &mut config);
    section.finish();
    auth.map(|_| config)
}

fn read_timing(section: &Section<'_>, config: &mut SalesforceConfig) {
    let duration = |key, var, value: &mut Duration| {
        if let Some(given) = section.parsed(key, Var::Salesforce(var), positive_duration) {
            *value = given;
        }
    };
    duration("silence_limit", "SILENCE_LIMIT", &mut config.silence_limit);
    duration("ping_interval", "PING_INTERVAL", &mut config.ping_interval);
    duration("ping_timeout", "PING_TIMEOUT", &mut config.ping_timeout);
    duration("token_max_age", "TOKEN_MAX_AGE", &mut config.token_max_age);
    let backoff = |key, vars: [&'static str; 2], value: &mut BackoffConfig| {
        let table = section.table(key);
        *value = read_backoff(&table, vars.map(Var::Salesforce), *value);
        table.finish();
    };
    backoff(
        "reconnect",
        ["RECONNECT_INITIAL", "RECONNECT_MAX"],
        &mut config.reconnect,
    );
    backoff(
        "blocked_retry",
        ["BLOCKED_RETRY_INITIAL", "BLOCKED_RETRY_MAX"],
        &mut config.blocked_retry,
    );
    backoff(
        "allocation_retry",
        ["ALLOCATION_RETRY_INITIAL", "ALLOCATION_RETRY_MAX"],
        &mut config.allocation_retry,
    );
    if config.silence_limit < KEEPALIVE_PROMISE && !is_loopback_origin(&config.pubsub_endpoint) {
        section.reader().warn(
            section.place("silence_limit"),
            "shorter than the 270 s within which the platform promises a sign of life: quiet streams will be taken for dead",
        );
    }
}

/// Reads `initial` and `max` of a back-off. A `max` below `initial` is a mistake only where both were
/// written; where one was, the other follows it.
pub(super) fn read_backoff(
    section: &Section<'_>,
    [initial_var, max_var]: [Var; 2],
    default: BackoffConfig,
) -> BackoffConfig {
    let initial = section.parsed("initial", initial_var, positive_duration);
    let max = section.parsed("max", max_var, positive_duration);
    match (initial, max) {
        (Some(initial), Some(max)) => {
            if initial > max {
                section.problem("max", "is shorter than initial");
            }
            BackoffConfig { initial, max }
        }
        (Some(initial), None) => BackoffConfig {
            initial,
            max: default.max.max(initial),
        },
        (None, Some(max)) => BackoffConfig {
            initial: default.initial.min(max),
            max,
        },
        (None, None) => default,
    }
}

/// A duration longer than nothing.
pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("must be longer than zero".to_owned()),
        duration => Ok(duration),
    }
}

/// The four ways to sign in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Jwt,
    ClientCredentials,
    RefreshToken,
    AccessToken,
}

/// Names of the ways to sign in.
const FLOWS: [(&str, Flow); 4] = [
    ("jwt", Flow::Jwt),
    ("client_credentials", Flow::ClientCredentials),
    ("refresh_token", Flow::RefreshToken),
    ("access_token", Flow::AccessToken),
];

/// Everything that could be said about signing in.
struct AuthKeys {
    /// Whether something was wrong with `auth` itself.
    flow: Result<Option<Flow>, ()>,
    client_id: Option<Given>,
    client_secret: Option<Given>,
    username: Option<Given>,
    private_key: Option<PrivateKey>,
    audience: Option<Given>,
    refresh_token: Option<Given>,
    access_token: Option<Given>,
    instance_url: Option<Given>,
    org_id: Option<Given>,
}

impl AuthKeys {
    fn read(section: &Section<'_>, checks: &Checks<'_>) -> Self {
        let text = |key, var| section.text(key, Var::Salesforce(var));
        let asked_for = text("auth", "AUTH").is_some();
        let flow = section.choice("auth", Var::Salesforce("AUTH"), &FLOWS);
        Self {
            flow: if asked_for && flow.is_none() {
                Err(())
            } else {
                Ok(flow)
            },
            client_id: text("client_id", "CLIENT_ID"),
            client_secret: text("client_secret", "CLIENT_SECRET"),
            username: text("username", "USERNAME"),
            private_key: private_key(section, checks),
            audience: text("audience", "AUDIENCE"),
            refresh_token: text("refresh_token", "REFRESH_TOKEN"),
            access_token: text("access_token", "ACCESS_TOKEN"),
            instance_url: text("instance_url", "INSTANCE_URL"),
            org_id: text("org_id", "ORG_ID"),
        }
    }

    /// What to sign in with; `None` after noting everything that is missing.
    fn choose(self, section: &Section<'_>, login_url: &str) -> Option<AuthConfig> {
        let flow = match self.flow {
            Ok(Some(flow)) => flow,
            Ok(None) => self.infer(section)?,
            Err(()) => return None,
        };
        match flow {
            Flow::Jwt => self.jwt(section),
            Flow::ClientCredentials => self.client_credentials(section, login_url),
            Flow::RefreshToken => self.refresh_token(section),
            Flow::AccessToken => self.access_token(section),
        }
    }

    /// The way to sign in for which there is a credential. What the file says counts before what is left
    /// in the environment, maybe by another tool.
    fn infer(&self, section: &Section<'_>) -> Option<Flow> {
        let in_file = |given: &Option<Given>| given.as_ref().map(|given| given.from_file);
        let all = [
            (
                Flow::Jwt,
                "private_key",
                self.private_key.as_ref().map(|key| key.from_file),
            ),
            (
                Flow::RefreshToken,
                "refresh_token",
                in_file(&self.refresh_token),
            ),
            (
                Flow::ClientCredentials,
                "client_secret",
                // A refresh token may come with the app's secret.
                in_file(&self.client_secret).filter(|_| self.refresh_token.is_none()),
            ),
            (
                Flow::AccessToken,
                "access_token",
                in_file(&self.access_token),
            ),
        ];
        let any_in_file = all.iter().any(|(_, _, in_file)| *in_file == Some(true));
        let found: Vec<_> = all
            .into_iter()
            .filter(|(_, _, in_file)| in_file.is_some_and(|in_file| in_file || !any_in_file))
            .collect();
        match found.as_slice() {
            [(flow, _, _)] => Some(*flow),
            [] => {
                section.missing(
                    "auth",
                    Var::Salesforce("AUTH"),
                    "there is nothing to sign in with: give private_key or private_key_file with client_id and \
                     username (jwt), client_secret with client_id (client_credentials), refresh_token with \
                     client_id, or access_token with instance_url; each key can also be a SALESFORCE_… variable",
                );
                None
            }
            several => {
                let keys: Vec<&str> = several.iter().map(|(_, key, _)| *key).collect();
                let names: Vec<&str> = FLOWS
                    .iter()
                    .filter(|(_, flow)| several.iter().any(|(found, _, _)| found == flow))
                    .map(|(name, _)| *name)
                    .collect();
                section.missing(
                    "auth",
                    Var::Salesforce("AUTH"),
                    &format!(
                        "{} are all given, so say which to use: {}",
                        keys.join(" and "),
                        either(&names)
                    ),
                );
                None
            }
        }
    }

    fn jwt(self, section: &Section<'_>) -> Option<AuthConfig> {
        let client_id = client_id(section, self.client_id, "jwt");
        let username = self.username.map(|given| given.text).or_else(|| {
            section.missing(
                "username",
                Var::Salesforce("USERNAME"),
                "auth = jwt needs the name of the user to sign in as",
            );
            None
        });
        if self.private_key.is_none() {
            section.missing(
                "private_key",
                Var::Salesforce("PRIVATE_KEY"),
                "auth = jwt needs the RSA private key whose certificate the app holds (or private_key_file)",
            );
        }
        let private_key = self.private_key.and_then(|key| key.usable);
        Some(AuthConfig::Jwt {
            client_id: client_id?,
            username: username?,
            private_key: private_key?.into(),
            audience: self.audience.map(|given| given.text),
        })
    }

    fn client_credentials(self, section: &Section<'_>, login_url: &str) -> Option<AuthConfig> {
        let client_id = client_id(section, self.client_id, "client_credentials");
        let client_secret = self.client_secret.map(|given| given.text).or_else(|| {
            section.missing(
                "client_secret",
                Var::Salesforce("CLIENT_SECRET"),
                "auth = client_credentials needs the app's consumer secret",
            );
            None
        });
        let shared = [
            "https://login.salesforce.com",
            "https://test.salesforce.com",
        ];
        if shared.contains(&login_url) {
            section.missing(
                "login_url",
                Var::Salesforce("LOGIN_URL"),
                "auth = client_credentials works only at the org's My Domain, such as \
                 https://acme.my.salesforce.com (Setup, My Domain)",
            );
            return None;
        }
        Some(AuthConfig::ClientCredentials {
            client_id: client_id?,
            client_secret: client_secret?.into(),
        })
    }

    fn refresh_token(self, section: &Section<'_>) -> Option<AuthConfig> {
        let client_id = client_id(section, self.client_id, "refresh_token");
        let refresh_token = self.refresh_token.map(|given| given.text).or_else(|| {
            section.missing(
                "refresh_token",
                Var::Salesforce("REFRESH_TOKEN"),
                "auth = refresh_token needs a first refresh token",
            );
            None
        });
        Some(AuthConfig::RefreshToken {
            client_id: client_id?,
            client_secret: self.client_secret.map(|given| given.text.into()),
            refresh_token: refresh_token?.into(),
        })
    }

    fn access_token(self, section: &Section<'_>) -> Option<AuthConfig> {
        let access_token = self.access_token.map(|given| given.text).or_else(|| {
            section.missing(
                "access_token",
                Var::Salesforce("ACCESS_TOKEN"),
                "auth = access_token needs the token",
            );
            None
        });
        let instance_url = match self.instance_url {
            None => {
                section.missing(
                    "instance_url",
                    Var::Salesforce("INSTANCE_URL"),
                    "auth = access_token needs the org's own address, such as https://acme.my.salesforce.com",
                );
                None
            }
            Some(given) => login_origin(&given.text)
                .map_err(|error| section.refuse(&given, &error))
                .ok(),
        };
        let org_id = self.org_id.map(|given| match OrgId::parse(&given.text) {
            Ok(org_id) => Some(org_id.as_str().to_owned()),
            Err(error) => {
                section.refuse(&given, &error.to_string());
                None
            }
        });
        Some(AuthConfig::AccessToken {
            access_token: access_token?.into(),
            instance_url: instance_url?,
            org_id: match org_id {
                None => None,
                Some(org_id) => Some(org_id?),
            },
        })
    }
}

fn client_id(section: &Section<'_>, given: Option<Given>, flow: &str) -> Option<String> {
    if given.is_none() {
        section.missing(
            "client_id",
            Var::Salesforce("CLIENT_ID"),
            &format!("auth = {flow} needs the app's consumer key"),
        );
    }
    given.map(|given| given.text)
}

/// A private key that was given.
struct PrivateKey {
    /// Its text; `None` where it is of no use, which has been noted.
    usable: Option<String>,
    /// True where the configuration file gives it.
    from_file: bool,
}

/// The private key, given as text or as the path of a file.
fn private_key(section: &Section<'_>, checks: &Checks<'_>) -> Option<PrivateKey> {
    let text = section.text("private_key", Var::Salesforce("PRIVATE_KEY"));
    let path = section.text("private_key_file", Var::Salesforce("PRIVATE_KEY_FILE"));
    let (given, is_path) = match (text, path) {
        (None, None) => return None,
        (Some(text), Some(path)) if text.from_file == path.from_file => {
            section.reader().problem(
                path.place,
                "private_key is given too; take one of the two away",
            );
            return Some(PrivateKey {
                usable: None,
                from_file: text.from_file,
            });
        }
        // What the configuration file says counts before the environment.
        (Some(_), Some(path)) if path.from_file => (path, true),
        (Some(text), _) => (text, false),
        (None, Some(path)) => (path, true),
    };
    let text = if is_path {
        read_key_file(section, &given)
    } else {
        Some(given.text)
    };
    let usable = text.filter(|text| match (checks.private_key)(text) {
        Ok(()) => true,
        Err(error) => {
            section
                .reader()
                .problem(given.place.clone(), format!("cannot be used: {error}"));
            false
        }
    });
    Some(PrivateKey {
        usable,
        from_file: given.from_file,
    })
}

fn read_key_file(section: &Section<'_>, given: &Given) -> Option<String> {
    read_bounded(Path::new(&given.text), KEY_FILE_LIMIT)
        .map_err(|error| {
            section.refuse(
                given,
                &format!(
                    "the key file cannot be read: {error}; check the path and its permissions"
                ),
            );
        })
        .ok()
}

/// A file's text, if it is not longer than `limit`.
pub(super) fn read_bounded(path: &Path, limit: u64) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(limit + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > limit {
        return Err(io::Error::other(format!("longer than {limit} bytes")));
    }
    Ok(text)
}

fn readable(section: &Section<'_>, given: &Given) -> Option<PathBuf> {
    let path = PathBuf::from(&given.text);
    match File::open(&path).and_then(|mut file| file.read(&mut [0])) {
        Ok(_) => Some(path),
        Err(error) => {
            section.refuse(
                given,
                &format!("the file cannot be read: {error}; check the path and its permissions"),
            );
            None
        }
    }
}
