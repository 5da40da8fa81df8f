//! The connection to the servers, made when it is first needed and kept up by the client.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::{
    Client, ClientError, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerAddr,
};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::OnceCell;

use crate::handler::Options;
use crate::text::one_line;

/// The longest text of another's in a reason, in characters.
const LONGEST: usize = 200;

/// Where the servers are.
pub(super) struct Servers(Vec<ServerAddr>);

impl Servers {
    pub(super) fn read(options: &mut Options<'_>, text: &str) -> Option<Self> {
        let servers: Option<Vec<ServerAddr>> = text
            .split(',')
            .map(str::trim)
            .filter(|one| !one.is_empty())
            .map(|one| one.parse().ok())
            .collect();
        let reason = match servers {
            None => "must be nats://HOST:PORT or tls://HOST:PORT, several with commas between",
            Some(servers) if servers.is_empty() => "must name a server",
            Some(servers) if servers.iter().any(ServerAddr::is_websocket) => {
                "must begin with nats:// or tls://: WebSocket is not supported"
            }
            Some(servers) if servers.iter().any(|s| s.username().is_some()) => {
                "must not hold a user name, password or token: use `user` and `password`, or `token`"
            }
            Some(servers) => return Some(Self(servers)),
        };
        options.invalid("url", reason);
        None
    }

    /// Hosts and ports.
    fn name(&self) -> String {
        let names = self.0.iter().map(|s| format!("{}:{}", s.host(), s.port()));
        names.collect::<Vec<_>>().join(", ")
    }
}

/// How to sign in.
pub(super) enum Login {
    Nobody,
    Token(SecretString),
    User(String, SecretString),
    /// Seed of an NKEY.
    Nkey(SecretString),
    /// Text of a `.creds` file.
    Credentials(SecretString),
}

impl Login {
    /// Reads whichever is there; notes where several are.
    pub(super) fn read(options: &mut Options<'_>) -> Self {
        let mut found = Vec::new();
        if let Some(token) = options.text("token") {
            found.push(Self::Token(token.into()));
        }
        match (options.text("user"), options.text("password")) {
            (Some(user), Some(password)) => found.push(Self::User(user, password.into())),
            (None, None) => {}
            (None, Some(_)) => options.invalid("password", "needs `user` beside it"),
            (Some(_), None) => options.invalid("user", "needs `password` beside it"),
        }
        if let Some(seed) = options.text("nkey") {
            // The library reads it at the first connection, and would then blame the server.
            if seed.trim().starts_with("SU") && seed.trim().len() == 58 {
                found.push(Self::Nkey(seed.trim().into()));
            } else {
                options.invalid(
                    "nkey",
                    "must be the seed of a user's NKEY, which begins with SU",
                );
            }
        }
        if let Some(text) = options.text("credentials") {
            if ConnectOptions::with_credentials(&text).is_ok() {
                found.push(Self::Credentials(text.into()));
            } else {
                options.invalid("credentials", "must be the whole text of a .creds file");
            }
        }
        if found.len() > 1 {
            options.invalid(
                "url",
                "has more than one way to sign in beside it: leave one of `token`, `user` with \
                 `password`, `nkey` and `credentials`",
            );
        }
        found.pop().unwrap_or(Self::Nobody)
    }
}

/// A connection that is made at first use. From then on the client keeps it up, for ever.
pub(super) struct Connection {
    servers: Servers,
    name: String,
    login: Login,
    ca: Option<PathBuf>,
    connect_timeout: Duration,
    timeout: Duration,
    made: OnceCell<(Client, Context)>,
    last_error: Arc<Mutex<Option<String>>>,
}

impl Connection {
    pub(super) fn new(
        servers: Servers,
        login: Login,
        ca: Option<PathBuf>,
        connect_timeout: Duration,
        timeout: Duration,
    ) -> Self {
        Self {
            name: servers.name(),
            servers,
            login,
            ca,
            connect_timeout,
            timeout,
            made: OnceCell::new(),
            last_error: Arc::default(),
        }
    }

    /// Hosts and ports.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What the server said last that was no answer to anything, since it was last connected.
    pub(super) fn last_error(&self) -> Option<String> {
        let last = self.last_error.lock();
        last.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// JetStream over a connection that is up.
    ///
    /// # Errors
    ///
    /// It is down: why, and the cure. What were published now would wait in the client, who knows how long.
    pub(super) async fn jetstream(&self) -> Result<Context, String> {
        let (client, stream) = self.made().await?;
        if client.connection_state() != State::Connected {
            let why = self
                .last_error()
                .unwrap_or_else(|| "it is not there".to_owned());
            return Err(format!(
                "no connection to NATS at {}: {why}{}",
                self.name,
                cure(&why)
            ));
        }
        Ok(stream.clone())
    }

    /// True once there was a connection.
    pub(super) fn was_made(&self) -> bool {
        self.made.initialized()
    }

    async fn made(&self) -> Result<&(Client, Context), String> {
        self.made.get_or_try_init(|| self.make()).await
    }

    async fn make(&self) -> Result<(Client, Context), String> {
        let connecting = self.options()?.connect(self.servers.0.clone());
        let connected = tokio::time::timeout(self.connect_timeout, connecting)
            .await
            .map_err(|_| {
                format!(
                    "no connection to NATS at {} within {:?}",
                    self.name, self.connect_timeout
                )
            })?
            .map_err(|error| self.why_none(&error))?;
        // Once for all events: to build it starts a task.
        let stream = ContextBuilder::new()
            .timeout(self.timeout)
            .ack_timeout(self.timeout)
            .build(connected.clone());
        Ok((connected, stream))
    }

    fn options(&self) -> Result<ConnectOptions, String> {
        let last_error = self.last_error.clone();
        let options = ConnectOptions::new()
            .name("orgstream")
            .connection_timeout(self.connect_timeout)
            .ping_interval(Duration::from_secs(20))
            .event_callback(move |event| {
                note(&last_error, &event);
                std::future::ready(())
            });
        let options = match &self.ca {
            Some(path) => options.add_root_certificates(path.clone()),
            None => options,
        };
        let secret = |secret: &SecretString| secret.expose_secret().to_owned();
        Ok(match &self.login {
            Login::Nobody => options,
            Login::Token(token) => options.token(secret(token)),
            Login::User(user, password) => {
                options.user_and_password(user.clone(), secret(password))
            }
            Login::Nkey(seed) => options.nkey(secret(seed)),
            Login::Credentials(text) => options
                .credentials(text.expose_secret())
                .map_err(|_| "`credentials` is not the text of a .creds file".to_owned())?,
        })
    }

    fn why_none(&self, error: &ConnectError) -> String {
        let why = match error.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                REFUSED.to_owned()
            }
            kind => match std::error::Error::source(error) {
                Some(source) => format!("{kind}: {}", plain(&source.to_string())),
                None => kind.to_string(),
            },
        };
        format!(
            "no connection to NATS at {}: {why}{}",
            self.name,
            cure(&why)
        )
    }
}

/// What stands for a refused login.
const REFUSED: &str = "it refuses the login";

/// Keeps what the client says of the connection, for the next message to a person.
fn note(last_error: &Mutex<Option<String>>, event: &Event) {
    let said = match event {
        Event::Connected => None,
        Event::ServerError(async_nats::ServerError::AuthorizationViolation) => {
            Some(REFUSED.to_owned())
        }
        Event::ServerError(error) => Some(plain(&error.to_string())),
        Event::ClientError(ClientError::Other(kind)) if is_refusal(kind) => {
            Some(REFUSED.to_owned())
        }
        Event::ClientError(error) => Some(plain(&error.to_string())),
        _ => return,
    };
    *last_error.lock().unwrap_or_else(PoisonError::into_inner) = said;
}

/// Of an attempt to connect again the client tells the kind of its error only, as a text.
fn is_refusal(kind: &str) -> bool {
    let refusals = [
        ConnectErrorKind::Authentication,
        ConnectErrorKind::AuthorizationViolation,
    ];
    refusals.iter().any(|refusal| refusal.to_string() == kind)
}

/// The cure, where what is said points to one.
fn cure(why: &str) -> &'static str {
    let why = why.to_ascii_lowercase();
    if why.contains("refuses the login") || why.contains("authorization") {
        " (look at `token`, `user` and `password`, `nkey` or `credentials`)"
    } else if why.contains("certificate") {
        " (name the CA in `ca_file`)"
    } else if ["refused", "dns", "lookup", "io error"]
        .iter()
        .any(|word| why.contains(word))
    {
        " (look at host and port of `url`)"
    } else {
        ""
    }
}

/// One line of bounded length.
pub(super) fn plain(text: &str) -> String {
    one_line(text, LONGEST)
}

// By hand: without the login.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("servers", &self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_last_is_kept_until_the_connection_is_up() {
        let last = Mutex::new(None);
        let said = |event: Event| {
            note(&last, &event);
            last.lock().unwrap().clone()
        };
        let violation = ConnectErrorKind::AuthorizationViolation.to_string();
        let refused = said(Event::ClientError(ClientError::Other(violation)));
        assert_eq!(refused.as_deref(), Some(REFUSED));
        assert_eq!(said(Event::Disconnected).as_deref(), Some(REFUSED));
        let other = said(Event::ServerError(async_nats::ServerError::Other(
            "a\nb".into(),
        )));
        assert_eq!(other.as_deref(), Some("nats: a b"));
        assert_eq!(said(Event::Connected), None);
    }

    #[test]
    fn what_points_to_a_cure_has_it() {
        assert!(cure(REFUSED).contains("`credentials`"));
        assert!(cure("TLS error: invalid peer certificate: UnknownIssuer").contains("`ca_file`"));
        assert!(cure("IO error: Connection refused (os error 111)").contains("`url`"));
        assert_eq!(cure("it is not there"), "");
    }
}
