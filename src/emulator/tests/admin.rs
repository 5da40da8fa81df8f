use super::*;

async fn post(org: &Org, path: &str, body: Value) -> (u16, Value) {
    let url = format!("{}{path}", org.emulator.admin_url());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    // Without a content type, as `curl -d` without further options does not name JSON either.
    let answer = client
        .post(url)
        .body(body.to_string())
        .send()
        .await
        .unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn get(org: &Org, path: &str) -> Value {
    let url = format!("{}{path}", org.emulator.admin_url());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    client.get(url).send().await.unwrap().json().await.unwrap()
}

#[tokio::test]
async fn events_schemas_faults_and_settings_are_reached_over_http() {
    let org = Org::start().await;
    let events = json!({"topic": ORDERS, "events": [{"Number__c": "1"}], "ids": ["my-id"]});
    let (status, answer) = post(&org, "/publish", events).await;
    assert_eq!((status, &answer["events"][0]["id"]), (200, &json!("my-id")));
    let schema: Value = serde_json::from_str(&order_schema().replace("Order__e", "B__e")).unwrap();
    let added = json!({"topic": "/event/B__e", "schema": schema});
    assert_eq!(
        post(&org, "/schemas", added).await.1["schema_id"]
            .as_str()
            .unwrap()
            .len(),
        22
    );
    let broken = json!({"schema": "not json", "schema_id": "broken"});
    assert_eq!(post(&org, "/schemas", broken).await.0, 200);
    let raw = json!({"topic": ORDERS, "schema_id": "broken", "payload": "AQI="});
    assert_eq!(post(&org, "/raw", raw).await.0, 200);
    let captured = json!({"topic": ACCOUNTS, "response": {"events": [
        {"event": {"id": "c", "schemaId": "s", "payload": "AQI="}}]}});
    assert_eq!(
        post(&org, "/captured", captured).await.1["events"][0]["id"],
        "c"
    );
    let fault = json!({"rpc": "GetTopic", "kind": "error", "code": "topic.api.unavailable"});
    assert_eq!(post(&org, "/faults", fault).await.0, 200);
    assert_eq!(get(&org, "/faults").await[0]["kind"], "error");
    let (_, settings) = post(&org, "/settings", json!({"keepalive_ms": 70})).await;
    assert_eq!(settings, get(&org, "/settings").await);
    assert_eq!(org.emulator.settings().keepalive_ms, 70);
    assert_eq!(
        post(&org, "/clock", json!({"advance_ms": 500})).await.1["offset_ms"],
        500
    );
    assert_eq!(
        post(&org, "/clock", json!({"advance_ms": 500})).await.1["offset_ms"],
        1000
    );
    let state = get(&org, "/state").await;
    assert_eq!(
        (&state["events"], &state["clock_offset_ms"]),
        (&json!(3), &json!(1000))
    );
    assert_eq!(
        get(&org, "/").await["org_id"],
        org.emulator.org_id().as_str()
    );
    for path in [
        "/bus/reset",
        "/bus/expire",
        "/tokens/expire",
        "/tokens/revoke",
    ] {
        assert_eq!(post(&org, path, json!({})).await.0, 200, "{path}");
    }
    assert_eq!(get(&org, "/state").await["live_tokens"], 0);
}

#[tokio::test]
async fn what_cannot_be_done_is_answered_with_the_reason() {
    let org = Org::start().await;
    for (path, body, reason) in [
        (
            "/publish",
            json!({"topic": "/event/None__e", "events": [{}]}),
            "no topic",
        ),
        (
            "/publish",
            json!({"topic": ORDERS, "events": [{"X__c": 1}]}),
            "event 0: ",
        ),
        (
            "/publish",
            json!({"topic": ORDERS, "event": {}}),
            "unknown field",
        ),
        (
            "/publish",
            json!({"topic": "/data/ChangeEvents", "events": [{}]}),
            "not the full name",
        ),
        (
            "/schemas",
            json!({"topic": ORDERS, "schema": "{"}),
            "schema_id",
        ),
        (
            "/faults",
            json!({"rpc": "Nothing", "kind": "error"}),
            "Nothing",
        ),
        ("/settings", json!({"keepalive": 1}), "keepalive"),
        ("/bus/expire", json!({"replay_id": "zz"}), "replay ID"),
        ("/clock", json!({"offset_ms": i64::MAX}), "50 years"),
        ("/clock", json!({"advance_ms": i64::MIN}), "50 years"),
    ] {
        let (status, answer) = post(&org, path, body).await;
        let error = answer["error"].as_str().unwrap();
        assert!(status == 400 && error.contains(reason), "{path}: {error}");
    }
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_names_it() {
    let org = Org::start().await;
    let taken = EmulatorConfig {
        pubsub_port: org.emulator.pubsub_addr().port(),
        ..EmulatorConfig::default()
    };
    let error = Emulator::start(taken).await.unwrap_err().to_string();
    assert!(error.contains(&org.emulator.pubsub_addr().to_string()));
    org.emulator.stop().await;
}

#[tokio::test]
async fn many_events_are_made_of_a_few_payloads_in_turn() {
    let org = Org::start().await;
    let many = json!({"topic": ORDERS, "schema_id": "s", "payloads": ["AQI=", "AwQ="], "count": 5});
    let (status, answer) = post(&org, "/raw/many", many).await;
    assert_eq!((status, answer), (200, json!({"count": 5})));
    assert_eq!(get(&org, "/state").await["events"], 5);
    let broken = json!({"topic": ORDERS, "schema_id": "s", "payloads": ["AQI=", "?"], "count": 5});
    assert_eq!(post(&org, "/raw/many", broken).await.0, 400);
    assert_eq!(get(&org, "/state").await["events"], 5);
}
