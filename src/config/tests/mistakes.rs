//! Mistakes people make, and what they are told.

use super::{Pairs, env, load_env, load_text, signed_in, subscription};

/// A bad text, and for each problem the line (0 for none), the key and a part of the message.
type Case<'a> = (String, &'a [(usize, &'a str, &'a str)]);

#[test]
fn each_mistake_is_named_with_its_line_its_key_and_a_cure() {
    let with = |head: &str| format!("{head}\n{}", subscription(""));
    let cases: Vec<Case<'_>> = vec![
        (
            with("[salesforce]\nlogin_ulr = \"x\""),
            &[(2, "salesforce.login_ulr", "did you mean login_url?")],
        ),
        (
            with("[sales]\n"),
            &[(1, "sales", "unknown key; known here: log_samples")],
        ),
        (
            with("[store]\nmax_conections = 4"),
            &[((2), "store.max_conections", "did you mean max_connections?")],
        ),
        (
            with("[store]\nmax_connections = 0"),
            &[(
                (2),
                "store.max_connections",
                "`0`: expected a whole number from 2 to 100",
            )],
        ),
        (
            with("[store]\nlease = \"1s\""),
            &[(2, "store.lease", "between 2s and 5m")],
        ),
        (
            with("[store]\nurl = \"mysql://u:p@h/db\""),
            &[(2, "store.url", "postgres:// or sqlite://")],
        ),
        (
            with("[store]\nencryption_key = \"short\""),
            &[(2, "store.encryption_key", "shorter than 32")],
        ),
        (
            with("[salesforce]\nlogin_url = \"http://login.salesforce.com\""),
            &[((2), "salesforce.login_url", "only for a loopback address")],
        ),
        (
            with("[salesforce]\npubsub_endpoint = \"http://10.0.0.1:7011\""),
            &[(
                (2),
                "salesforce.pubsub_endpoint",
                "only for a loopback address",
            )],
        ),
        (
            with("[salesforce]\nlogin_url = \"https://acme.lightning.force.com\""),
            &[(2, "salesforce.login_url", "My Domain")],
        ),
        (
            with("[salesforce]\nauth = \"jwtt\""),
            &[(2, "salesforce.auth", "did you mean jwt?")],
        ),
        (
            with("[salesforce]\nauth = \"client_credentials\""),
            &[
                ((1), "salesforce.client_secret", "SALESFORCE_CLIENT_SECRET"),
                (1, "salesforce.login_url", "My Domain"),
            ],
        ),
        (
            with("[salesforce]\nprivate_key_file = \"/no/such.pem\""),
            &[(2, "salesforce.private_key_file", "cannot be read")],
        ),
        (
            with("[salesforce]\nprivate_key = \"x\"\nprivate_key_file = \"y\""),
            &[(
                (3),
                "salesforce.private_key_file",
                "take one of the two away",
            )],
        ),
        (
            with(
                "[salesforce]\nclient_secret = \"x\"\nrefresh_token = \"y\"\naccess_token = \"z\"",
            ),
            &[(1, "salesforce.auth", "refresh_token or access_token")],
        ),
        (
            with(
                "[salesforce]\nauth = \"refresh_token\"\nclient_id = \"i\"\nrefresh_token = \"r\"",
            ),
            &[(0, "store.encryption_key", "openssl rand -hex 32")],
        ),
        (
            with("[salesforce]\nca_file = \"/no/ca.pem\""),
            &[(2, "salesforce.ca_file", "cannot be read")],
        ),
        (
            with("[salesforce]\nsilence_limit = \"5\""),
            &[(2, "salesforce.silence_limit", "with its unit")],
        ),
        (
            with("[salesforce]\nlimits_interval = \"1h\""),
            &[(2, "salesforce.limits_interval", "longer than 15m")],
        ),
        (
            with("[salesforce]\nping_interval = \"0s\""),
            &[(2, "salesforce.ping_interval", "longer than zero")],
        ),
        (
            with("[salesforce]\nreconnect = { initial = \"2m\", max = \"1m\" }"),
            &[(2, "salesforce.reconnect.max", "shorter than initial")],
        ),
        (
            with("[salesforce]\nclient_id = \"${NOT_SET}\""),
            &[(2, "salesforce.client_id", "NOT_SET is not set")],
        ),
        (
            with("[salesforce]\nusername = 5.5"),
            &[(
                2,
                "salesforce.username",
                "expected a string, not a number with a fraction",
            )],
        ),
        (
            with("metrics_addr = \"9090\""),
            &[(1, "metrics_addr", "an IP address and a port")],
        ),
        (
            subscription("topic2 = \"x\""),
            &[(4, "subscription.topic2", "did you mean topic?")],
        ),
        (
            subscription("").replace("Order__e", "/topic/X"),
            &[(3, "subscription.topic", "is not a topic")],
        ),
        (
            subscription("").replace("\"a\"", "\"A b\""),
            &[(2, "subscription.name", "lower-case letters")],
        ),
        (
            subscription("").replace("name = \"a\"", ""),
            &[(1, "subscription.name", "for example \"order\"")],
        ),
        (
            subscription("").replace("topic = \"Order__e\"", ""),
            &[(1, "subscription.topic", "is missing")],
        ),
        (
            subscription("start = \"erliest\""),
            &[(4, "subscription.start", "replay ID in hexadecimal")],
        ),
        (
            subscription("concurrency = 257"),
            &[(4, "subscription.concurrency", "from 1 to 256")],
        ),
        (
            subscription("max_in_flight = 0"),
            &[(4, "subscription.max_in_flight", "from 1 to")],
        ),
        (
            subscription("max_in_flight_bytes = \"1KiB\""),
            &[((4), "subscription.max_in_flight_bytes", "at least 64KiB")],
        ),
        (
            subscription("key = \"X\"").replace("Order__e", "Account"),
            &[(4, "subscription.key", "record ID")],
        ),
        (
            subscription("group = \"transactions\"").replace("Order__e", "Account"),
            &[(4, "subscription.group", "did you mean transaction?")],
        ),
        (
            subscription("group = \"transaction\""),
            &[(4, "subscription.group", "name no transaction")],
        ),
        (
            subscription("group = \"transaction\"\ngroup_max_events = 976")
                .replace("Order__e", "Account"),
            &[(5, "subscription.group_max_events", "at most 975 do")],
        ),
        (
            subscription("group = \"transaction\"\nmax_in_flight = 1")
                .replace("Order__e", "Account"),
            &[(5, "subscription.max_in_flight", "at most 0 do")],
        ),
        (
            subscription("ordering = \"strict\"") + "on_exhausted = \"park\"",
            &[(7, "subscription.handler.on_exhausted", "\"stop\"")],
        ),
        (
            subscription("") + "retry = { atempts = 3 }",
            &[(
                (7),
                "subscription.handler.retry.atempts",
                "did you mean attempts?",
            )],
        ),
        (
            subscription("") + "retry = 5",
            &[(7, "subscription.handler.retry", "expected a table")],
        ),
        (
            subscription("").replace("type = \"log\"", ""),
            &[(5, "subscription.handler.type", "is missing")],
        ),
        (
            subscription("") + "[[subscription.handler]]\ntype = \"log\"",
            &[(7, "subscription.handler.name", "taken already")],
        ),
        (
            subscription("") + "headers = { X = \"${NOT_SET}\" }",
            &[(7, "subscription.handler.headers.X", "NOT_SET")],
        ),
        (
            subscription("").replace("[[subscription.handler]]\ntype = \"log\"", ""),
            &[(1, "subscription.handler", "[[subscription.handler]]")],
        ),
        (
            subscription("") + &subscription(""),
            &[(8, "subscription.name", "taken already, at")],
        ),
        (
            subscription("").replace("\"a\"", "\"\""),
            &[(2, "subscription.name", "is missing")],
        ),
        (
            subscription("").replace("Order__e", "${NOT_SET:-}"),
            &[(3, "subscription.topic", "is missing")],
        ),
        (
            subscription("").replace("log", " "),
            &[(6, "subscription.handler.type", "is missing")],
        ),
        (
            subscription("").replace("log", "MyType"),
            &[(5, "subscription.handler.name", "cannot stand for it")],
        ),
        (
            "subscription = [1]".to_owned(),
            &[(1, "subscription", "two brackets")],
        ),
        (
            "subscription = []".to_owned(),
            &[(1, "subscription", "there is nothing to do")],
        ),
        (
            "[subscription]\nname = \"a\"".to_owned(),
            &[(1, "subscription", "two brackets")],
        ),
        (
            "schemas_dir = \"x\"".to_owned(),
            &[(0, "subscription", "there is nothing to do")],
        ),
        ("schemas_dir = \"x".to_owned(), &[(1, "", "not TOML")]),
    ];
    for (text, expected) in cases {
        let error = load_text(&text, &signed_in(&[])).expect_err(&text);
        let found: Vec<_> = error
            .problems()
            .iter()
            .map(|problem| {
                let key = problem.place.key.as_deref().unwrap_or("");
                (
                    problem.place.line.unwrap_or(0),
                    key,
                    problem.message.as_str(),
                )
            })
            .collect();
        assert_eq!(found.len(), expected.len(), "{text}\n{error}");
        for ((line, key, message), (want_line, want_key, part)) in found.iter().zip(expected) {
            assert_eq!((line, key), (want_line, want_key), "{text}\n{error}");
            assert!(message.contains(part), "{text}\n{error}");
        }
    }
}

#[test]
fn with_nothing_to_sign_in_with_all_ways_are_named() {
    let error = load_text(&subscription(""), &env(&[])).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.problems().len(), 1, "{text}");
    for part in [
        "nothing to sign in with",
        "jwt",
        "client_credentials",
        "refresh_token",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn bad_variables_are_named_and_their_values_are_not_repeated() {
    let cases: [(Pairs<'_>, &str, &str); 9] = [
        (
            &[("SALESFORCE_LOGIN_URL", "http://x/hunter2")],
            "SALESFORCE_LOGIN_URL",
            "expected https://",
        ),
        (
            &[("SF_LOGIN_URL", "ftp://hunter2")],
            "SF_LOGIN_URL",
            "expected https://",
        ),
        (
            &[("SFDC_SILENCE_LIMIT", "hunter2")],
            "SFDC_SILENCE_LIMIT",
            "with its unit",
        ),
        (
            &[("SALESFORCE_RECONNECT_MAX", "hunter2")],
            "SALESFORCE_RECONNECT_MAX",
            "with its unit",
        ),
        (
            &[("DATABASE_URL", "mysql://hunter2")],
            "DATABASE_URL",
            "postgres://",
        ),
        (&[("DYNO", "worker.1")], "DATABASE_URL", "heroku-postgresql"),
        (
            &[("ORGSTREAM_ENCRYPTION_KEY", "hunter2")],
            "ORGSTREAM_ENCRYPTION_KEY",
            "openssl rand",
        ),
        (
            &[("ORGSTREAM_METRICS_ADDR", "hunter2")],
            "ORGSTREAM_METRICS_ADDR",
            "IP address",
        ),
        (
            &[
                ("SALESFORCE_PRIVATE_KEY_FILE", "/no/hunter2"),
                ("SALESFORCE_PRIVATE_KEY", ""),
            ],
            "SALESFORCE_PRIVATE_KEY_FILE",
            "cannot be read",
        ),
    ];
    for (pairs, source, part) in cases {
        let mut env = signed_in(&[("ORGSTREAM_TOPICS", "Account")]);
        env.extend(self::env(pairs));
        let error = load_env(&env).unwrap_err();
        assert_eq!(error.problems().len(), 1, "{error}");
        let text = error.to_string();
        assert!(text.starts_with(source) && text.contains(part), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}
