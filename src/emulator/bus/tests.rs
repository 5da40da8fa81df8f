use super::*;

const LIMITS: ReadLimits = ReadLimits {
    events: 100,
    bytes: 3_000_000,
    split_siblings: false,
};

const DAYS: Duration = Duration::from_secs(72 * 3600);

fn bus() -> Bus {
    let random = fastrand::Rng::with_seed(7);
    Bus::new(1000, seconds(0), DAYS, 5, random)
}

fn stored(id: &str) -> StoredEvent {
    StoredEvent {
        id: id.to_owned(),
        schema_id: SchemaId::new("s"),
        payload: Bytes::from_static(b"0123456789"),
    }
}

fn entry(topic: &str, id: &str) -> NewEntry {
    NewEntry {
        topic: topic.into(),
        event: stored(id),
        siblings: Vec::new(),
    }
}

fn seconds(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn ids(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|d| d.event.id.as_str()).collect()
}

#[test]
fn positions_grow_with_gaps_over_all_topics() {
    let mut bus = bus();
    let places: Vec<u64> = (0..200)
        .map(|i| bus.append(entry(if i % 2 == 0 { "/a" } else { "/b" }, "x"), seconds(0)))
        .collect();
    assert!(places.windows(2).all(|pair| pair[0] < pair[1]));
    assert!(places.windows(2).any(|pair| pair[1] - pair[0] > 1));
    assert_eq!(bus.head(), places[199]);
}

#[test]
fn a_replay_id_is_eight_bytes_and_two_zeros_and_both_forms_are_accepted() {
    let mut bus = bus();
    let position = bus.append(entry("/a", "1"), seconds(0));
    let id = replay_id(position);
    assert_eq!(id.len(), 10);
    assert_eq!(bus.position_of(&id), Ok(position));
    assert_eq!(bus.position_of(&id[..8]), Ok(position));
    for malformed in [&b""[..], b"1001", &id[..9], &[0xff; 10], b"0000001001"] {
        assert_eq!(bus.position_of(malformed), Err(UnknownPosition));
    }
}

#[test]
fn places_passed_but_never_issued_are_valid_and_places_beyond_either_end_are_not() {
    let mut bus = bus();
    bus.append(entry("/a", "1"), seconds(0));
    bus.skip(10, seconds(0));
    let head = bus.head();
    assert!(bus.position_of(&replay_id(head)).is_ok());
    assert!(bus.position_of(&replay_id(head - 1)).is_ok());
    assert!(bus.position_of(&replay_id(head + 1)).is_err());
    assert!(bus.position_of(&replay_id(1000)).is_ok());
    assert!(bus.position_of(&replay_id(999)).is_err());
}

#[test]
fn retention_drops_the_oldest_events_and_their_places() {
    let mut bus = bus();
    let first = bus.append(entry("/a", "1"), seconds(0));
    let second = bus.append(entry("/a", "2"), seconds(100));
    let third = bus.append(entry("/a", "3"), seconds(200));
    bus.expire(seconds(150) + DAYS);
    assert_eq!((bus.len(), bus.horizon()), (1, second));
    assert!(bus.position_of(&replay_id(first)).is_err());
    assert!(bus.position_of(&replay_id(second)).is_err());
    assert_eq!(bus.position_of(&replay_id(third)), Ok(third));
    bus.expire_up_to(None);
    assert_eq!((bus.len(), bus.horizon()), (0, third));
    assert!(bus.position_of(&replay_id(third)).is_err());
}

#[test]
fn places_age_on_a_bus_where_nothing_happens() {
    let mut bus = bus();
    let start = replay_id(bus.head());
    bus.skip(10, seconds(100));
    let skipped = [bus.head() - 9, bus.head()].map(replay_id);
    bus.expire(seconds(50) + DAYS);
    assert!(bus.position_of(&start).is_err());
    assert!(skipped.iter().all(|id| bus.position_of(id).is_ok()));
    bus.expire(seconds(150) + DAYS);
    assert!(skipped.iter().all(|id| bus.position_of(id).is_err()));
    let next = bus.append(entry("/a", "1"), seconds(150) + DAYS);
    assert_eq!(bus.position_of(&replay_id(next)), Ok(next));
}

#[test]
fn the_place_before_the_oldest_event_ages_like_any_other() {
    let mut bus = bus();
    let start = replay_id(bus.head());
    bus.append(entry("/a", "1"), seconds(100));
    bus.expire(seconds(50) + DAYS);
    assert_eq!(bus.len(), 1);
    assert!(bus.position_of(&start).is_err());
}

#[test]
fn a_keepalive_moves_a_line_on_that_stood_still_so_that_its_place_is_young() {
    let mut bus = bus();
    let stored = bus.append(entry("/a", "1"), seconds(0));
    bus.keep_moving(seconds(60));
    assert_eq!(bus.head(), stored);
    let later = seconds(0) + DAYS / 2;
    bus.keep_moving(later);
    assert_eq!(bus.head(), stored + 1);
    bus.expire(seconds(1) + DAYS);
    assert!(bus.position_of(&replay_id(stored)).is_err());
    assert!(bus.position_of(&replay_id(stored + 1)).is_ok());
    bus.expire_up_to(None);
    bus.keep_moving(later);
    assert!(bus.position_of(&replay_id(bus.head())).is_ok());
}

#[test]
fn however_often_the_line_moves_little_is_remembered_of_it() {
    let mut bus = bus();
    for second in 0..10_000 {
        bus.skip(1, seconds(second));
    }
    assert_eq!(bus.marks.len(), MAX_MARKS);
    // What was forgotten ages with what was not, and no earlier.
    assert!(bus.position_of(&replay_id(1001)).is_ok());
    bus.expire(seconds(10_000 - 10) + DAYS);
    assert!(bus.position_of(&replay_id(bus.head() - 11)).is_err());
    assert!(bus.position_of(&replay_id(bus.head())).is_ok());
}

#[test]
fn a_reset_invalidates_every_earlier_replay_id() {
    let mut bus = bus();
    let before = bus.append(entry("/a", "1"), seconds(0));
    bus.reset(None, seconds(0));
    assert!(bus.position_of(&replay_id(before)).is_err());
    let after = bus.append(entry("/a", "2"), seconds(0));
    assert!(bus.position_of(&replay_id(after)).is_ok());
}

#[test]
fn a_feed_carries_its_own_topics_only_and_the_cursor_passes_the_others() {
    let mut bus = bus();
    for (topic, id) in [("/a", "1"), ("/b", "2"), ("/c", "3"), ("/a", "4")] {
        bus.append(entry(topic, id), seconds(0));
    }
    let start = Cursor::after(bus.horizon());
    let (got, behind) = bus.read(start, &Feed::Topic("/a".into()), LIMITS);
    assert_eq!(ids(&got), ["1", "4"]);
    assert_eq!(behind, Cursor::after(bus.head()));
    let channel = Feed::Channel {
        name: "/chn".into(),
        members: vec!["/a".into(), "/b".into()],
    };
    assert_eq!(ids(&bus.read(start, &channel, LIMITS).0), ["1", "2", "4"]);
}

#[test]
fn limits_on_events_and_bytes_split_a_read_without_losing_or_repeating() {
    let mut bus = bus();
    for id in ["1", "2", "3", "4", "5"] {
        bus.append(entry("/a", id), seconds(0));
    }
    let feed = Feed::Topic("/a".into());
    for (events, bytes) in [(2, 1000), (100, 25), (100, 1)] {
        let limits = ReadLimits {
            events,
            bytes,
            split_siblings: false,
        };
        let mut cursor = Cursor::after(bus.horizon());
        let mut all = Vec::new();
        for _ in 0..6 {
            let (got, behind) = bus.read(cursor, &feed, limits);
            assert!(got.len() <= events && got.len() <= (bytes / 10).max(1));
            all.extend(got);
            cursor = behind;
        }
        assert_eq!(ids(&all), ["1", "2", "3", "4", "5"]);
    }
}

#[test]
fn enriched_siblings_share_a_place_on_their_channel_and_split_where_credits_end() {
    let mut bus = bus();
    let place = bus.append(
        NewEntry {
            siblings: vec![(
                "/chn".into(),
                vec![stored("1a"), stored("1b"), stored("1c")],
            )],
            ..entry("/a", "1")
        },
        seconds(0),
    );
    bus.append(entry("/a", "2"), seconds(0));
    let start = Cursor::after(bus.horizon());
    let own = bus.read(start, &Feed::Topic("/a".into()), LIMITS).0;
    assert_eq!(ids(&own), ["1", "2"]);
    let feed = Feed::Channel {
        name: "/chn".into(),
        members: vec!["/a".into()],
    };
    let limits = ReadLimits {
        events: 2,
        ..LIMITS
    };
    let (got, behind) = bus.read(start, &feed, limits);
    assert_eq!(ids(&got), ["1a", "1b"]);
    assert!(got.iter().all(|delivery| delivery.position == place));
    assert_eq!(ids(&bus.read(behind, &feed, limits).0), ["1c", "2"]);
    // A stream resumed from the shared replay ID begins strictly after it.
    let resumed = bus.read(Cursor::after(place), &feed, LIMITS).0;
    assert_eq!(ids(&resumed), ["2"]);
    let forced = ReadLimits {
        split_siblings: true,
        ..LIMITS
    };
    let (got, behind) = bus.read(start, &feed, forced);
    assert_eq!(ids(&got), ["1a"]);
    let (got, behind) = bus.read(behind, &feed, forced);
    assert_eq!(ids(&got), ["1b"]);
    assert_eq!(ids(&bus.read(behind, &feed, forced).0), ["1c", "2"]);
}

proptest::proptest! {
    #[test]
    fn however_a_read_is_split_nothing_is_lost_repeated_or_reordered(
        // Of the feed or not, and how many siblings the channel delivers for it.
        line in proptest::collection::vec((proptest::bool::ANY, 0usize..4), 0..40),
        limits in proptest::collection::vec((1usize..5, 1usize..60, proptest::bool::ANY), 1..8),
    ) {
        let mut bus = bus();
        let mut expected = Vec::new();
        for (index, (carried, siblings)) in line.into_iter().enumerate() {
            let ids: Vec<_> = (0..siblings).map(|n| format!("{index}-{n}")).collect();
            let own = format!("{index}");
            let topic = if carried { "/a" } else { "/b" };
            let siblings = match ids.len() {
                0 => Vec::new(),
                _ => vec![("/chn".into(), ids.iter().map(|id| stored(id)).collect())],
            };
            bus.append(NewEntry { siblings, ..entry(topic, &own) }, seconds(0));
            match (carried, ids.is_empty()) {
                (true, true) => expected.push(own),
                (true, false) => expected.extend(ids),
                (false, _) => {}
            }
        }
        let feed = Feed::Channel { name: "/chn".into(), members: vec!["/a".into()] };
        let mut cursor = Cursor::after(bus.horizon());
        let mut got = Vec::new();
        for (events, bytes, split_siblings) in limits.into_iter().cycle() {
            let (read, behind) =
                bus.read(cursor, &feed, ReadLimits { events, bytes, split_siblings });
            proptest::prop_assert!(read.len() <= events);
            let done = read.is_empty();
            got.extend(read.iter().map(|delivery| delivery.event.id.clone()));
            cursor = behind;
            if done {
                break;
            }
        }
        proptest::prop_assert_eq!(got, expected);
        proptest::prop_assert_eq!(cursor, Cursor::after(bus.head()));
    }
}
