//! `[[subscription]]` and `[[subscription.handler]]`, and the subscriptions of `ORGSTREAM_TOPICS`.

use std::collections::BTreeMap;

use super::error::Place;
use super::reader::Reader;
use super::salesforce::{BackoffKeys, positive_duration};
use super::section::{Found, Section, Var};
use super::shaping::{read_fields, read_filter};
use super::{
    Group, HandlerConfig, HandlerProblem, MAX_HANDLERS, OnExhausted, OnExpiredReplayId, Ordering,
    RetryConfig, Start, SubscriptionConfig, parse_bytes,
};
use crate::event::{InvalidTopic, Topic, TopicKind};

/// Longest name, in characters: what a Postgres identifier may have.
const NAME_LENGTH: usize = 63;

/// Most events of a subscription in flight. Beyond it memory is bounded by nothing but hope.
const MAX_IN_FLIGHT: usize = 1_000_000;

/// Least room in bytes: what one event may need until larger ones were seen (design 3.1, rule 10).
const LEAST_BYTES: usize = 64 * 1024;

/// Variable that names topics where there is no file.
pub(super) const TOPICS: &str = "ORGSTREAM_TOPICS";

/// Says what is wrong with a handler.
type CheckHandler<'a> = &'a dyn Fn(&HandlerConfig) -> Vec<HandlerProblem>;

/// A subscription as read, with the places that later checks speak of.
struct Read {
    config: SubscriptionConfig,
    name_place: Place,
    topic_place: Place,
}

/// Reads all subscriptions, those of `ORGSTREAM_TOPICS` where the document has none.
pub(super) fn read_all(
    sections: Vec<Section<'_>>,
    reader: &Reader<'_>,
    check: CheckHandler<'_>,
) -> Vec<SubscriptionConfig> {
    let topics = reader.env.var(TOPICS);
    let all: Vec<Read> = if sections.is_empty() {
        topics
            .map(|topics| from_topics(&topics, reader))
            .unwrap_or_default()
    } else {
        if topics.is_some() {
            reader.warn(
                Place::variable(TOPICS),
                "is ignored, because the configuration has subscriptions of its own",
            );
        }
        sections
            .into_iter()
            .filter_map(|section| read_one(section, check))
            .collect()
    };
    check_together(&all, reader);
    all.into_iter().map(|read| read.config).collect()
}

/// What can only be seen when all subscriptions are known.
fn check_together(all: &[Read], reader: &Reader<'_>) {
    let mut names: BTreeMap<&str, &Place> = BTreeMap::new();
    let mut topics: BTreeMap<&Topic, &str> = BTreeMap::new();
    for read in all {
        let name = read.config.name.as_str();
        if let Some(first) = names.insert(name, &read.name_place) {
            reader.problem(
                read.name_place.clone(),
                format!(
                    "the name `{name}` is taken already, at {first}; a name belongs to one position"
                ),
            );
        }
        let topic = &read.config.topic;
        if let Some(first) = topics.insert(topic, name) {
            reader.warn(
                read.topic_place.clone(),
                format!(
                    "{topic} is streamed by `{first}` too: every event counts twice against the org's daily \
                     allocation. Several handlers of one subscription share one stream"
                ),
            );
        }
    }
    let everything = all
        .iter()
        .find(|read| read.config.topic.name() == "ChangeEvents");
    for read in all {
        if let Some(everything) = everything
            && read.config.topic.kind() == TopicKind::ChangeEvent
        {
            reader.warn(
                read.topic_place.clone(),
                format!(
                    "`{}` streams /data/ChangeEvents, which carries these events too where the object is selected \
                     in Setup: they then count twice against the org's daily allocation",
                    everything.config.name
                ),
            );
        }
    }
}

/// Reads one `[[subscription]]`. Without a name or a topic there is none, which has then been noted.
fn read_one(section: Section<'_>, check: CheckHandler<'_>) -> Option<Read> {
    let topic = section
        .needed(
            "topic",
            Var::None,
            "give the topic to stream, for example /data/AccountChangeEvent or Order__e",
        )
        .and_then(|given| {
            // The error repeats the topic, which is no secret.
            let noted =
                |error: InvalidTopic| section.reader().problem(given.place, error.to_string());
            given.text.parse::<Topic>().map_err(noted).ok()
        });
    let example = topic.as_ref().map_or("accounts".to_owned(), name_from);
    let why = format!("the position is kept under it; give one, for example \"{example}\"");
    let name = section
        .needed("name", Var::None, &why)
        .and_then(|given| section.accepted(&given, valid_name));
    let (name_place, topic_place) = (section.place("name"), section.place("topic"));
    // The rest is looked at even where these two are missing, so that all problems show at once.
    let known_topic = topic.is_some();
    let mut config = SubscriptionConfig::new(
        name.clone().unwrap_or_default(),
        match topic {
            Some(topic) => topic,
            None => "/data/ChangeEvents".parse().ok()?,
        },
    );
    read_options(&section, &mut config, known_topic);
    let shared = OfHandlers {
        ordering: config.ordering,
        topic: known_topic.then_some(&config.topic),
        key: config.key.as_deref(),
        check,
    };
    config.handlers = read_handlers(&section, &shared);
    section.finish();
    (name.is_some() && known_topic).then_some(Read {
        config,
        name_place,
        topic_place,
    })
}

fn read_options(section: &Section<'_>, config: &mut SubscriptionConfig, known_topic: bool) {
    if let Some(start) = section.parsed("start", Var::None, parse_start) {
        config.start = start;
        config.start_is_explicit = true;
    }
    let expired = [
        ("earliest", OnExpiredReplayId::Earliest),
        ("latest", OnExpiredReplayId::Latest),
        ("stop", OnExpiredReplayId::Stop),
    ];
    let expired = section.choice("on_expired_replay_id", Var::None, &expired);
    config.on_expired_replay_id = expired.unwrap_or(config.on_expired_replay_id);
    let ordering = [
        ("record", Ordering::Record),
        ("strict", Ordering::Strict),
        ("none", Ordering::None),
    ];
    let ordering = section.choice("ordering", Var::None, &ordering);
    config.ordering = ordering.unwrap_or(config.ordering);
    config.key = section.text("key", Var::None).map(|given| given.text);
    let is_change_event = matches!(
        config.topic.kind(),
        TopicKind::ChangeEvent | TopicKind::ChangeEventChannel
    );
    if config.key.is_some() && known_topic && is_change_event {
        section.problem(
            "key",
            "is for platform events; change events are ordered by their record ID, so take it away",
        );
    }
    let concurrency = section.number("concurrency", Var::None, 1..=256usize);
    if config.ordering == Ordering::Strict {
        if concurrency.is_some_and(|concurrency| concurrency > 1) {
            section.reader().warn(
                section.place("concurrency"),
                "has no effect: with ordering = \"strict\" events are handed over one after the other",
            );
        }
        config.concurrency = 1;
    } else {
        config.concurrency = concurrency.unwrap_or(config.concurrency);
    }
    let in_flight = section.number("max_in_flight", Var::None, 1..=MAX_IN_FLIGHT);
    config.max_in_flight = in_flight.unwrap_or(config.max_in_flight);
    let bytes = section.parsed(
        "max_in_flight_bytes",
        Var::None,
        |text| match parse_bytes(text)? {
            bytes if bytes < LEAST_BYTES => Err("must be at least 64KiB".to_owned()),
            bytes => Ok(bytes),
        },
    );
    config.max_in_flight_bytes = bytes.unwrap_or(config.max_in_flight_bytes);
    let max_parked = section.number("max_parked", Var::None, 1..=MAX_IN_FLIGHT);
    config.max_parked = max_parked.unwrap_or(config.max_parked);
    let schema_wait = section.parsed("schema_wait", Var::None, positive_duration);
    config.schema_wait = schema_wait.unwrap_or(config.schema_wait);
    read_group(section, config, known_topic);
}

/// What is handed over together. A transaction has to fit into what may be in flight with room to ask for
/// what closes it, or it could never be had whole.
fn read_group(section: &Section<'_>, config: &mut SubscriptionConfig, known_topic: bool) {
    let words = [("none", Group::None), ("transaction", Group::Transaction)];
    let group = section.choice("group", Var::None, &words);
    config.group = group.unwrap_or(config.group);
    let wait = section.parsed("group_wait", Var::None, positive_duration);
    config.group_wait = wait.unwrap_or(config.group_wait);
    let max = section.number("group_max_events", Var::None, 1..=MAX_IN_FLIGHT);
    config.group_max_events = max
        .unwrap_or_else(|| SubscriptionConfig::group_max_events_by_default(config.max_in_flight));
    if config.group == Group::None {
        return;
    }
    let is_platform_event = matches!(
        config.topic.kind(),
        TopicKind::PlatformEvent | TopicKind::PlatformEventChannel
    );
    if known_topic && is_platform_event {
        section.problem(
            "group",
            "is for change events; platform events name no transaction, so take it away",
        );
    }
    let most = config.largest_group();
    if config.group_max_events > most {
        let key = match max {
            Some(_) => "group_max_events",
            None => "max_in_flight",
        };
        section.problem(
            key,
            format!(
                "a transaction of {} events never fits into max_in_flight = {} with the event that closes it; \
                 at most {most} do: raise max_in_flight",
                config.group_max_events, config.max_in_flight
            ),
        );
    }
}

/// What a subscription says of all its handlers.
struct OfHandlers<'a> {
    ordering: Ordering,
    /// `None` where it is no good, and then that has been noted.
    topic: Option<&'a Topic>,
    key: Option<&'a str>,
    check: CheckHandler<'a>,
}

fn read_handlers(section: &Section<'_>, shared: &OfHandlers<'_>) -> Vec<HandlerConfig> {
    let tables = section.tables("handler");
    if tables.is_empty() && !section.has("handler") {
        section.missing(
            "handler",
            Var::None,
            "nobody would receive its events; add [[subscription.handler]] with type = \"log\" to begin with",
        );
    }
    if tables.len() > MAX_HANDLERS {
        section.problem(
            "handler",
            format!(
                "{} handlers are more than the {MAX_HANDLERS} that one subscription can have; stream the topic \
                 once more under another name, or hand it to something that fans out",
                tables.len()
            ),
        );
    }
    let mut handlers: Vec<HandlerConfig> = Vec::with_capacity(tables.len());
    for table in tables {
        if let Some((handler, place)) = read_handler(table, shared) {
            if handlers.iter().any(|other| other.name == handler.name) {
                section.reader().problem(
                    place,
                    format!(
                        "the name `{}` is taken already by another handler of this subscription; give each its own name",
                        handler.name
                    ),
                );
            }
            handlers.push(handler);
        }
    }
    handlers
}

fn read_handler(section: Section<'_>, shared: &OfHandlers<'_>) -> Option<(HandlerConfig, Place)> {
    let ordering = shared.ordering;
    let kind = section.needed(
        "type",
        Var::None,
        "give one, for example \"log\" or \"webhook\"",
    );
    let name = match section.find("name", Var::None) {
        Found::Given(given) => section.accepted(&given, valid_name),
        Found::Nothing => match &kind {
            Some(kind) if valid_name(&kind.text).is_ok() => Some(kind.text.clone()),
            Some(_) => {
                let why = "the type cannot stand for it, because it is not a lower-case name";
                section.missing("name", Var::None, why);
                None
            }
            None => None,
        },
        Found::Bad => None,
    };
    let retry = section.table("retry");
    let mut retry_config = RetryConfig::default();
    let attempts = retry.number("attempts", Var::None, 1..=1000u32);
    retry_config.attempts = attempts.unwrap_or(retry_config.attempts);
    retry_config.backoff = BackoffKeys::read(&retry, Var::None).over(retry_config.backoff);
    let total = retry.parsed("total", Var::None, positive_duration);
    retry_config.total = total.unwrap_or(retry_config.total);
    retry.finish();

    let words = [("park", OnExhausted::Park), ("stop", OnExhausted::Stop)];
    let on_exhausted = section.choice("on_exhausted", Var::None, &words);
    if on_exhausted == Some(OnExhausted::Park) && ordering == Ordering::Strict {
        section.problem(
            "on_exhausted",
            "ordering = \"strict\" cannot go on past a parked event; use \"stop\", or ordering = \"record\"",
        );
    }
    let filter = read_filter(&section, shared.topic);
    let fields = read_fields(&section, shared.key);
    let place = section.place("name");
    let handler = HandlerConfig {
        name: name?,
        kind: kind?.text,
        retry: retry_config,
        on_exhausted: on_exhausted.unwrap_or(HandlerConfig::on_exhausted_by_default(ordering)),
        filter,
        fields,
        options: section.rest(),
    };
    for problem in (shared.check)(&handler) {
        section.problem(problem.key.as_deref().unwrap_or("type"), problem.message);
    }
    Some((handler, place))
}

/// `latest`, `earliest`, or a replay ID in hexadecimal.
fn parse_start(text: &str) -> Result<Start, String> {
    match text {
        "latest" => Ok(Start::Latest),
        "earliest" => Ok(Start::Earliest),
        other => other.parse().map(Start::After).map_err(|_| {
            "expected latest, earliest or a replay ID in hexadecimal, as orgstream prints it"
                .to_owned()
        }),
    }
}

/// A name that is safe in a metric label, a URL and a SQL prompt.
pub(crate) fn valid_name(text: &str) -> Result<String, String> {
    let mut bytes = text.bytes();
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if text.len() <= NAME_LENGTH
        && bytes.next().is_some_and(plain)
        && bytes.all(|b| plain(b) || b == b'_' || b == b'-')
    {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "expected at most {NAME_LENGTH} lower-case letters, digits, _ and -, the first a letter or digit"
        ))
    }
}

/// The subscriptions of `ORGSTREAM_TOPICS`: topics with commas or white space between them, each on its
/// own or as `NAME=TOPIC`. Each is handed to `log`.
fn from_topics(topics: &str, reader: &Reader<'_>) -> Vec<Read> {
    let mut all = Vec::new();
    let problem = |message: String| reader.problem(Place::variable(TOPICS), message);
    for part in topics.split([',', ' ', '\t', '\r', '\n']) {
        if part.is_empty() {
            continue;
        }
        let (name, topic) = match part.split_once('=') {
            Some((name, topic)) => (Some(name), topic),
            None => (None, part),
        };
        let topic = match topic.parse::<Topic>() {
            Ok(topic) => topic,
            // Topics are no secret, and of several one has to know which.
            Err(error) => {
                problem(error.to_string());
                continue;
            }
        };
        let name = name.map_or_else(|| name_from(&topic), str::to_owned);
        match valid_name(&name) {
            Ok(name) => {
                let mut config = SubscriptionConfig::new(name, topic);
                config.handlers = vec![HandlerConfig::new("log")];
                all.push(Read {
                    config,
                    name_place: Place::variable(TOPICS),
                    topic_place: Place::variable(TOPICS),
                });
            }
            Err(error) => problem(format!("the name of {topic}: {error}; write NAME={topic}")),
        }
    }
    all
}

/// The name of a subscription that was given only its topic: the topic's last part in lower case, without
/// what marks its kind. It depends on nothing else, so that adding a topic renames no other subscription.
pub(super) fn name_from(topic: &Topic) -> String {
    let name = topic.name();
    let stem = ["__ChangeEvent", "ChangeEvent", "__e", "__chn"]
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))
        .unwrap_or(name);
    stem.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_topic_alone() {
        for (topic, name) in [
            ("/data/AccountChangeEvent", "account"),
            ("/data/Employee__ChangeEvent", "employee"),
            ("/data/ChangeEvents", "changeevents"),
            ("/data/Sales__chn", "sales"),
            ("/event/Order__e", "order"),
            ("/event/acme__Order__e", "acme__order"),
            ("/event/LoginEventStream", "logineventstream"),
        ] {
            assert_eq!(name_from(&topic.parse().unwrap()), name);
        }
    }

    #[test]
    fn names_are_plain() {
        for good in ["a", "0", "accounts-2_b", &"x".repeat(63)] {
            assert!(valid_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "_a", "A", "a b", "ä", "a/b", &"x".repeat(64)] {
            assert!(valid_name(bad).is_err(), "{bad}");
        }
    }
}
