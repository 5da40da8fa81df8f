//! Calls with one answer, and the connection under them.

use super::*;

#[tokio::test]
async fn every_call_carries_the_session_and_a_trace_id_of_its_own() {
    let rig = rig().await;
    let info = rig.client.topic(&topic()).await.unwrap();
    assert_eq!(
        (info.can_subscribe, info.can_publish, info.schema_id),
        (true, false, None)
    );
    let json = rig.client.schema(&SchemaId::new("x")).await.unwrap();
    assert_eq!(json, "\"long\"");
    assert_eq!(rig.bus.sent("accesstoken"), ["token-1", "token-1"]);
    assert_eq!(rig.bus.sent("tenantid"), [ORG, ORG]);
    assert_eq!(
        rig.bus.sent("instanceurl")[0],
        "https://acme.my.salesforce.com"
    );
    let traces = rig.bus.sent("x-client-trace-id");
    assert_ne!(traces[0], traces[1]);
}

#[tokio::test]
async fn a_refused_token_is_replaced_and_the_call_repeated_once() {
    let rig = rig().await;
    rig.bus
        .refuse(with_code(Code::Unauthenticated, "service.auth.error"));
    rig.client.schema(&SchemaId::new("x")).await.unwrap();
    assert_eq!(rig.bus.sent("accesstoken"), ["token-1", "token-2"]);

    // Refused again, it is the caller's turn.
    for _ in 0..2 {
        rig.bus.refuse(Status::permission_denied("no"));
    }
    let error = rig.client.topic(&topic()).await.unwrap_err();
    assert_eq!(error.recovery(), Recovery::SignInAgainOnce);
    assert_eq!(rig.bus.sent("accesstoken").len(), 4);
}

#[tokio::test]
async fn a_forbidden_topic_costs_one_sign_in_until_it_is_allowed() {
    let rig = rig().await;
    let forbid = |times: usize| {
        for _ in 0..times {
            rig.bus.refuse(Status::permission_denied("no"));
        }
    };
    forbid(4);
    for _ in 0..3 {
        rig.client.topic(&topic()).await.unwrap_err();
    }
    let sent = rig.bus.sent("accesstoken");
    assert_eq!(sent, ["token-1", "token-2", "token-2", "token-2"]);

    // Another call is another matter, and so is this one after it was allowed.
    rig.client.topic(&topic()).await.unwrap();
    forbid(1);
    rig.client.topic(&topic()).await.unwrap();
    assert_eq!(rig.bus.sent("accesstoken").last().unwrap(), "token-3");
}

#[tokio::test]
async fn other_errors_are_not_repeated() {
    let rig = rig().await;
    rig.bus
        .refuse(with_code(Code::Internal, "service.unavailable"));
    let error = rig.client.topic(&topic()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "GetTopic failed: service.unavailable: No."
    );
    assert_eq!(rig.bus.sent("accesstoken").len(), 1);
}

#[tokio::test]
async fn publishing_gives_an_outcome_for_each_event() {
    let rig = rig().await;
    let event = |payload: &'static [u8]| OutgoingEvent {
        id: "u".to_owned(),
        schema_id: SchemaId::new("s"),
        payload: Bytes::from_static(payload),
    };
    let outcomes = rig
        .client
        .publish(&topic(), vec![event(b"x"), event(b"")])
        .await
        .unwrap();
    assert_eq!(
        outcomes,
        [
            PublishOutcome::Published("01".parse().unwrap()),
            PublishOutcome::Refused("no payload".to_owned())
        ]
    );
    let mut large = event(b"");
    large.payload = vec![0; 5_000_000].into();
    let error = rig.client.publish(&topic(), vec![large]).await.unwrap_err();
    assert!(matches!(error, PubSubError::Invalid(_)), "{error}");
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_reached_is_named_with_the_reason() {
    let client = client("http://127.0.0.1:1", |_| {});
    let error = soon(client.topic(&topic())).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "GetTopic failed: cannot reach 127.0.0.1:1: connection refused"
    );
    assert_eq!(error.recovery(), Recovery::Reconnect);
    assert_eq!(error.reason(), "unavailable");
}

#[tokio::test]
async fn tls_is_required_but_towards_this_machine_and_an_own_ca_is_trusted() {
    let error = try_client("http://api.pubsub.salesforce.com:7443", |_| {}).err();
    assert!(matches!(error, Some(PubSubError::Invalid(_))));

    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let ca_file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca_file.path(), own.cert.pem()).unwrap();
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = incoming.local_addr().unwrap().port();
    let identity = Identity::from_pem(own.cert.pem(), own.signing_key.serialize_pem());
    let server = Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))
        .unwrap()
        .add_service(PubSubServer::new(Bus::default()));
    let server = tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });

    let endpoint = format!("https://localhost:{port}");
    let trusting = client(&endpoint, |config| {
        config.ca_file = Some(ca_file.path().to_owned());
    });
    soon(trusting.topic(&topic())).await.unwrap();
    let error = soon(client(&endpoint, |_| {}).topic(&topic())).await;
    let error = error.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    assert_eq!(error.recovery(), Recovery::Reconnect);
    server.abort();
}
