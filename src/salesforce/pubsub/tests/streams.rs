//! Subscribe streams.

use super::*;

#[tokio::test]
async fn a_stream_begins_though_headers_come_only_with_the_first_message() {
    let rig = rig().await;
    let answers = rig.bus.answers();
    let from = ReplayFrom::After("000000000010db4d0000".parse().unwrap());
    let mut stream = rig.client.subscribe(&topic(), &from, 100).await.unwrap();
    // Nothing comes, and the wait is given up: nothing is lost by it.
    let nothing = tokio::time::timeout(Duration::from_millis(50), stream.next()).await;
    assert!(nothing.is_err());
    answers.send(Ok(keepalive(100))).await.unwrap();
    let batch = soon(stream.next()).await.unwrap().unwrap();
    assert!(batch.events.is_empty());
    assert_eq!(batch.latest_replay_id, Some("09".parse().unwrap()));
    assert_eq!(
        (batch.pending_num_requested, batch.rpc_id.as_str()),
        (100, "rpc")
    );

    stream.request(50).unwrap();
    answers.send(Ok(keepalive(100))).await.unwrap();
    soon(stream.next()).await.unwrap().unwrap();
    drop(answers);
    assert_eq!(soon(stream.next()).await.unwrap(), None);
    assert_eq!(soon(stream.next()).await.unwrap(), None);

    let fetches = rig.bus.fetches.lock().unwrap();
    assert_eq!(
        (fetches[0].replay_preset, fetches[0].num_requested),
        (2, 100)
    );
    assert_eq!(fetches[0].replay_id.as_ref(), b"\0\0\0\0\0\x10\xdb\x4d\0\0");
    assert_eq!(fetches[0].topic_name, "/event/Order__e");
    assert_eq!(
        (fetches[1].replay_preset, fetches[1].num_requested),
        (0, 50)
    );
}

#[tokio::test]
async fn latest_and_earliest_name_no_replay_id_and_credits_stay_within_bounds() {
    let rig = rig().await;
    for (from, asked, preset, sent) in [
        (ReplayFrom::Latest, 0, 0, 1),
        (ReplayFrom::Earliest, 5000, 1, 100),
    ] {
        let answers = rig.bus.answers();
        let mut stream = rig.client.subscribe(&topic(), &from, asked).await.unwrap();
        stream.request(0).unwrap();
        answers.send(Ok(keepalive(1))).await.unwrap();
        soon(stream.next()).await.unwrap();
        let fetch = rig.bus.fetches.lock().unwrap().pop().unwrap();
        assert_eq!((fetch.replay_preset, fetch.num_requested), (preset, sent));
        assert!(fetch.replay_id.is_empty());
    }
}

#[tokio::test]
async fn errors_in_mid_stream_come_with_their_trailers_after_what_was_sent_before() {
    let rig = rig().await;
    let answers = rig.bus.answers();
    let mut stream = rig
        .client
        .subscribe(&topic(), &ReplayFrom::Latest, 1)
        .await
        .unwrap();
    answers.send(Ok(keepalive(1))).await.unwrap();
    let code = "subscription.limit.exceeded";
    answers
        .send(Err(with_code(Code::ResourceExhausted, code)))
        .await
        .unwrap();
    soon(stream.next()).await.unwrap().unwrap();
    let error = soon(stream.next()).await.unwrap_err();
    assert_eq!(error.recovery(), Recovery::WaitForAllocation);
    let PubSubError::Rpc {
        code: given,
        message,
        rpc_id,
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(
        (given.as_deref(), message.as_str(), rpc_id.as_deref()),
        (Some(code), "No.", Some("abc-1"))
    );
    assert_eq!(soon(stream.next()).await.unwrap(), None);
}

#[tokio::test]
async fn a_refused_stream_gives_its_session_up() {
    let rig = rig().await;
    rig.bus
        .refuse(with_code(Code::Unauthenticated, "service.auth.error"));
    let topic = topic();
    let subscribe = || rig.client.subscribe(&topic, &ReplayFrom::Latest, 1);
    let mut stream = subscribe().await.unwrap();
    let error = soon(stream.next()).await.unwrap_err();
    assert_eq!(error.recovery(), Recovery::SignInAgain);
    let _answers = rig.bus.answers();
    let mut stream = subscribe().await.unwrap();
    assert!(stream.next().now_or_never().is_none());
    let second = async {
        while rig.bus.sent("accesstoken").len() < 2 {
            let _ = tokio::time::timeout(Duration::from_millis(5), stream.next()).await;
        }
    };
    soon(second).await;
    assert_eq!(rig.bus.sent("accesstoken"), ["token-1", "token-2"]);
}

#[tokio::test]
async fn a_stream_that_is_forbidden_again_and_again_costs_one_sign_in() {
    let rig = rig().await;
    for _ in 0..4 {
        rig.bus.refuse(Status::permission_denied("no"));
        let opened = rig.client.subscribe(&topic(), &ReplayFrom::Latest, 1).await;
        let error = soon(opened.unwrap().next()).await.unwrap_err();
        assert_eq!(error.recovery(), Recovery::SignInAgainOnce);
    }
    let sent = rig.bus.sent("accesstoken");
    assert_eq!(sent, ["token-1", "token-2", "token-2", "token-2"]);
}

#[tokio::test]
async fn dropping_a_stream_ends_the_call() {
    let rig = rig().await;
    let answers = rig.bus.answers();
    let mut stream = rig
        .client
        .subscribe(&topic(), &ReplayFrom::Latest, 1)
        .await
        .unwrap();
    answers.send(Ok(keepalive(1))).await.unwrap();
    soon(stream.next()).await.unwrap();
    drop(stream);
    soon(rig.bus.call_gone.notified()).await;
}

#[tokio::test]
async fn a_response_far_above_four_mebibytes_arrives_and_an_event_without_a_body_is_kept() {
    let rig = rig().await;
    let answers = rig.bus.answers();
    let mut stream = rig
        .client
        .subscribe(&topic(), &ReplayFrom::Latest, 100)
        .await
        .unwrap();
    let event = |payload: usize| ConsumerEvent {
        event: Some(ProducerEvent {
            id: "id".to_owned(),
            schema_id: "schema".to_owned(),
            payload: vec![7; payload].into(),
            headers: Vec::new(),
        }),
        replay_id: Bytes::from_static(b"\x01"),
    };
    let mut response = keepalive(-1);
    response.events = (0..10).map(|_| event(1_000_000)).collect();
    response.events.push(ConsumerEvent::default());
    answers.send(Ok(response)).await.unwrap();
    let batch = soon(stream.next()).await.unwrap().unwrap();
    assert_eq!(batch.events.len(), 11);
    assert_eq!(batch.events[0].payload.len(), 1_000_000);
    assert_eq!(batch.events[10].replay_id, None);
    assert_eq!(batch.pending_num_requested, 0);
}

#[tokio::test]
async fn pings_find_a_connection_whose_other_end_has_vanished() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = client(&format!("http://{address}"), |config| {
        config.ping_interval = Duration::from_millis(50);
        config.ping_timeout = Duration::from_millis(50);
    });
    let mut stream = client
        .subscribe(&topic(), &ReplayFrom::Latest, 1)
        .await
        .unwrap();
    // The connection is taken and held, and never answered on.
    let hold = async {
        let _held = listener.accept().await.unwrap();
        std::future::pending::<()>().await;
    };
    let error = tokio::select! {
        outcome = soon(stream.next()) => outcome.unwrap_err(),
        () = hold => unreachable!(),
    };
    assert_eq!(error.recovery(), Recovery::Reconnect, "{error}");
}

#[tokio::test]
async fn a_lost_connection_ends_the_stream_and_the_next_call_makes_a_new_one() {
    let rig = rig().await;
    let listener = Arc::new(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = listener.local_addr().unwrap();
    let wire = || {
        let (listener, bus) = (listener.clone(), rig.address);
        tokio::spawn(async move {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = tokio::net::TcpStream::connect(bus).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        })
    };
    let first = wire();
    let client = client(&format!("http://{address}"), |_| {});
    let answers = rig.bus.answers();
    let mut stream = client
        .subscribe(&topic(), &ReplayFrom::Latest, 1)
        .await
        .unwrap();
    answers.send(Ok(keepalive(1))).await.unwrap();
    soon(stream.next()).await.unwrap();
    first.abort();
    let error = soon(stream.next()).await.unwrap_err();
    assert_eq!(error.recovery(), Recovery::Reconnect, "{error}");
    assert!(
        error
            .to_string()
            .contains(&format!("lost the connection to {address}")),
        "{error}"
    );
    let second = wire();
    soon(client.topic(&topic())).await.unwrap();
    second.abort();
}
