//! What can be wrong between us and the server, and the cure.

use std::time::Duration;

use redis::{ErrorKind, RedisError, Value};

use super::connection::Endpoint;
use crate::handler::Template;
use crate::text::one_line;

/// The longest text of another's in a reason, in characters.
const LONGEST: usize = 200;

/// Why events are not there, or not known to be. None of these is the fault of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Not connected in time.
    NoConnection,
    /// No answer in time.
    Late(Duration),
    /// The connection could not be made, or broke; what the operating system or TLS says.
    Connection(String),
    /// User name or password refused.
    Password,
    /// An error that the server answers.
    Server {
        /// Its first word, for example `OOM`.
        code: String,
        /// The rest, where it is known to hold nothing of an event.
        detail: Option<String>,
    },
    /// Too few replicas have what was written.
    Replicas { have: i64, wanted: i64 },
    /// An answer that Redis does not give.
    NotUnderstood,
}

/// An error that the client library gives.
pub(super) fn refused(error: &RedisError) -> Trouble {
    match error.kind() {
        ErrorKind::AuthenticationFailed => Trouble::Password,
        ErrorKind::Io => Trouble::Connection(plain(&error.to_string())),
        ErrorKind::Server(_) | ErrorKind::Extension => {
            server_trouble(error.code().unwrap_or("ERR"), error.detail())
        }
        ErrorKind::InvalidClientConfig => Trouble::Connection(plain(&error.to_string())),
        _ => Trouble::NotUnderstood,
    }
}

/// An answer, where it is not an error.
pub(super) fn of_value(value: Value) -> Result<Value, Trouble> {
    match value {
        Value::ServerError(error) => Err(server_trouble(error.code(), error.details())),
        value => Ok(value),
    }
}

/// An error that the server answers.
pub(super) fn server_trouble(code: &str, detail: Option<&str>) -> Trouble {
    // Redis repeats the arguments of what it does not understand, which are the event.
    let detail = detail.map(|detail| detail.split(", with args").next().unwrap_or_default());
    Trouble::Server {
        code: plain(code),
        detail: detail
            .filter(|_| matches!(code, "ERR" | "MISCONF"))
            .map(plain),
    }
}

/// One line of bounded length.
fn plain(text: &str) -> String {
    one_line(text, LONGEST)
}

impl Trouble {
    /// Whether it is surely the server's, or the way's to it, and no event's that met with it.
    pub(super) fn is_the_servers(&self) -> bool {
        match self {
            Self::NoConnection
            | Self::Late(_)
            | Self::Connection(_)
            | Self::Password
            | Self::Replicas { .. } => true,
            Self::Server { code, .. } => matches!(
                code.as_str(),
                "NOAUTH"
                    | "WRONGPASS"
                    | "NOPERM"
                    | "OOM"
                    | "MISCONF"
                    | "READONLY"
                    | "MASTERDOWN"
                    | "LOADING"
                    | "BUSY"
                    | "NOREPLICAS"
                    | "WRONGTYPE"
                    | "MOVED"
                    | "ASK"
                    | "CROSSSLOT"
                    | "CLUSTERDOWN"
                    | "TRYAGAIN"
            ),
            Self::NotUnderstood => false,
        }
    }

    /// Whether connections at rest are in the same trouble: to a server that is gone, or is not the primary any more.
    pub(super) fn is_of_all_connections(&self) -> bool {
        match self {
            Self::NoConnection | Self::Late(_) | Self::Connection(_) | Self::Replicas { .. } => {
                true
            }
            Self::Server { code, .. } => {
                matches!(code.as_str(), "READONLY" | "MASTERDOWN" | "LOADING")
            }
            Self::Password | Self::NotUnderstood => false,
        }
    }

    /// For a person: which server, what, and the cure.
    pub(super) fn reason(&self, endpoint: &Endpoint, stream: &Template) -> String {
        let server = endpoint.name();
        match self {
            Self::NoConnection => {
                format!(
                    "no connection to Redis at {server} within {:?}",
                    endpoint.connect_timeout()
                )
            }
            Self::Late(timeout) => format!("no answer from Redis at {server} within {timeout:?}"),
            Self::Connection(why) => {
                format!(
                    "no connection to Redis at {server}: {why}{}",
                    of_connection(why)
                )
            }
            Self::Password => format!(
                "Redis at {server} refuses user name or password: look at those in `url`, \
                 redis://USER:PASSWORD@HOST, where USER is `default` or left out unless an ACL names one"
            ),
            Self::Server { code, detail } => {
                let detail = detail
                    .as_deref()
                    .map(|d| format!(" {d}"))
                    .unwrap_or_default();
                let cure = of_code(code, stream);
                format!("Redis at {server} answers {code}{detail}{cure}")
            }
            Self::Replicas { have, wanted } => format!(
                "Redis at {server} has {have} of the {wanted} replicas that `wait_replicas` asks for: look at its \
                 replicas, or lower `wait_replicas`"
            ),
            Self::NotUnderstood => {
                format!("what answers at {server} is not Redis as it is known here: look at `url`")
            }
        }
    }
}

/// The cure for a connection that fails, where what it says points to one.
fn of_connection(why: &str) -> &'static str {
    if why.contains("certificate") {
        " (name the CA in `ca_file`; where the provider signs its own, as Heroku does, set `tls_verify = false`)"
    } else if why.contains("InvalidContentType") || why.contains("corrupt message") {
        " (the server does not speak TLS on this port: write redis:// in `url`)"
    } else if why.contains("refused") || why.contains("lookup") {
        " (look at host and port of `url`)"
    } else {
        ""
    }
}

/// The cure for an error code.
fn of_code(code: &str, stream: &Template) -> String {
    let cure = match code {
        "NOAUTH" => "it asks for a password: put it into `url`, redis://:PASSWORD@HOST",
        "WRONGPASS" => "look at user name and password in `url`",
        "NOPERM" => {
            return format!(
                ": its user needs +multi +exec +discard +xadd (with `wait_replicas` +wait) on the keys of \
                 `stream` = {stream}: ACL SETUSER"
            );
        }
        "OOM" => {
            "its memory (maxmemory) is full: make room, give it more, or bound the streams with `max_length`"
        }
        "READONLY" => "it is a replica: `url` must name the primary",
        "MISCONF" => "it cannot write to its disk: make room there and look at its log",
        "NOREPLICAS" => "too few of its replicas are there (min-replicas-to-write)",
        "LOADING" => "it is loading its data: it will be ready by itself",
        "MASTERDOWN" => "it is a replica that has lost its primary: `url` must name the primary",
        "WRONGTYPE" => {
            return format!(
                ": a key of `stream` = {stream} is there and is not a stream: rename it, or set `stream` to another name"
            );
        }
        "MOVED" | "ASK" | "CROSSSLOT" | "CLUSTERDOWN" | "TRYAGAIN" => {
            "it is a node of a cluster, which this handler does not follow: use a server without cluster mode"
        }
        "EXECABORT" => "a command of the transaction was refused",
        _ => return String::new(),
    };
    format!(": {cure}")
}
