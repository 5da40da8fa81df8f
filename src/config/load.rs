//! Finds the configuration, reads it, and reports everything that is wrong with it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::document::{self, Entries};
use super::env::Env;
use super::error::{ConfigError, Problem};
use super::reader::Reader;
use super::section::{Section, Var};
use super::store::Credentials;
use super::subscription::{self, TOPICS};
use super::web::Reading;
use super::{
    AuthConfig, Checks, Config, HandlerConfig, SalesforceConfig, StoreConfig, SubscriptionConfig,
    WebConfig,
};

/// The file that is read where none is named.
const DEFAULT_FILE: &str = "orgstream.toml";

/// Names a file, or holds the TOML itself.
const VARIABLE: &str = "ORGSTREAM_CONFIG";

/// Longest configuration, in bytes.
const FILE_LIMIT: u64 = 1024 * 1024;

/// A configuration that can be used.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Where it came from.
    pub origin: Origin,
    /// What works, but probably not as meant; to be logged.
    pub warnings: Vec<Problem>,
}

/// Where a configuration came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A file.
    File(PathBuf),
    /// The text in `ORGSTREAM_CONFIG`.
    Variable,
    /// Environment variables alone.
    Environment,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable => f.write_str(VARIABLE),
            Self::Environment => f.write_str("the environment"),
        }
    }
}

/// Whether a command can do without subscriptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subscriptions {
    /// At least one, or the configuration is wrong: `run`.
    Required,
    /// None is fine: `topics`, `publish`.
    Optional,
}

/// Loads the whole configuration.
///
/// It is the file at `path` (from `--config`); else what `ORGSTREAM_CONFIG` names or holds; else
/// `orgstream.toml` in the current directory; else the environment alone. A key of the file comes before
/// its environment variable, and that before the default. Relative paths start at the current directory.
///
/// # Errors
///
/// [`ConfigError`], with all problems at once.
pub fn load(
    path: Option<&Path>,
    subscriptions: Subscriptions,
    env: &dyn Env,
    checks: &Checks<'_>,
) -> Result<Loaded, ConfigError> {
    load_in(Path::new(""), path, subscriptions, env, checks)
}

/// Loads what signing in and calling the Pub/Sub API take, for commands that need nothing else. The other
/// sections are not looked at.
///
/// # Errors
///
/// [`ConfigError`], with all problems at once.
pub fn load_salesforce(
    path: Option<&Path>,
    env: &dyn Env,
    checks: &Checks<'_>,
) -> Result<SalesforceConfig, ConfigError> {
    let document = Document::find(Path::new(""), path, env)?;
    document.read_section(env, |root| {
        super::salesforce::read(root.table("salesforce"), checks)
    })
}

/// Loads where the store is, for commands that need nothing else: `migrate` runs in the release phase, where
/// the org's credentials may not be set yet.
///
/// # Errors
///
/// [`ConfigError`], with all problems at once.
pub fn load_store(path: Option<&Path>, env: &dyn Env) -> Result<StoreConfig, ConfigError> {
    let document = Document::find(Path::new(""), path, env)?;
    document.read_section(env, |root| {
        super::store::read(root.table("store"), Credentials::Elsewhere)
    })
}

/// Loads how long the bus keeps events, and how long before a position leaves it a person is warned.
///
/// # Errors
///
/// [`ConfigError`], with all problems at once.
pub fn load_bus_retention(
    path: Option<&Path>,
    env: &dyn Env,
) -> Result<(Duration, Duration), ConfigError> {
    let document = Document::find(Path::new(""), path, env)?;
    document.read_section(env, |root| {
        Some(super::salesforce::read_retention(&root.table("salesforce")))
    })
}

/// Loads what `orgstream web` needs beside the store: its address, and the token, which has to be given.
///
/// # Errors
///
/// [`ConfigError`], with all problems at once.
pub fn load_web(path: Option<&Path>, env: &dyn Env) -> Result<WebConfig, ConfigError> {
    let document = Document::find(Path::new(""), path, env)?;
    document.read_section(env, |root| {
        super::web::read(root.table("web"), Reading::ToServe)
    })
}

/// As [`load_store`], for commands that keep a refresh token there: the encryption key has to be given.
///
/// # Errors
///
/// [`ConfigError`], with all problems at once.
pub fn load_vault(path: Option<&Path>, env: &dyn Env) -> Result<StoreConfig, ConfigError> {
    let document = Document::find(Path::new(""), path, env)?;
    document.read_section(env, |root| {
        super::store::read(root.table("store"), Credentials::Kept)
    })
}

/// Loads the subscriptions, and where the store is: for a command that tries handlers and does not sign in.
///
/// # Errors
///
/// [`ConfigError`], with all problems at once.
pub fn load_handlers(
    path: Option<&Path>,
    env: &dyn Env,
    checks: &Checks<'_>,
) -> Result<(Vec<SubscriptionConfig>, StoreConfig), ConfigError> {
    let document = Document::find(Path::new(""), path, env)?;
    if document.entries.is_none() && env.var(TOPICS).is_none() {
        return Err(ConfigError::Missing {
            looked_for: DEFAULT_FILE,
        });
    }
    let reader = Reader::new(env, document.source.clone());
    let root = Section::root(&reader, document.entries.as_ref());
    let store = super::store::read(root.table("store"), Credentials::Elsewhere);
    let handler = |handler: &HandlerConfig| (checks.handler)(handler, store.as_ref());
    let sections = root.tables("subscription");
    let subscriptions = subscription::read_all(sections, &reader, &handler);
    let (problems, _) = reader.into_findings();
    match store {
        Some(store) if problems.is_empty() => Ok((subscriptions, store)),
        _ => Err(ConfigError::Invalid(problems)),
    }
}

/// Loads the subscriptions alone, for commands that show events as handlers see them. Their handlers' own keys
/// are read, and not checked.
///
/// # Errors
///
/// [`ConfigError`], with all problems at once.
pub fn load_subscriptions(
    path: Option<&Path>,
    env: &dyn Env,
) -> Result<Vec<SubscriptionConfig>, ConfigError> {
    let document = Document::find(Path::new(""), path, env)?;
    document.read_section(env, |root| {
        let sections = root.tables("subscription");
        Some(subscription::read_all(sections, root.reader(), &|_| {
            Vec::new()
        }))
    })
}

/// [`load`], with the current directory given, so that tests have one each.
pub(super) fn load_in(
    directory: &Path,
    path: Option<&Path>,
    subscriptions: Subscriptions,
    env: &dyn Env,
    checks: &Checks<'_>,
) -> Result<Loaded, ConfigError> {
    let document = Document::find(directory, path, env)?;
    let required = subscriptions == Subscriptions::Required;
    if required && document.entries.is_none() && env.var(TOPICS).is_none() {
        return Err(ConfigError::Missing {
            looked_for: DEFAULT_FILE,
        });
    }
    let reader = Reader::new(env, document.source.clone());
    let root = Section::root(&reader, document.entries.as_ref());
    let salesforce = super::salesforce::read(root.table("salesforce"), checks);
    let credentials = match salesforce.as_ref().map(|config| &config.auth) {
        Some(AuthConfig::RefreshToken { .. }) => Credentials::Kept,
        _ => Credentials::Elsewhere,
    };
    let store = super::store::read(root.table("store"), credentials);
    let retention = super::retention::read(root.table("retention"));
    let web = super::web::read(root.table("web"), Reading::InPassing);
    let sections = root.tables("subscription");
    let nothing_to_do = sections.is_empty() && env.var(TOPICS).is_none();
    if required && nothing_to_do && !reader.has_problem_at(&root.place("subscription")) {
        root.missing(
            "subscription",
            Var::Named(TOPICS),
            "there is nothing to do; add a [[subscription]] with a name, a topic and a handler",
        );
    }
    let handler = |handler: &HandlerConfig| (checks.handler)(handler, store.as_ref());
    let subscriptions = subscription::read_all(sections, &reader, &handler);
    if let Some(hides) = subscriptions.iter().find(|one| one.hides())
        && let Some(store) = &store
        && store.encryption_key.is_none()
    {
        root.table("store").missing(
            "encryption_key",
            Var::Named("ORGSTREAM_ENCRYPTION_KEY"),
            &needs_encryption(&hides.name),
        );
    }
    let metrics_addr = root.parsed(
        "metrics_addr",
        Var::Named("ORGSTREAM_METRICS_ADDR"),
        |text| {
            text.parse::<SocketAddr>().map_err(
                |_| "expected an IP address and a port, for example 127.0.0.1:9090 or 0.0.0.0:9090",
            )
        },
    );
    let otlp = super::telemetry::read_otlp(&reader);
    let log_samples = super::telemetry::read_log_samples(&root);
    let schemas_dir = root.text("schemas_dir", Var::Named("ORGSTREAM_SCHEMAS_DIR"));
    root.finish();

    let (problems, warnings) = reader.into_findings();
    match (salesforce, store, web) {
        (Some(salesforce), Some(store), Some(web)) if problems.is_empty() => Ok(Loaded {
            config: Config {
                salesforce,
                store,
                retention,
                web,
                subscriptions,
                metrics_addr,
                otlp,
                log_samples,
                schemas_dir: schemas_dir.map_or_else(
                    || PathBuf::from(Config::SCHEMAS_DIR),
                    |given| PathBuf::from(given.text),
                ),
            },
            origin: document.origin,
            warnings,
        }),
        _ => Err(ConfigError::Invalid(problems)),
    }
}

/// Why a subscription that hides fields needs a key.
pub(crate) fn needs_encryption(subscription: &str) -> String {
    format!(
        "a handler of subscription `{subscription}` is not shown all `fields`, so that parked events are kept \
         encrypted; make one with `openssl rand -hex 32`"
    )
}

/// A configuration that was found and is TOML.
struct Document {
    origin: Origin,
    /// How messages call it; `None` for the environment alone.
    source: Option<String>,
    entries: Option<Entries>,
}

impl Document {
    fn find(directory: &Path, path: Option<&Path>, env: &dyn Env) -> Result<Self, ConfigError> {
        if let Some(path) = path {
            return Self::from_file("--config", &directory.join(path));
        }
        if let Some(value) = env.var(VARIABLE) {
            let path = directory.join(&value);
            // Every TOML that says something has a `=`; the rare path that has one is a file that exists.
            let is_text = value.contains('\n') || (value.contains('=') && !path.is_file());
            return if is_text {
                Self::from_text(Origin::Variable, VARIABLE.to_owned(), &value)
            } else {
                Self::from_file(VARIABLE, &path)
            };
        }
        let path = directory.join(DEFAULT_FILE);
        if path.exists() {
            return Self::from_file("current directory", &path);
        }
        Ok(Self {
            origin: Origin::Environment,
            source: None,
            entries: None,
        })
    }

    fn from_file(named_by: &'static str, path: &Path) -> Result<Self, ConfigError> {
        let text = read_bounded(path, FILE_LIMIT).map_err(|error| ConfigError::Unreadable {
            named_by,
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        Self::from_text(
            Origin::File(path.to_owned()),
            path.display().to_string(),
            &text,
        )
    }

    fn from_text(origin: Origin, source: String, text: &str) -> Result<Self, ConfigError> {
        let entries = document::parse(text, &source).map_err(ConfigError::Invalid)?;
        Ok(Self {
            origin,
            source: Some(source),
            entries: Some(entries),
        })
    }

    /// Reads one section and leaves the others alone.
    fn read_section<T>(
        &self,
        env: &dyn Env,
        read: impl FnOnce(&Section<'_>) -> Option<T>,
    ) -> Result<T, ConfigError> {
        let reader = Reader::new(env, self.source.clone());
        let root = Section::root(&reader, self.entries.as_ref());
        let section = read(&root);
        let (problems, _) = reader.into_findings();
        match section {
            Some(section) if problems.is_empty() => Ok(section),
            _ => Err(ConfigError::Invalid(problems)),
        }
    }
}

/// A file's text, if it is not longer than `limit` bytes.
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
