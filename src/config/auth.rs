//! The keys of `[salesforce]` that say how to sign in.

use std::path::Path;

use secrecy::SecretString;

use super::address::login_origin;
use super::load::read_bounded;
use super::section::{Found, Given, Section, Var, either};
use super::{AuthConfig, Checks};
use crate::event::OrgId;

/// Longest key file that is read: ten times what a 16,384-bit key needs.
const KEY_FILE_LIMIT: u64 = 256 * 1024;

/// Login hosts that many orgs share. Client credentials are not known there.
const SHARED_LOGIN_HOSTS: [&str; 2] = [
    "https://login.salesforce.com",
    "https://test.salesforce.com",
];

/// Every key read here, so that one which the chosen way to sign in has no use for is not unknown.
const KEYS: [&str; 11] = [
    "auth",
    "client_id",
    "client_secret",
    "username",
    "private_key",
    "private_key_file",
    "audience",
    "refresh_token",
    "access_token",
    "instance_url",
    "org_id",
];

/// The ways to sign in.
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

/// The credentials that tell how to sign in where `auth` does not.
const CREDENTIALS: [(&str, Flow); 5] = [
    ("private_key", Flow::Jwt),
    ("private_key_file", Flow::Jwt),
    ("refresh_token", Flow::RefreshToken),
    ("client_secret", Flow::ClientCredentials),
    ("access_token", Flow::AccessToken),
];

/// Reads how to sign in; `None` after noting everything that is missing or wrong.
pub(super) fn read(
    section: &Section<'_>,
    login_url: &str,
    checks: &Checks<'_>,
) -> Option<AuthConfig> {
    for key in KEYS {
        section.know(key);
    }
    let flow = match section.find("auth", Var::Salesforce) {
        Found::Nothing => infer(section)?,
        Found::Bad => return None,
        Found::Given(_) => section.choice("auth", Var::Salesforce, &FLOWS)?,
    };
    match flow {
        Flow::Jwt => jwt(section, checks),
        Flow::ClientCredentials => client_credentials(section, login_url),
        Flow::RefreshToken => refresh_token(section),
        Flow::AccessToken => access_token(section),
    }
}

/// The way to sign in for which there is a credential. What the file says counts before what is left in
/// the environment, maybe by another tool.
fn infer(section: &Section<'_>) -> Option<Flow> {
    let mut found: Vec<(&str, Flow, bool)> = Vec::new();
    for (key, flow) in CREDENTIALS {
        match section.find(key, Var::Salesforce) {
            Found::Nothing => {}
            Found::Bad => found.push((key, flow, true)),
            Found::Given(given) => found.push((key, flow, given.from_file)),
        }
    }
    // A refresh token may come with the app's secret.
    if found.iter().any(|(_, flow, _)| *flow == Flow::RefreshToken) {
        found.retain(|(_, flow, _)| *flow != Flow::ClientCredentials);
    }
    if found.iter().any(|(_, _, from_file)| *from_file) {
        found.retain(|(_, _, from_file)| *from_file);
    }
    let Some((_, first, _)) = found.first().copied() else {
        section.problem(
            "auth",
            "there is nothing to sign in with: give private_key or private_key_file with client_id and username \
             (jwt), client_secret with client_id (client_credentials), refresh_token with client_id, or \
             access_token with instance_url; each key can also be a variable, such as SALESFORCE_CLIENT_ID",
        );
        return None;
    };
    if found.iter().all(|(_, flow, _)| *flow == first) {
        return Some(first);
    }
    let keys: Vec<&str> = found.iter().map(|(key, _, _)| *key).collect();
    let flows: Vec<&str> = FLOWS
        .iter()
        .filter(|(_, flow)| found.iter().any(|(_, found, _)| found == flow))
        .map(|(name, _)| *name)
        .collect();
    section.missing(
        "auth",
        Var::Salesforce,
        &format!(
            "{} are all given, so say which to use: {}",
            keys.join(" and "),
            either(&flows)
        ),
    );
    None
}

fn jwt(section: &Section<'_>, checks: &Checks<'_>) -> Option<AuthConfig> {
    let client_id = client_id(section);
    let username = section.needed(
        "username",
        Var::Salesforce,
        "auth = jwt needs the name of the user to sign in as",
    );
    let private_key = private_key(section, checks);
    let audience = section.text("audience", Var::Salesforce);
    Some(AuthConfig::Jwt {
        client_id: client_id?,
        username: username?.text,
        private_key: private_key?,
        audience: audience.map(|given| given.text),
    })
}

fn client_credentials(section: &Section<'_>, login_url: &str) -> Option<AuthConfig> {
    let client_id = client_id(section);
    let client_secret = section.needed(
        "client_secret",
        Var::Salesforce,
        "auth = client_credentials needs the app's consumer secret",
    );
    if SHARED_LOGIN_HOSTS.contains(&login_url) {
        let place = match section.find("login_url", Var::Salesforce) {
            Found::Given(given) => given.place,
            Found::Nothing | Found::Bad => section.place("login_url"),
        };
        section.reader().problem(
            place,
            "auth = client_credentials works only at the org's My Domain: set login_url (or \
             SALESFORCE_LOGIN_URL) to an address such as https://acme.my.salesforce.com (Setup, My Domain)",
        );
        return None;
    }
    Some(AuthConfig::ClientCredentials {
        client_id: client_id?,
        client_secret: client_secret?.text.into(),
    })
}

fn refresh_token(section: &Section<'_>) -> Option<AuthConfig> {
    let client_id = client_id(section);
    let refresh_token = section.needed(
        "refresh_token",
        Var::Salesforce,
        "auth = refresh_token needs a first refresh token",
    );
    let client_secret = section.text("client_secret", Var::Salesforce);
    Some(AuthConfig::RefreshToken {
        client_id: client_id?,
        client_secret: client_secret.map(|given| given.text.into()),
        refresh_token: refresh_token?.text.into(),
    })
}

fn access_token(section: &Section<'_>) -> Option<AuthConfig> {
    let access_token = section.needed(
        "access_token",
        Var::Salesforce,
        "auth = access_token needs the token",
    );
    let instance_url = section
        .needed(
            "instance_url",
            Var::Salesforce,
            "auth = access_token needs the org's own address, such as https://acme.my.salesforce.com",
        )
        .and_then(|given| section.accepted(&given, login_origin));
    let org_id = section.parsed("org_id", Var::Salesforce, OrgId::parse);
    Some(AuthConfig::AccessToken {
        access_token: access_token?.text.into(),
        instance_url: instance_url?,
        org_id: org_id.map(|org_id| org_id.as_str().to_owned()),
    })
}

fn client_id(section: &Section<'_>) -> Option<String> {
    let why = "it is the app's consumer key";
    section
        .needed("client_id", Var::Salesforce, why)
        .map(|given| given.text)
}

/// The private key, given as text or as the path of a file. What the configuration file says counts before
/// the environment.
fn private_key(section: &Section<'_>, checks: &Checks<'_>) -> Option<SecretString> {
    let text = section.find("private_key", Var::Salesforce);
    let path = section.find("private_key_file", Var::Salesforce);
    let (given, is_path) = match (text, path) {
        (Found::Bad, _) | (_, Found::Bad) => return None,
        (Found::Nothing, Found::Nothing) => {
            section.missing(
                "private_key",
                Var::Salesforce,
                "auth = jwt needs the RSA private key whose certificate the app holds (or private_key_file)",
            );
            return None;
        }
        (Found::Given(text), Found::Given(path)) if text.from_file == path.from_file => {
            section.reader().problem(
                path.place,
                "private_key is given too; take one of the two away",
            );
            return None;
        }
        (Found::Given(text), Found::Given(path)) => {
            let is_path = path.from_file;
            (if is_path { path } else { text }, is_path)
        }
        (Found::Given(text), Found::Nothing) => (text, false),
        (Found::Nothing, Found::Given(path)) => (path, true),
    };
    let text = if is_path {
        section.accepted(&given, read_key_file)?
    } else {
        given.text.clone()
    };
    check_key(section, &given, &text, checks)?;
    Some(text.into())
}

fn check_key(section: &Section<'_>, given: &Given, text: &str, checks: &Checks<'_>) -> Option<()> {
    (checks.private_key)(text)
        .map_err(|error| {
            // Not `refuse`, which could repeat the key.
            let message = format!("cannot be used: {error}");
            section.reader().problem(given.place.clone(), message);
        })
        .ok()
}

fn read_key_file(path: &str) -> Result<String, String> {
    read_bounded(Path::new(path), KEY_FILE_LIMIT).map_err(|error| {
        format!("the key file cannot be read: {error}; check the path and its permissions")
    })
}
