//! The loader as a whole. What is refused, and with which words, is in [`mistakes`].

mod documents;
mod mistakes;
mod reference;
mod shaping;
mod telemetry;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use secrecy::ExposeSecret;

use super::load::load_in;
use super::*;

/// Stands for a value that must never be seen.
const SECRET: &str = "hunter2-hunter2-hunter2-hunter2-hunter2";

/// Names and values of variables.
type Pairs<'a> = &'a [(&'a str, &'a str)];

fn env(pairs: Pairs<'_>) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// Variables that sign in, beside others.
fn signed_in(pairs: Pairs<'_>) -> BTreeMap<String, String> {
    let mut all = env(&[
        ("SALESFORCE_CLIENT_ID", "3MVG9"),
        ("SALESFORCE_USERNAME", "daemon@example.com"),
        ("SALESFORCE_PRIVATE_KEY", SECRET),
    ]);
    all.extend(env(pairs));
    all
}

/// Loads a text as `orgstream.toml` of a directory of its own.
fn load_text(text: &str, env: &dyn Env) -> Result<Loaded, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("orgstream.toml"), text).unwrap();
    load_in(
        directory.path(),
        None,
        Subscriptions::Required,
        env,
        &Checks::NONE,
    )
}

fn load_env(env: &dyn Env) -> Result<Loaded, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    load_in(
        directory.path(),
        None,
        Subscriptions::Required,
        env,
        &Checks::NONE,
    )
}

/// A minimal subscription, with more lines for it.
fn subscription(more: &str) -> String {
    format!(
        "[[subscription]]\nname = \"a\"\ntopic = \"Order__e\"\n{more}\n[[subscription.handler]]\ntype = \"log\"\n"
    )
}

/// The design's own sample (section 4.2).
const SAMPLE: &str = r#"
[salesforce]
login_url = "https://login.salesforce.com"
auth = "jwt"
client_id = "${SALESFORCE_CLIENT_ID}"
username = "${SALESFORCE_USERNAME}"
private_key = "${SALESFORCE_PRIVATE_KEY}"
pubsub_endpoint = "https://api.pubsub.salesforce.com:7443"

[store]
url = "${DATABASE_URL:-sqlite://orgstream.db}"
max_connections = 4

[[subscription]]
name = "orders"
topic = "/event/Order__e"
start = "latest"
on_expired_replay_id = "earliest"
ordering = "record"
key = "OrderNumber__c"
concurrency = 8
max_in_flight = 1000
max_in_flight_bytes = "32MiB"

[[subscription.handler]]
name = "fulfilment"
type = "webhook"
url = "https://example.com/salesforce"
retry = { attempts = 8, initial = "500ms", max = "1m", total = "12h" }
on_exhausted = "park"
"#;

#[test]
fn the_sample_of_the_design_is_read_as_it_is_meant() {
    let loaded = load_text(SAMPLE, &signed_in(&[])).unwrap();
    assert_eq!(loaded.warnings, []);
    let config = loaded.config;
    let AuthConfig::Jwt {
        client_id,
        username,
        private_key,
        audience,
    } = &config.salesforce.auth
    else {
        panic!("{:?}", config.salesforce);
    };
    assert_eq!(
        (client_id.as_str(), username.as_str(), audience),
        ("3MVG9", "daemon@example.com", &None)
    );
    assert_eq!(private_key.expose_secret(), SECRET);
    assert_eq!(config.store.url.expose_secret(), "sqlite://orgstream.db");
    let one = &config.subscriptions[0];
    assert_eq!(one.topic.as_str(), "/event/Order__e");
    assert_eq!((one.concurrency, one.max_in_flight), (8, 1000));
    assert_eq!(one.max_in_flight_bytes, 32 << 20);
    assert!(one.start_is_explicit);
    let handler = &one.handlers[0];
    assert_eq!(
        (handler.name.as_str(), handler.kind.as_str()),
        ("fulfilment", "webhook")
    );
    assert_eq!(handler.retry, RetryConfig::default());
    assert_eq!(
        handler.options["url"].as_str(),
        Some("https://example.com/salesforce")
    );
    assert_eq!(handler.options.len(), 1);
}

#[test]
fn the_environment_alone_is_enough() {
    let loaded = load_env(&signed_in(&[(
        "ORGSTREAM_TOPICS",
        "/data/AccountChangeEvent, /event/Order__e\nbig=/data/ChangeEvents",
    )]))
    .unwrap();
    assert_eq!(loaded.origin, Origin::Environment);
    let names: Vec<(&str, &str)> = loaded
        .config
        .subscriptions
        .iter()
        .map(|one| (one.name.as_str(), one.topic.as_str()))
        .collect();
    assert_eq!(
        names,
        [
            ("account", "/data/AccountChangeEvent"),
            ("order", "/event/Order__e"),
            ("big", "/data/ChangeEvents"),
        ]
    );
    assert!(loaded.config.subscriptions.iter().all(|one| {
        one.handlers.len() == 1 && one.handlers[0].kind == "log" && !one.start_is_explicit
    }));
    assert_eq!(loaded.config.schemas_dir, Path::new("schemas"));
}

#[test]
fn the_configuration_is_found_where_it_is_said_to_be() {
    let directory = tempfile::tempdir().unwrap();
    let find = |path: Option<&str>, env: &dyn Env| {
        load_in(
            directory.path(),
            path.map(Path::new),
            Subscriptions::Required,
            env,
            &Checks::NONE,
        )
        .map(|loaded| loaded.config.subscriptions[0].name.clone())
    };
    let named = |name: &str| subscription("").replace("\"a\"", &format!("\"{name}\""));
    let none = signed_in(&[("ORGSTREAM_TOPICS", "env=Order__e")]);
    assert_eq!(find(None, &none).unwrap(), "env");
    fs::write(directory.path().join("orgstream.toml"), named("here")).unwrap();
    assert_eq!(find(None, &none).unwrap(), "here");
    fs::write(directory.path().join("other=.toml"), named("variable-path")).unwrap();
    let by_path = signed_in(&[("ORGSTREAM_CONFIG", "other=.toml")]);
    assert_eq!(find(None, &by_path).unwrap(), "variable-path");
    let text = named("variable-text");
    let by_text = signed_in(&[("ORGSTREAM_CONFIG", text.as_str())]);
    assert_eq!(find(None, &by_text).unwrap(), "variable-text");
    fs::write(directory.path().join("flag.toml"), named("flag")).unwrap();
    assert_eq!(find(Some("flag.toml"), &by_text).unwrap(), "flag");
    assert!(matches!(
        find(Some("gone.toml"), &by_text),
        Err(ConfigError::Unreadable {
            named_by: "--config",
            ..
        })
    ));
    assert!(matches!(
        find(None, &signed_in(&[("ORGSTREAM_CONFIG", "gone.toml")])),
        Err(ConfigError::Unreadable {
            named_by: "ORGSTREAM_CONFIG",
            ..
        })
    ));
}

#[test]
fn no_configuration_says_what_to_write() {
    let error = load_env(&signed_in(&[])).unwrap_err();
    assert!(matches!(error, ConfigError::Missing { .. }));
    let text = error.to_string();
    for part in ["orgstream.toml", "--config", "ORGSTREAM_TOPICS"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn everything_wrong_is_reported_in_one_go() {
    let text = "[salesforce]\nauth = \"refresh_token\"\nsilence_limit = \"x\"\n[store]\nurl = \"x\"\n\
                [[subscription]]\nname = \"A\"\ntopic = \"/x\"\nconcurrency = 0\n";
    let error = load_text(text, &env(&[])).unwrap_err();
    let keys: Vec<&str> = error
        .problems()
        .iter()
        .filter_map(|problem| problem.place.key.as_deref())
        .collect();
    assert_eq!(
        keys,
        [
            "salesforce.client_id",
            "salesforce.refresh_token",
            "salesforce.silence_limit",
            "store.url",
            "subscription.handler",
            "subscription.name",
            "subscription.topic",
            "subscription.concurrency",
        ]
    );
    assert!(
        error
            .to_string()
            .starts_with("8 problems in the configuration:\n")
    );
}

#[test]
fn short_of_credentials_every_missing_variable_is_named() {
    let env = env(&[
        ("ORGSTREAM_TOPICS", "Account"),
        ("SALESFORCE_AUTH", "jwt"),
        ("SALESFORCE_USERNAME", "  "),
    ]);
    let text = load_env(&env).unwrap_err().to_string();
    for name in ["CLIENT_ID", "USERNAME", "PRIVATE_KEY"] {
        assert!(
            text.contains(&format!("SALESFORCE_{name}: is not set")),
            "{text}"
        );
    }
}

#[test]
fn the_way_to_sign_in_follows_from_the_credentials_given() {
    let my_domain = ("SALESFORCE_LOGIN_URL", "https://acme.my.salesforce.com");
    let cases: [(Pairs<'_>, &str); 6] = [
        (
            &[
                ("SF_PRIVATE_KEY", "k"),
                ("SF_USERNAME", "u"),
                ("SF_CLIENT_ID", "i"),
            ],
            "Jwt",
        ),
        (
            &[
                ("SFDC_CLIENT_SECRET", "s"),
                ("SFDC_CLIENT_ID", "i"),
                my_domain,
            ],
            "ClientCredentials",
        ),
        (
            &[
                ("SALESFORCE_REFRESH_TOKEN", "r"),
                ("SALESFORCE_CLIENT_ID", "i"),
            ],
            "RefreshToken",
        ),
        (
            &[
                ("SALESFORCE_REFRESH_TOKEN", "r"),
                ("SALESFORCE_CLIENT_SECRET", "s"),
                ("SALESFORCE_CLIENT_ID", "i"),
            ],
            "RefreshToken",
        ),
        (
            &[
                ("SALESFORCE_ACCESS_TOKEN", "t"),
                ("SALESFORCE_INSTANCE_URL", "acme.my.salesforce.com"),
            ],
            "AccessToken",
        ),
        (
            &[
                ("SALESFORCE_AUTH", "access_token"),
                ("SALESFORCE_ACCESS_TOKEN", "t"),
                ("SALESFORCE_CLIENT_SECRET", "s"),
                ("SALESFORCE_INSTANCE_URL", "http://127.0.0.1:1"),
                ("SALESFORCE_ORG_ID", "00D58000000arpq"),
            ],
            "AccessToken",
        ),
    ];
    for (pairs, variant) in cases {
        let mut env = env(&[
            ("ORGSTREAM_TOPICS", "Account"),
            ("ORGSTREAM_ENCRYPTION_KEY", SECRET),
        ]);
        env.extend(self::env(pairs));
        let auth = load_env(&env).unwrap().config.salesforce.auth;
        assert!(format!("{auth:?}").starts_with(variant), "{auth:?}");
    }
}

#[test]
fn a_refresh_token_wants_a_key_to_keep_the_next_one_with() {
    let env = env(&[
        ("ORGSTREAM_TOPICS", "Account"),
        ("SALESFORCE_REFRESH_TOKEN", "r"),
        ("SALESFORCE_CLIENT_ID", "i"),
    ]);
    let text = load_env(&env).unwrap_err().to_string();
    assert!(
        text.contains("ORGSTREAM_ENCRYPTION_KEY: is not set"),
        "{text}"
    );
    assert!(text.contains("openssl rand -hex 32"), "{text}");
}

#[test]
fn what_the_file_says_counts_before_the_environment() {
    let text =
        "[salesforce]\naccess_token = \"t\"\ninstance_url = \"https://a.my.salesforce.com\"\n\
                silence_limit = \"2s\"\npubsub_endpoint = \"http://localhost:1\"\n"
            .to_owned()
            + &subscription("");
    let env = signed_in(&[
        ("SALESFORCE_SILENCE_LIMIT", "9s"),
        ("SALESFORCE_PING_INTERVAL", "250ms"),
        ("ORGSTREAM_TOPICS", "Account"),
    ]);
    let loaded = load_text(&text, &env).unwrap();
    let salesforce = &loaded.config.salesforce;
    assert!(matches!(salesforce.auth, AuthConfig::AccessToken { .. }));
    assert_eq!(salesforce.silence_limit, Duration::from_secs(2));
    assert_eq!(salesforce.ping_interval, Duration::from_millis(250));
    assert_eq!(loaded.config.subscriptions.len(), 1);
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    assert_eq!(loaded.warnings[0].place.source, "ORGSTREAM_TOPICS");
}

#[test]
fn what_probably_is_not_meant_is_a_warning() {
    let cases: [(String, Pairs<'_>, &str); 5] = [
        (
            subscription("") + &subscription("").replace("\"a\"", "\"b\""),
            &[],
            "counts twice",
        ),
        (
            subscription("").replace("Order__e", "ChangeEvents")
                + &subscription("")
                    .replace("\"a\"", "\"b\"")
                    .replace("Order__e", "Account"),
            &[],
            "/data/ChangeEvents",
        ),
        (
            subscription("ordering = \"strict\"\nconcurrency = 4"),
            &[],
            "has no effect",
        ),
        (
            subscription(""),
            &[("SALESFORCE_SILENCE_LIMIT", "60s")],
            "270 s",
        ),
        (
            subscription(""),
            &[("SF_CLIENT_ID", "another")],
            "differs from SALESFORCE_CLIENT_ID",
        ),
    ];
    for (text, pairs, part) in cases {
        let loaded = load_text(&text, &signed_in(pairs)).unwrap();
        assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
        assert!(
            loaded.warnings[0].message.contains(part),
            "{:?}",
            loaded.warnings
        );
    }
}

#[test]
fn in_strict_order_an_exhausted_event_stops_by_default() {
    let config = load_text(&subscription("ordering = \"strict\""), &signed_in(&[]))
        .unwrap()
        .config;
    assert_eq!(config.subscriptions[0].concurrency, 1);
    assert_eq!(
        config.subscriptions[0].handlers[0].on_exhausted,
        OnExhausted::Stop
    );
}

#[test]
fn the_largest_transaction_follows_what_may_be_in_flight() {
    for (more, most) in [
        ("", 500),
        ("max_in_flight = 10", 5),
        ("max_in_flight = 2", 1),
        ("max_in_flight = 100000", 1000),
        ("group_max_events = 975", 975),
    ] {
        let text = subscription(&format!("group = \"transaction\"\n{more}"));
        let loaded = load_text(&text.replace("Order__e", "Account"), &signed_in(&[])).unwrap();
        let config = &loaded.config.subscriptions[0];
        assert_eq!(config.group, Group::Transaction);
        assert_eq!(config.group_max_events, most, "{more}");
    }
}

#[test]
fn keys_and_handlers_are_checked_by_those_who_know_them() {
    let checks = Checks {
        private_key: &|text| match text {
            SECRET => Err("not an RSA key".to_owned()),
            _ => Ok(()),
        },
        handler: &|handler, _| {
            vec![HandlerProblem {
                key: handler.options.keys().next().cloned(),
                message: format!("no handler type is called {}", handler.kind),
            }]
        },
    };
    let directory = tempfile::tempdir().unwrap();
    let text = subscription("") + "colour = \"red\"";
    fs::write(directory.path().join("orgstream.toml"), text).unwrap();
    let error = load_in(
        directory.path(),
        None,
        Subscriptions::Required,
        &signed_in(&[]),
        &checks,
    )
    .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("SALESFORCE_PRIVATE_KEY: cannot be used: not an RSA key"),
        "{text}"
    );
    assert!(
        text.contains("orgstream.toml:7: subscription.handler.colour: no handler type"),
        "{text}"
    );
}

#[test]
fn commands_that_need_one_section_ask_for_no_other() {
    let text = "[salesforce]\nclient_id = \"${NOT_SET}\"\n[store]\nurl = \"postgres://h/db\"\n";
    let env = env(&[("ORGSTREAM_CONFIG", text)]);
    let store = load_store(None, &env).unwrap();
    assert_eq!(store.url.expose_secret(), "postgres://h/db");
    assert!(load_salesforce(None, &env, &Checks::NONE).is_err());

    let env = signed_in(&[("ORGSTREAM_CONFIG", "[store]\nurl = \"x\"\n")]);
    assert!(load_salesforce(None, &env, &Checks::NONE).is_ok());
    assert!(load_store(None, &env).is_err());
    let loaded = load_in(
        Path::new(""),
        None,
        Subscriptions::Optional,
        &signed_in(&[("ORGSTREAM_CONFIG", "schemas_dir = \"s\"\n")]),
        &Checks::NONE,
    )
    .unwrap();
    assert!(loaded.config.subscriptions.is_empty());
}

#[test]
fn what_is_shown_holds_no_secret_and_reads_the_same_again() {
    let text = SAMPLE.to_owned()
        + "headers = { Authorization = \"Bearer ${SALESFORCE_PRIVATE_KEY}\" }\nnote = \"a$$b\"\n";
    let env = signed_in(&[
        ("DATABASE_URL", "postgres://u:hunter2@h/db"),
        ("ORGSTREAM_ENCRYPTION_KEY", SECRET),
        ("ORGSTREAM_METRICS_ADDR", "127.0.0.1:9090"),
    ]);
    let loaded = load_text(&text, &env).unwrap();
    let shown = show(&loaded.config);
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(!format!("{:?}", loaded.config).contains("hunter2"));
    let shown = shown.replace("encryption_key = \"***\"\n", "");
    let again = load_text(&shown, &self::env(&[])).unwrap();
    assert_eq!(show(&again.config), shown);
}

proptest! {
    #[test]
    fn no_text_makes_the_loader_panic(text in "(\\[|\\]|\\{|\\}|=|\"|'|\n|\\$|salesforce|subscription|handler|name|topic|[^\\x00])*") {
        let env = env(&[("ORGSTREAM_CONFIG", &format!("\n{text}")), ("ORGSTREAM_TOPICS", &text)]);
        let _ = load_in(Path::new(""), None, Subscriptions::Required, &env, &Checks::NONE);
    }

    #[test]
    fn no_value_of_any_key_makes_the_loader_panic(
        key in "(login_url|auth|ca_file|silence_limit|pubsub_endpoint|org_id|instance_url|access_token)",
        value in "\\PC*",
        topics in "\\PC*",
    ) {
        let text = format!("salesforce.{key} = {}\n", toml::Value::String(value));
        let env = env(&[("ORGSTREAM_CONFIG", &text), ("ORGSTREAM_TOPICS", &topics)]);
        let _ = load_in(Path::new(""), None, Subscriptions::Required, &env, &Checks::NONE);
    }
}
