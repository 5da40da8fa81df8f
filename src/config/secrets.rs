//! What of a configuration is nobody's business, gathered so that it can be taken out of a text.

use secrecy::{ExposeSecret as _, SecretString};
use toml::Value;

use super::show::is_secret;
use super::{AuthConfig, Config, HandlerConfig};

/// Every value of a configuration that [`show()`](super::show()) masks, as it was given: whole addresses where it masks a
/// part of one.
pub(crate) fn secrets(config: &Config) -> Vec<String> {
    let mut all = Vec::new();
    match &config.salesforce.auth {
        AuthConfig::Jwt { private_key, .. } => put(&mut all, Some(private_key)),
        AuthConfig::ClientCredentials { client_secret, .. } => put(&mut all, Some(client_secret)),
        AuthConfig::RefreshToken {
            client_secret,
            refresh_token,
            ..
        } => put(&mut all, client_secret.iter().chain([refresh_token])),
        AuthConfig::AccessToken { access_token, .. } => put(&mut all, Some(access_token)),
    }
    // The file of an embedded database is no secret.
    put(
        &mut all,
        Some(&config.store.url).filter(|url| url.expose_secret().contains("://")),
    );
    put(&mut all, &config.store.encryption_key);
    put(&mut all, &config.web.token);
    if let Some(otlp) = &config.otlp {
        put(&mut all, otlp.headers.iter().map(|(_, value)| value));
    }
    for handler in config.subscriptions.iter().flat_map(|one| &one.handlers) {
        of_handler(&mut all, handler);
    }
    all
}

fn of_handler(all: &mut Vec<String>, handler: &HandlerConfig) {
    put(all, &handler.fields.hash_key);
    for (name, value) in &handler.options {
        of_option(all, is_secret(name), value);
    }
}

fn put<'a>(all: &mut Vec<String>, secrets: impl IntoIterator<Item = &'a SecretString>) {
    let exposed = secrets
        .into_iter()
        .map(|one| one.expose_secret().to_owned());
    all.extend(exposed);
}

fn of_option(all: &mut Vec<String>, secret: bool, value: &Value) {
    match value {
        Value::String(text) if secret || text.contains("://") => all.push(text.clone()),
        Value::Array(list) => list.iter().for_each(|value| of_option(all, secret, value)),
        Value::Table(table) => table
            .iter()
            .for_each(|(name, value)| of_option(all, secret || is_secret(name), value)),
        _ => {}
    }
}
