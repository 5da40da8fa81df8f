//! `orgstream emulator`: an org in memory, for any client.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use secrecy::SecretString;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::output::{note, print, print_json_line};
use super::run::on_signal;
use crate::config::parse_duration;
use crate::emulator::sample::{self, Traffic};
use crate::emulator::{
    App, DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, DEFAULT_USERNAME, Emulator, EmulatorConfig,
    Endpoints, Settings, SigningKey,
};
use crate::event::OrgId;

/// Run an org in memory, to try things against.
///
/// Pub/Sub API, OAuth, and an admin API to publish events and cause trouble. Serves any client of the Pub/Sub API, not only orgstream. It has the topics /data/AccountChangeEvent,
/// /data/ContactChangeEvent, /data/Employee__ChangeEvent, /data/ChangeEvents and /event/Order__e, and takes
/// more. Everything is in memory and gone at the end. Prints where it listens and the environment variables
/// that point `orgstream run` at it.
///
/// The admin API, plain HTTP on loopback, publishes events from JSON, loads schemas and captured events,
/// and switches faults on: docs/EMULATOR.md.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  orgstream emulator --traffic 2\n  orgstream emulator --pubsub-port 7443 --login-port 7011 --admin-port 7012\n  orgstream emulator --generate-key key.pem --json\n  orgstream emulator --tls --ca-out ca.pem --keepalive 5s --set events_per_response=1"
)]
pub(super) struct EmulatorArgs {
    /// Address of the Pub/Sub API and the OAuth endpoints
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: IpAddr,
    /// Port of the Pub/Sub API; 0 takes a free one
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    pubsub_port: u16,
    /// Port of the OAuth endpoints; 0 takes a free one
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    login_port: u16,
    /// Port of the admin API; 0 takes a free one
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    admin_port: u16,
    /// Use TLS on the Pub/Sub API and the OAuth endpoints, with a CA made at the start
    #[arg(long)]
    tls: bool,
    /// Write the CA's certificate to this file; implies --tls
    #[arg(long, value_name = "FILE")]
    ca_out: Option<PathBuf>,
    /// Organization ID
    #[arg(long, value_name = "ID", value_parser = OrgId::parse)]
    org_id: Option<OrgId>,
    /// How long the bus keeps events
    #[arg(long, default_value = "72h", value_name = "DURATION", value_parser = parse_duration)]
    retention: Duration,
    /// Silence after which a stream gets a keepalive
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    keepalive: Option<Duration>,
    /// How long a stream without credits stays open
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    idle_close: Option<Duration>,
    /// Set any switch of docs/EMULATOR.md, its value as JSON; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Consumer key of the app that may sign in
    #[arg(long, default_value = DEFAULT_CLIENT_ID, value_name = "KEY")]
    client_id: String,
    /// Its consumer secret
    #[arg(long, default_value = DEFAULT_CLIENT_SECRET, value_name = "SECRET")]
    client_secret: String,
    /// The user it signs in
    #[arg(long, default_value = DEFAULT_USERNAME, value_name = "NAME")]
    username: String,
    /// Register the public key or certificate in this PEM file with the app, for the JWT flow
    #[arg(long, value_name = "FILE")]
    public_key: Option<PathBuf>,
    /// Write a new private key to this PEM file and register its public half, for the JWT flow
    #[arg(long, value_name = "FILE")]
    generate_key: Option<PathBuf>,
    /// Let something happen so many times a second: changes of accounts and contacts, and orders
    #[arg(long, value_name = "PER_SECOND", value_parser = per_second)]
    traffic: Option<f64>,
    /// Print where it listens as one line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: EmulatorArgs) -> Result<ExitCode, Failure> {
    // Before anything listens: from here on a signal is a clean end.
    let stop = CancellationToken::new();
    on_signal(stop.clone())?;
    let emulator = Emulator::start(configuration(&args)?)
        .await
        .map_err(anyhow::Error::from)?;
    sample::add_topics(&emulator).map_err(anyhow::Error::msg)?;
    let endpoints = emulator.endpoints();
    if let (Some(file), Some(pem)) = (&args.ca_out, &endpoints.ca_pem) {
        fs::write(file, pem).map_err(|error| cannot_write(file, &error))?;
    }
    let variables = variables(&args, endpoints);
    if args.json {
        print_json_line(&described(&args, endpoints, &variables))?;
    } else {
        print(&block(endpoints, &variables))?;
        if args.tls && args.ca_out.is_none() {
            note("clients have to trust its CA: `--ca-out ca.pem` writes the certificate");
        }
    }
    match args.traffic {
        Some(pace) => Traffic::new(emulator.clone(), None)
            .run(pace, stop)
            .await
            .map_err(anyhow::Error::from)?,
        None => stop.cancelled().await,
    }
    emulator.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// A pace of traffic.
pub(super) fn per_second(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(pace) if (0.01..=1000.0).contains(&pace) => Ok(pace),
        _ => Err("expected a number from 0.01 to 1000".to_owned()),
    }
}

fn configuration(args: &EmulatorArgs) -> Result<EmulatorConfig, Failure> {
    let mut app = App::new(&args.client_id, &args.client_secret, &args.username);
    app.client_secret = Some(SecretString::from(args.client_secret.as_str()));
    if let Some(file) = &args.public_key {
        let pem = fs::read_to_string(file)
            .map_err(|error| anyhow::anyhow!("cannot read {}: {error}", file.display()))?;
        app.public_keys.push(pem);
    }
    if let Some(file) = &args.generate_key {
        let key = SigningKey::generate().map_err(|_| {
            anyhow::anyhow!("cannot make a key: the system gives no random numbers")
        })?;
        write_secret(file, &key.private_pem).map_err(|error| cannot_write(file, &error))?;
        app.public_keys.push(key.public_pem);
    }
    let default = EmulatorConfig::default();
    Ok(EmulatorConfig {
        host: args.host,
        pubsub_port: args.pubsub_port,
        login_port: args.login_port,
        admin_port: args.admin_port,
        tls: args.tls || args.ca_out.is_some(),
        org_id: args.org_id.clone().unwrap_or(default.org_id),
        retention: args.retention,
        settings: settings(args)?,
        apps: vec![app],
        ..EmulatorConfig::default()
    })
}

fn settings(args: &EmulatorArgs) -> Result<Settings, anyhow::Error> {
    let mut settings = Settings::default();
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if let Some(keepalive) = args.keepalive {
        settings.keepalive_ms = ms(keepalive);
    }
    if let Some(idle_close) = args.idle_close {
        settings.idle_close_ms = ms(idle_close);
    }
    for given in &args.set {
        let Some((name, value)) = given.split_once('=') else {
            anyhow::bail!("--set {given}: expected NAME=VALUE, such as events_per_response=1");
        };
        // A word that is no JSON is text: `unknown_topic=permission_denied`.
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        let change = Value::Object(Map::from_iter([(name.to_owned(), value)]));
        settings = settings
            .with(&change)
            .map_err(|error| anyhow::anyhow!("--set {given}: {error}"))?;
    }
    Ok(settings)
}

/// Writes a file that only its owner may read.
fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    options.open(path)?.write_all(text.as_bytes())
}

fn cannot_write(path: &Path, error: &std::io::Error) -> anyhow::Error {
    anyhow::anyhow!("cannot write {}: {error}", path.display())
}

/// What points `orgstream run` at it: by JWT where the private key is at hand, else by secret.
fn variables(args: &EmulatorArgs, endpoints: &Endpoints) -> Vec<(&'static str, String)> {
    let mut variables = vec![
        ("SALESFORCE_LOGIN_URL", endpoints.login_url.clone()),
        ("SALESFORCE_PUBSUB_ENDPOINT", endpoints.pubsub_url.clone()),
        ("SALESFORCE_CLIENT_ID", args.client_id.clone()),
    ];
    let absolute = |path: &Path| {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        path.display().to_string()
    };
    match &args.generate_key {
        Some(file) => {
            variables.push(("SALESFORCE_USERNAME", args.username.clone()));
            variables.push(("SALESFORCE_PRIVATE_KEY_FILE", absolute(file)));
        }
        None => variables.push(("SALESFORCE_CLIENT_SECRET", args.client_secret.clone())),
    }
    if let Some(file) = &args.ca_out {
        variables.push(("SALESFORCE_CA_FILE", absolute(file)));
    }
    variables
}

/// Where it listens and who may sign in, for scripts; `env` holds the variables.
fn described(
    args: &EmulatorArgs,
    endpoints: &Endpoints,
    variables: &[(&'static str, String)],
) -> Value {
    let env: Map<String, Value> = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.as_str().into()))
        .collect();
    json!({
        "pubsub_endpoint": endpoints.pubsub_url,
        "login_url": endpoints.login_url,
        "admin_url": endpoints.admin_url,
        "instance_url": endpoints.instance_url,
        "org_id": endpoints.org_id,
        "client_id": args.client_id,
        "client_secret": args.client_secret,
        "username": args.username,
        "ca_pem": endpoints.ca_pem,
        "env": env,
    })
}

/// Where it listens, for people.
fn block(endpoints: &Endpoints, variables: &[(&'static str, String)]) -> String {
    let exports: String = variables
        .iter()
        .map(|(name, value)| format!("export {name}={}\n", quoted(value)))
        .collect();
    format!(
        "Pub/Sub API   {}\nOAuth         {}\nadmin API     {}\norganization  {}\n\n\
         # To use it from another shell:\n{exports}\
         # then, for example: ORGSTREAM_TOPICS=Account,Order__e orgstream run\n",
        endpoints.pubsub_url, endpoints.login_url, endpoints.admin_url, endpoints.org_id
    )
}

/// As a POSIX shell reads it back.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@+".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        value.to_owned()
    } else {
        format!("'{}'", value.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: EmulatorArgs,
    }

    fn args(line: &[&str]) -> EmulatorArgs {
        let words = std::iter::once("emulator").chain(line.iter().copied());
        Line::parse_from(words).args
    }

    fn endpoints() -> Endpoints {
        Endpoints {
            pubsub_url: "http://127.0.0.1:1".into(),
            login_url: "http://127.0.0.1:2".into(),
            admin_url: "http://127.0.0.1:3".into(),
            instance_url: "http://127.0.0.1:2".into(),
            org_id: "00D5g000004emu1EAA".into(),
            ca_pem: None,
        }
    }

    #[test]
    fn switches_come_from_their_own_options_or_by_name() {
        let args = args(&[
            "--keepalive",
            "5s",
            "--set",
            "events_per_response=1",
            "--set",
            "unknown_topic=permission_denied",
        ]);
        let settings = settings(&args).unwrap();
        assert_eq!(settings.keepalive_ms, 5_000);
        assert_eq!(settings.events_per_response, Some(1));
        for wrong in ["keepalive", "no_such=1", "keepalive_ms=soon"] {
            let args = super::tests::args(&["--set", wrong]);
            let error = super::settings(&args).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn the_block_can_be_pasted_into_a_shell() {
        let args = args(&["--client-secret", "it's"]);
        let text = block(&endpoints(), &variables(&args, &endpoints()));
        assert!(
            text.contains("export SALESFORCE_PUBSUB_ENDPOINT=http://127.0.0.1:1\n"),
            "{text}"
        );
        assert!(
            text.contains("export SALESFORCE_CLIENT_SECRET='it'\\''s'\n"),
            "{text}"
        );
    }

    #[test]
    fn with_a_key_it_signs_in_by_jwt_and_with_a_ca_it_is_trusted() {
        let args = args(&["--generate-key", "/k.pem", "--ca-out", "/ca.pem"]);
        let variables = variables(&args, &endpoints());
        let names: Vec<&str> = variables.iter().map(|(name, _)| *name).collect();
        assert!(names.contains(&"SALESFORCE_PRIVATE_KEY_FILE"));
        assert!(names.contains(&"SALESFORCE_CA_FILE"));
        assert!(!names.contains(&"SALESFORCE_CLIENT_SECRET"));
    }
}
