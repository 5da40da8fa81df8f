//! What an emulator is started with.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use secrecy::SecretString;

use super::settings::Settings;
use crate::event::OrgId;

/// The user that the standard app signs in.
pub const DEFAULT_USERNAME: &str = "integration@emulator.example";
/// Consumer key of the standard app.
pub const DEFAULT_CLIENT_ID: &str = "emulator-client";
/// Consumer secret of the standard app. Nothing but an emulator accepts it.
pub const DEFAULT_CLIENT_SECRET: &str = "emulator-secret";
/// The standard org.
const DEFAULT_ORG: &str = "00D5g000004emu1EAA";

/// An app that may sign in: a connected app or external client app of the org.
#[derive(Debug, Clone)]
pub struct App {
    /// Consumer key; `iss` of a JWT.
    pub client_id: String,
    /// Consumer secret. Without one the client credentials flow is refused.
    pub client_secret: Option<SecretString>,
    /// A refresh may leave the secret out, as where an app's option to require it is off; a wrong one is
    /// refused all the same.
    pub secret_not_required_for_refresh: bool,
    /// RSA public keys, or certificates that hold them, that a JWT may be signed for; PEM text.
    pub public_keys: Vec<String>,
    /// Users that are approved for this app; the first one is its run-as user.
    pub usernames: Vec<String>,
    /// Refresh tokens already granted to the first user.
    pub refresh_tokens: Vec<SecretString>,
}

impl App {
    /// An app with a consumer key, a secret and one user.
    pub fn new(client_id: &str, client_secret: &str, username: &str) -> Self {
        Self {
            client_id: client_id.to_owned(),
            client_secret: Some(SecretString::from(client_secret)),
            secret_not_required_for_refresh: false,
            public_keys: Vec::new(),
            usernames: vec![username.to_owned()],
            refresh_tokens: Vec::new(),
        }
    }
}

/// How an emulator starts. The default listens on free loopback ports, in plaintext, with one app.
#[derive(Debug, Clone)]
pub struct EmulatorConfig {
    /// Address of the Pub/Sub and OAuth listeners. The admin API is always on loopback.
    pub host: IpAddr,
    /// Port of the Pub/Sub API; 0 takes a free one.
    pub pubsub_port: u16,
    /// Port of the OAuth endpoints; 0 takes a free one.
    pub login_port: u16,
    /// Port of the admin API; 0 takes a free one.
    pub admin_port: u16,
    /// TLS on the Pub/Sub and OAuth listeners, with a certificate authority made at start.
    pub tls: bool,
    /// The org.
    pub org_id: OrgId,
    /// What sign-ins name as the org's URL and calls must send; the OAuth listener's own by default.
    pub instance_url: Option<String>,
    /// How long the bus keeps events: 72 h.
    pub retention: Duration,
    /// Where the line of positions begins.
    pub first_position: u64,
    /// Most places left out between two events.
    pub max_gap: u64,
    /// Makes the gaps between positions the same at each start.
    pub seed: Option<u64>,
    /// Switches, changeable later.
    pub settings: Settings,
    /// Who may sign in.
    pub apps: Vec<App>,
}

impl Default for EmulatorConfig {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            pubsub_port: 0,
            login_port: 0,
            admin_port: 0,
            tls: false,
            org_id: default_org(),
            instance_url: None,
            retention: Duration::from_secs(72 * 3600),
            first_position: 1_104_000,
            max_gap: 4,
            seed: None,
            settings: Settings::default(),
            apps: vec![App::new(
                DEFAULT_CLIENT_ID,
                DEFAULT_CLIENT_SECRET,
                DEFAULT_USERNAME,
            )],
        }
    }
}

#[expect(clippy::expect_used, reason = "a constant, checked by a test")]
fn default_org() -> OrgId {
    OrgId::parse(DEFAULT_ORG).expect("the standard org ID is well formed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_org_id_is_the_completed_form_of_its_first_fifteen_characters() {
        let config = EmulatorConfig::default();
        assert_eq!(config.org_id, OrgId::parse(&DEFAULT_ORG[..15]).unwrap());
    }
}
