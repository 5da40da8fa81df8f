use tonic::Code;

use super::*;

const EARLIEST: ReplayPreset = ReplayPreset::Earliest;
const LATEST: ReplayPreset = ReplayPreset::Latest;

#[tokio::test]
async fn earliest_delivers_everything_kept_with_exact_credits() {
    let org = Org::start().await;
    let published = org.publish_orders(0..7);
    let mut stream = org.subscribe(fetch(ORDERS, EARLIEST, 10)).await.unwrap();
    let responses = stream.events(7).await;
    assert_eq!(ids(&responses), published_ids(&published));
    let last = responses.last().unwrap();
    assert_eq!(last.pending_num_requested, 3);
    assert_eq!(hex::encode(&last.latest_replay_id), published[6].replay_id);
    assert_eq!(last.events.last().unwrap().replay_id.len(), 10);
    assert!(!last.rpc_id.is_empty());
}

#[tokio::test]
async fn latest_delivers_only_what_comes_later() {
    let org = Org::start().await;
    org.publish_orders(0..3);
    let mut stream = org.subscribe(fetch(ORDERS, LATEST, 10)).await.unwrap();
    while org.emulator.state().fetch_requests == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let later = org.publish_orders(3..5);
    assert_eq!(ids(&stream.events(2).await), published_ids(&later));
}

#[tokio::test]
async fn a_stream_never_gets_more_than_a_hundred_at_once_and_never_more_than_it_asked_for() {
    let org = Org::start().await;
    let published = org.publish_orders(0..250);
    let mut stream = org.subscribe(fetch(ORDERS, EARLIEST, 5000)).await.unwrap();
    let mut all = stream.events(100).await;
    assert_eq!(all.last().unwrap().pending_num_requested, 0);
    stream.ask(20).await;
    all.extend(stream.events(20).await);
    stream.ask(100).await;
    all.extend(stream.events(100).await);
    stream.ask(100).await;
    let rest = stream.events(30).await;
    assert_eq!(rest.last().unwrap().pending_num_requested, 70);
    all.extend(rest);
    assert_eq!(ids(&all), published_ids(&published));
    let state = org.emulator.state();
    assert_eq!(state.deliveries, 250);
    assert_eq!(state.fetch_requests, 4);
    assert_eq!(state.most_outstanding, 5000);
    assert_eq!(state.streams[0].pending, 70);
}

#[tokio::test]
async fn responses_are_split_as_set_and_by_size() {
    let org = Org::start().await;
    org.set(|settings| settings.events_per_response = Some(3));
    org.publish_orders(0..7);
    let mut stream = org.subscribe(fetch(ORDERS, EARLIEST, 100)).await.unwrap();
    let sizes: Vec<_> = stream
        .events(7)
        .await
        .iter()
        .map(|r| r.events.len())
        .collect();
    assert_eq!(sizes, [3, 3, 1]);
    org.set(|settings| {
        settings.events_per_response = None;
        settings.max_response_bytes = 1;
    });
    let mut stream = org.subscribe(fetch(ORDERS, EARLIEST, 100)).await.unwrap();
    let pending: Vec<_> = stream
        .events(7)
        .await
        .iter()
        .map(|r| r.pending_num_requested)
        .collect();
    assert_eq!(pending, [99, 98, 97, 96, 95, 94, 93]);
}

#[tokio::test]
async fn custom_begins_strictly_after_the_replay_id_in_both_of_its_forms() {
    let org = Org::start().await;
    let published = org.publish_orders(0..5);
    for length in [20, 16] {
        let from = &published[1].replay_id[..length];
        let mut stream = org.subscribe(after(ORDERS, from, 10)).await.unwrap();
        let responses = stream.events(3).await;
        assert_eq!(ids(&responses), published_ids(&published[2..]));
    }
}

#[tokio::test]
async fn replay_ids_that_name_no_place_are_refused_as_corrupted() {
    let org = Org::start().await;
    let published = org.publish_orders(0..3);
    let old = &published[0].replay_id;
    let refused = async |from: &str| {
        let mut stream = org.subscribe(after(ORDERS, from, 10)).await.unwrap();
        let status = stream.failure().await;
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(code(&status), "subscription.fetch.replayid.corrupted");
    };
    refused("31313034303031").await;
    refused("00000000ffffffff0000").await;
    refused("000000000000000a0000").await;
    org.emulator
        .expire_events(Some(&published[1].replay_id))
        .unwrap();
    refused(old).await;
    refused(&published[1].replay_id).await;
    let mut stream = org.subscribe(fetch(ORDERS, EARLIEST, 10)).await.unwrap();
    assert_eq!(ids(&stream.events(1).await), published_ids(&published[2..]));
    org.emulator.reset_bus(None);
    refused(&published[2].replay_id).await;
}

#[tokio::test]
async fn events_older_than_the_retention_window_are_gone_when_the_clock_says_so() {
    let org = Org::start().await;
    let old = org.publish_orders(0..2);
    org.emulator.set_clock_offset_ms(73 * 3600 * 1000).unwrap();
    let new = org.publish_orders(2..3);
    let mut stream = org.subscribe(fetch(ORDERS, EARLIEST, 10)).await.unwrap();
    assert_eq!(ids(&stream.events(1).await), published_ids(&new));
    let mut stream = org
        .subscribe(after(ORDERS, &old[0].replay_id, 1))
        .await
        .unwrap();
    assert_eq!(
        code(&stream.failure().await),
        "subscription.fetch.replayid.corrupted"
    );
}

#[tokio::test]
async fn a_replay_id_ages_though_nothing_happens_and_a_keepalive_names_a_young_one() {
    let org = Org::start().await;
    org.set(|settings| settings.keepalive_ms = 20);
    let stored = org.emulator.state().latest_replay_id;
    org.emulator.set_clock_offset_ms(80 * 3600 * 1000).unwrap();
    let mut stream = org.subscribe(after(ORDERS, &stored, 1)).await.unwrap();
    assert_eq!(
        code(&stream.failure().await),
        "subscription.fetch.replayid.corrupted"
    );
    let mut stream = org.subscribe(fetch(ORDERS, LATEST, 5)).await.unwrap();
    let keepalive = stream.next().await.unwrap().unwrap();
    let place = hex::encode(&keepalive.latest_replay_id);
    assert!(place > stored);
    let mut resumed = org.subscribe(after(ORDERS, &place, 5)).await.unwrap();
    assert_eq!(resumed.next().await.unwrap().unwrap().events, []);
    // Nothing is passed over on the way.
    let published = org.publish_orders(0..1);
    for stream in [&mut stream, &mut resumed] {
        while stream.next().await.unwrap().unwrap().events.is_empty() {}
    }
    let mut again = org.subscribe(after(ORDERS, &place, 5)).await.unwrap();
    assert_eq!(ids(&again.events(1).await), published_ids(&published));
}

#[tokio::test]
async fn a_reset_of_the_bus_ends_open_streams_whose_places_mean_nothing_any_more() {
    let org = Org::start().await;
    org.set(|settings| settings.keepalive_ms = 20);
    org.publish_orders(0..1);
    for position in [Some(10), None] {
        let before = org.emulator.state().fetch_requests;
        // With credits left and without.
        let mut streams = Vec::new();
        for preset in [EARLIEST, LATEST] {
            streams.push(org.subscribe(fetch(ORDERS, preset, 1)).await.unwrap());
            streams.push(org.subscribe(fetch(ORDERS, preset, 9)).await.unwrap());
        }
        let accepted = before + streams.len() as u64;
        while org.emulator.state().fetch_requests < accepted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        org.emulator.reset_bus(position);
        for stream in &mut streams {
            while stream.next().await.unwrap().is_some() {}
        }
        let published = org.publish_orders(1..2);
        let mut stream = org.subscribe(fetch(ORDERS, EARLIEST, 1)).await.unwrap();
        assert_eq!(ids(&stream.events(1).await), published_ids(&published));
    }
}

#[tokio::test]
async fn malformed_fetch_requests_are_refused_with_their_codes() {
    let org = Org::start().await;
    let no_id = fetch(ORDERS, ReplayPreset::Custom, 1);
    for (request, expected) in [
        (no_id, "subscription.fetch.replayid.validation.failed"),
        (
            fetch(ORDERS, EARLIEST, 0),
            "subscription.fetch.requested.events.invalid",
        ),
        (
            fetch(ORDERS, EARLIEST, -5),
            "subscription.fetch.requested.events.invalid",
        ),
        (fetch("", EARLIEST, 1), "topic.validation.empty"),
        (fetch("/event/None__e", EARLIEST, 1), "topic.not.found"),
    ] {
        let mut stream = org.subscribe(request).await.unwrap();
        assert_eq!(code(&stream.failure().await), expected);
    }
    let mut stream = org.subscribe(fetch(ORDERS, EARLIEST, 1)).await.unwrap();
    stream
        .requests
        .send(fetch(ACCOUNTS, EARLIEST, 1))
        .await
        .unwrap();
    let status = stream.failure().await;
    assert_eq!(code(&status), "subscription.fetch.topic.mismatch");
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_later_request_may_repeat_the_topic_and_its_replay_fields_are_ignored() {
    let org = Org::start().await;
    let published = org.publish_orders(0..3);
    let mut stream = org.subscribe(fetch(ORDERS, EARLIEST, 1)).await.unwrap();
    stream.events(1).await;
    stream.requests.send(after(ORDERS, "ff", 2)).await.unwrap();
    assert_eq!(ids(&stream.events(2).await), published_ids(&published[1..]));
}

#[tokio::test]
async fn keepalives_name_the_newest_place_of_the_whole_bus_and_can_be_resumed_from() {
    let org = Org::start().await;
    org.set(|settings| settings.keepalive_ms = 50);
    org.publish_orders(0..1);
    let mut stream = org.subscribe(fetch(ORDERS, EARLIEST, 10)).await.unwrap();
    stream.events(1).await;
    org.emulator
        .publish(ACCOUNTS, json!({"Phone": "1"}))
        .unwrap();
    org.emulator.skip_places(7);
    let newest = org.emulator.state().latest_replay_id;
    let place = loop {
        let keepalive = stream.next().await.unwrap().unwrap();
        assert!(keepalive.events.is_empty());
        assert_eq!(keepalive.pending_num_requested, 9);
        let place = hex::encode(&keepalive.latest_replay_id);
        if place == newest {
            break place;
        }
    };
    let next = org.publish_orders(1..2);
    let mut resumed = org.subscribe(after(ORDERS, &place, 10)).await.unwrap();
    assert_eq!(ids(&resumed.events(1).await), published_ids(&next));
}

#[tokio::test]
async fn a_stream_without_credits_gets_no_keepalive_and_is_closed() {
    let org = Org::start().await;
    org.set(|settings| {
        settings.keepalive_ms = 20;
        settings.idle_close_ms = 200;
    });
    org.publish_orders(0..1);
    let mut stream = org.subscribe(fetch(ORDERS, EARLIEST, 1)).await.unwrap();
    stream.events(1).await;
    assert_eq!(stream.next().await.unwrap(), None);
    org.set(|settings| settings.idle_close = IdleClose::Status(13));
    let mut stream = org.subscribe(fetch(ORDERS, EARLIEST, 1)).await.unwrap();
    stream.events(1).await;
    assert_eq!(stream.next().await.unwrap_err().code(), Code::Internal);
}

#[tokio::test]
async fn a_stream_that_is_never_asked_for_anything_is_closed_like_an_idle_one() {
    let org = Org::start().await;
    let open = async || {
        let (requests, queue) = mpsc::channel::<FetchRequest>(1);
        let call = org.signed(ReceiverStream::new(queue));
        let responses = org.client.clone().subscribe(call).await.unwrap();
        Subscription {
            requests,
            responses: responses.into_inner(),
        }
    };
    let mut stream = open().await;
    // Streams already open follow the settings, also before their first request.
    org.set(|settings| settings.idle_close_ms = 100);
    assert_eq!(stream.next().await.unwrap(), None);
    org.set(|settings| settings.idle_close = IdleClose::Status(13));
    let mut stream = open().await;
    assert_eq!(stream.next().await.unwrap_err().code(), Code::Internal);
    org.set(|settings| settings.idle_close_ms = 60_000);
    let mut stream = open().await;
    org.publish_orders(0..1);
    stream
        .requests
        .send(fetch(ORDERS, EARLIEST, 1))
        .await
        .unwrap();
    assert!(stream.next().await.unwrap().is_some());
}

#[tokio::test]
async fn a_stream_outlives_its_tokens_expiry_but_not_where_set_its_revocation() {
    let org = Org::start().await;
    let mut stream = org.subscribe(fetch(ORDERS, EARLIEST, 10)).await.unwrap();
    org.publish_orders(0..1);
    stream.events(1).await;
    org.emulator.expire_tokens();
    org.publish_orders(1..2);
    stream.events(1).await;
    stream.ask(5).await;
    let refused = org
        .subscribe(fetch(ORDERS, EARLIEST, 1))
        .await
        .err()
        .unwrap();
    assert_eq!(code(&refused), "service.auth.error");
    assert_eq!(refused.code(), Code::Unauthenticated);

    let mut org = org;
    org.token = org.emulator.issue_token();
    let mut stream = org.subscribe(fetch(ORDERS, EARLIEST, 10)).await.unwrap();
    stream.events(2).await;
    org.emulator.revoke_tokens();
    org.publish_orders(2..3);
    stream.events(1).await;
    org.set(|settings| settings.revoke_ends_streams = true);
    assert_eq!(code(&stream.failure().await), "service.auth.error");
}

#[tokio::test]
async fn the_delivery_allocation_ends_streams_once_it_is_used_up() {
    let org = Org::start().await;
    org.set(|settings| settings.delivery_limit = Some(5));
    org.publish_orders(0..8);
    let mut stream = org.subscribe(fetch(ORDERS, EARLIEST, 100)).await.unwrap();
    stream.events(5).await;
    let status = stream.failure().await;
    assert_eq!(code(&status), "subscription.limit.exceeded");
    assert_eq!(status.code(), Code::ResourceExhausted);
    org.emulator.reset_deliveries();
    let mut stream = org.subscribe(fetch(ORDERS, EARLIEST, 3)).await.unwrap();
    stream.events(3).await;
}

#[tokio::test]
async fn headers_can_be_held_back_until_the_first_response() {
    let org = Org::start().await;
    org.set(|settings| settings.headers = HeadersSent::WithFirstResponse);
    let held = org.subscribe(fetch(ORDERS, LATEST, 1));
    let held = tokio::time::timeout(Duration::from_millis(150), held).await;
    assert!(held.is_err(), "no headers without a response");
    org.publish_orders(0..1);
    let mut stream = org.subscribe(fetch(ORDERS, EARLIEST, 1)).await.unwrap();
    stream.events(1).await;
    org.set(|settings| settings.headers = HeadersSent::AfterRequest);
    org.subscribe(fetch(ORDERS, LATEST, 1)).await.unwrap();
    let refused = org.subscribe(fetch(ORDERS, LATEST, 0)).await.err().unwrap();
    assert_eq!(
        code(&refused),
        "subscription.fetch.requested.events.invalid"
    );
}

#[tokio::test]
async fn a_stream_whose_client_goes_away_is_forgotten_and_half_closing_ends_it() {
    let org = Org::start().await;
    let stream = org.subscribe(fetch(ORDERS, LATEST, 1)).await.unwrap();
    let mut other = org.subscribe(fetch(ORDERS, LATEST, 1)).await.unwrap();
    drop(stream);
    let (requests, _) = mpsc::channel(1);
    other.requests = requests;
    assert_eq!(other.next().await.unwrap(), None);
    tokio::time::timeout(LIMIT, async {
        while !org.emulator.state().streams.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn every_call_needs_the_three_headers_and_a_token_of_this_org() {
    let org = Org::start().await;
    for (header, value, expected) in [
        ("accesstoken", "", "service.auth.headers.invalid"),
        ("instanceurl", "", "service.auth.headers.invalid"),
        ("tenantid", "", "service.auth.headers.invalid"),
        ("accesstoken", "00D!unknown", "service.auth.error"),
        (
            "instanceurl",
            "https://other.my.salesforce.com",
            "service.auth.error",
        ),
        ("tenantid", "00D000000000001AAA", "service.auth.error"),
    ] {
        let mut call = org.signed(tokio_stream::empty());
        call.metadata_mut().insert(header, value.parse().unwrap());
        let refused = org.client.clone().subscribe(call).await.err().unwrap();
        assert_eq!(code(&refused), expected, "{header}");
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
    let mut call = org.signed(tokio_stream::empty());
    let short = &org.emulator.org_id().as_str()[..15];
    call.metadata_mut()
        .insert("tenantid", short.parse().unwrap());
    org.client.clone().subscribe(call).await.unwrap();
}

#[tokio::test]
async fn tls_works_with_the_certificate_authority_it_names() {
    let org = Org::start_with(EmulatorConfig {
        tls: true,
        ..EmulatorConfig::default()
    })
    .await;
    org.publish_orders(0..2);
    let mut stream = org.subscribe(fetch(ORDERS, EARLIEST, 5)).await.unwrap();
    stream.events(2).await;
}
