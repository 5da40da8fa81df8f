//! The public npm client `salesforce-pubsub-api-client`, unmodified, against the emulator.
//!
//! Needs Node and `npm install` in `tests/clients/node`, which `scripts/test` runs; without them the
//! tests say so and pass, unless `ORGSTREAM_REQUIRE_NODE` is set.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use orgstream::avro::Schema;
use orgstream::emulator::{
    DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, DEFAULT_USERNAME, Emulator, EmulatorConfig,
    SigningKey, sample,
};
use serde_json::{Value, json};

use crate::support::{Daemon, Store};

fn client_folder() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/node");
    let installed = folder.join("node_modules/salesforce-pubsub-api-client");
    if installed.is_dir() {
        return Some(folder);
    }
    assert!(
        std::env::var_os("ORGSTREAM_REQUIRE_NODE").is_none(),
        "run `npm install` in {}",
        folder.display()
    );
    println!("skipped: no npm client in {}", folder.display());
    None
}

struct Org {
    emulator: Emulator,
    folder: PathBuf,
    ca_file: tempfile::NamedTempFile,
    key: SigningKey,
}

impl Org {
    async fn start() -> Option<Self> {
        let folder = client_folder()?;
        let key = SigningKey::generate().unwrap();
        let mut config = EmulatorConfig {
            tls: true,
            ..EmulatorConfig::default()
        };
        config.apps[0].public_keys = vec![key.public_pem.clone()];
        let emulator = Emulator::start(config).await.unwrap();
        sample::add_topics(&emulator).unwrap();
        let ca_file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(ca_file.path(), emulator.ca_pem().unwrap()).unwrap();
        Some(Self {
            emulator,
            folder,
            ca_file,
            key,
        })
    }

    /// Runs `check.mjs` with these arguments and sign-in variables; its output, one value a line.
    async fn node(&self, args: &[&str], sign_in: &[(&str, &str)]) -> Vec<Value> {
        let mut command = Command::new("node");
        command
            .arg("check.mjs")
            .args(args)
            .current_dir(&self.folder)
            .env("LOGIN_URL", self.emulator.login_url())
            .env("PUBSUB_ENDPOINT", self.emulator.pubsub_addr().to_string())
            .env("NODE_EXTRA_CA_CERTS", self.ca_file.path())
            .env("CLIENT_ID", DEFAULT_CLIENT_ID)
            .env_remove("http_proxy")
            .env_remove("https_proxy")
            .envs(sign_in.iter().copied())
            .stdin(Stdio::null());
        // Blocking, beside the emulator that answers it; check.mjs ends itself after 30 s.
        let output = tokio::task::spawn_blocking(move || command.output());
        let output = output.await.unwrap().expect("node runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

const SECRET: [(&str, &str); 1] = [("CLIENT_SECRET", DEFAULT_CLIENT_SECRET)];

/// The first 8 bytes of a replay ID as the client prints it.
fn number(replay_id: &str) -> u64 {
    u64::from_str_radix(&replay_id[..16], 16).unwrap()
}

#[tokio::test]
async fn it_signs_in_in_each_way_and_reads_every_order_past_its_first_hundreds() {
    let Some(org) = Org::start().await else {
        return;
    };
    let published: Vec<_> = (0..250)
        .map(|n| {
            let fields =
                json!({"OrderNumber__c": format!("O-{n}"), "Amount__c": f64::from(n) / 4.0});
            let event = org
                .emulator
                .publish(sample::ORDERS, fields.clone())
                .unwrap();
            (event, fields)
        })
        .collect();
    let check = |events: &[Value], from: usize| {
        assert_eq!(events.len(), published.len() - from);
        for (event, (published, fields)) in events.iter().zip(&published[from..]) {
            assert_eq!(event["id"], published.id);
            assert_eq!(event["replayId"], number(&published.replay_id));
            for (name, value) in fields.as_object().unwrap() {
                assert_eq!(event["payload"][name].as_f64(), value.as_f64(), "{name}");
                assert_eq!(event["payload"][name].as_str(), value.as_str(), "{name}");
            }
        }
    };
    let earliest = ["subscribe", sample::ORDERS, "250"];
    check(&org.node(&earliest, &SECRET).await, 0);
    let stored = number(&published[99].0.replay_id).to_string();
    let resumed = ["subscribe", sample::ORDERS, "150", &stored];
    let jwt = [
        ("USERNAME", DEFAULT_USERNAME),
        ("PRIVATE_KEY", &org.key.private_pem),
    ];
    check(&org.node(&resumed, &jwt).await, 100);
    let token = org.emulator.issue_token();
    let ready = [
        ("ACCESS_TOKEN", token.as_str()),
        ("INSTANCE_URL", org.emulator.instance_url()),
    ];
    check(&org.node(&resumed, &ready).await, 100);
}

#[tokio::test]
async fn it_decodes_change_events_of_a_channel_with_their_changed_fields() {
    let Some(org) = Org::start().await else {
        return;
    };
    let account = "0015g0000000001AAA";
    let fields = json!({
        "ChangeEventHeader": {"recordIds": [account]},
        "BillingAddress": {"Street": "1 Mill Lane", "City": "Ghent"},
        "Phone": "+351 555 0100",
        "Website": null,
    });
    org.emulator.publish(sample::ACCOUNTS, fields).unwrap();
    let contact = json!({"ChangeEventHeader": {"changeType": "CREATE"}, "Email": "a@example.com"});
    org.emulator.publish(sample::CONTACTS, contact).unwrap();
    let events = org
        .node(&["subscribe", "/data/ChangeEvents", "2"], &SECRET)
        .await;
    let payload = &events[0]["payload"];
    let header = &payload["ChangeEventHeader"];
    assert_eq!(header["entityName"], "Account");
    assert_eq!(header["recordIds"], json!([account]));
    let mut changed: Vec<_> = header["changedFields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    changed.sort_unstable();
    let expected = [
        "BillingAddress.City",
        "BillingAddress.Street",
        "LastModifiedDate",
        "Phone",
        "Website",
    ];
    assert_eq!(changed, expected);
    assert_eq!(header["nulledFields"], json!(["Website"]));
    // Beyond 2^53, which the client keeps as a whole number of its own.
    assert!(
        header["commitNumber"]
            .as_str()
            .unwrap()
            .parse::<i64>()
            .unwrap()
            > 1 << 53
    );
    assert_eq!(payload["Phone"], "+351 555 0100");
    assert_eq!(
        events[1]["payload"]["ChangeEventHeader"]["changeType"],
        "CREATE"
    );
    assert_eq!(events[1]["payload"]["Email"], "a@example.com");
}

#[tokio::test]
async fn what_it_publishes_is_on_the_bus_with_the_values_it_sent() {
    let Some(org) = Org::start().await else {
        return;
    };
    let order = |n: u32| {
        json!({
            "CreatedDate": 1_700_000_000_000_i64,
            "CreatedById": "0055g000004emu1AAA",
            "OrderNumber__c": {"string": format!("N-{n}")},
            "Status__c": null,
            "City__c": null,
            "Amount__c": {"double": 12.5},
            "Placed__c": null,
            "Express__c": null,
        })
        .to_string()
    };
    let orders = [order(1), order(2)];
    let args = ["publish", sample::ORDERS, &orders[0], &orders[1]];
    let results = org.node(&args, &SECRET).await;
    assert_eq!(results.len(), 2);
    let events = org.node(&["subscribe", sample::ORDERS, "2"], &SECRET).await;
    for (index, (event, result)) in events.iter().zip(&results).enumerate() {
        assert_eq!(event["replayId"], result["replayId"]);
        assert_eq!(event["id"], result["correlationKey"]);
        let number = format!("N-{}", index + 1);
        assert_eq!(event["payload"]["OrderNumber__c"], number);
        assert_eq!(event["payload"]["Amount__c"], 12.5);
    }
    let (_, schema) = sample::SCHEMAS[3];
    let id = Schema::parse(schema).unwrap().fingerprint();
    assert_eq!(events[0]["schemaId"], id.as_str());
}

#[tokio::test]
async fn what_it_publishes_the_daemon_receives_over_tls_and_signed_in_by_jwt() {
    let Some(org) = Org::start().await else {
        return;
    };
    let store = Store::sqlite();
    let key_file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key_file.path(), &org.key.private_pem).unwrap();
    let config = format!(
        "[salesforce]\nlogin_url = \"{}\"\npubsub_endpoint = \"{}\"\nca_file = \"{}\"\nauth = \"jwt\"\n\
         client_id = \"{DEFAULT_CLIENT_ID}\"\nusername = \"{DEFAULT_USERNAME}\"\nprivate_key_file = \"{}\"\n\
         [store]\nurl = \"{}\"\n[[subscription]]\nname = \"orders\"\ntopic = \"Order__e\"\n\
         start = \"earliest\"\n[[subscription.handler]]\nname = \"out\"\ntype = \"log\"\n",
        org.emulator.login_url(),
        org.emulator.pubsub_url(),
        org.ca_file.path().display(),
        key_file.path().display(),
        store.url,
    );
    let mut daemon = Daemon::run(&config);
    daemon.logged(&["stream open"]).await;
    let order = json!({
        "CreatedDate": 1_700_000_000_000_i64,
        "CreatedById": "0055g000004emu1AAA",
        "OrderNumber__c": {"string": "N-1"},
        "Status__c": null,
        "City__c": null,
        "Amount__c": {"double": 12.5},
        "Placed__c": null,
        "Express__c": {"boolean": true},
    });
    let args = ["publish", sample::ORDERS, &order.to_string()];
    let results = org.node(&args, &SECRET).await;
    let events = daemon.handled(1).await;
    assert_eq!(events[0]["eventuuid"], results[0]["correlationKey"]);
    assert_eq!(
        events[0]["data"],
        json!({
            "CreatedDate": 1_700_000_000_000_i64,
            "CreatedById": "0055g000004emu1AAA",
            "OrderNumber__c": "N-1",
            "Amount__c": 12.5,
            "Express__c": true,
        })
    );
    assert_eq!(daemon.stop().await.1, 0);
}
