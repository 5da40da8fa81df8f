//! What a handler is given of events: `entity`, `change`, `changed` and `fields` of a
//! `[[subscription.handler]]`.

use secrecy::{ExposeSecret as _, SecretString};

use super::error::nearest;
use super::section::{Given, Section, Var};
use super::store::KEY_LENGTH;
use crate::event::{ChangeType, Topic, TopicKind};

/// Which change events a handler is given: those that all of these let through. Empty lists let all through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilterConfig {
    /// API names of objects.
    pub entity: Vec<String>,
    /// Kinds of change.
    pub change: Vec<ChangeType>,
    /// Fields, one of which an update has to change; says nothing of other changes.
    pub changed: Vec<String>,
}

/// What a handler is given of an event's fields, each by its name in the header: `Phone`,
/// `BillingAddress.City`. The name of a compound field stands for all of its components.
#[derive(Debug, Clone, Default)]
pub struct FieldsConfig {
    /// All others are left out; `None` leaves none out.
    pub only: Option<Vec<String>>,
    /// These are left out.
    pub without: Vec<String>,
    /// The value of these is `***`.
    pub mask: Vec<String>,
    /// The value of these is its HMAC-SHA256.
    pub hash: Vec<String>,
    /// The key of `hash`, which needs it: `ORGSTREAM_HASH_KEY`.
    pub hash_key: Option<SecretString>,
}

impl FieldsConfig {
    /// True where anything of an event may be hidden.
    pub fn hides(&self) -> bool {
        let lists = [&self.without, &self.mask, &self.hash];
        self.only.is_some() || lists.into_iter().any(|list| !list.is_empty())
    }

    /// True where both hide the same in the same way.
    pub fn is_same(&self, other: &Self) -> bool {
        let lists = |one: &Self| {
            let Self {
                only,
                without,
                mask,
                hash,
                hash_key,
            } = one.clone();
            let key = hash_key.map(|key| key.expose_secret().to_owned());
            (only, without, mask, hash, key)
        };
        lists(self) == lists(other)
    }
}

/// Kinds of change that can be named.
const CHANGES: [ChangeType; 10] = [
    ChangeType::Create,
    ChangeType::Update,
    ChangeType::Delete,
    ChangeType::Undelete,
    ChangeType::GapCreate,
    ChangeType::GapUpdate,
    ChangeType::GapDelete,
    ChangeType::GapUndelete,
    ChangeType::GapOverflow,
    ChangeType::Snapshot,
];

/// Keys that look at the change header.
const BY_CHANGE: [&str; 3] = ["entity", "change", "changed"];

/// Which events; `topic` is `None` where it is not known.
pub(super) fn read_filter(section: &Section<'_>, topic: Option<&Topic>) -> FilterConfig {
    let platform_event = topic.is_some_and(|topic| {
        let kind = topic.kind();
        matches!(
            kind,
            TopicKind::PlatformEvent | TopicKind::PlatformEventChannel
        )
    });
    for key in BY_CHANGE.into_iter().filter(|key| section.has(key)) {
        if platform_event {
            section.problem(
                key,
                "is for change events; a platform event has no entity, kind of change or changed fields, so take it \
                 away",
            );
        }
    }
    let [entity, change, changed] = BY_CHANGE.map(|key| {
        let given = section.texts(key);
        if given.as_ref().is_some_and(Vec::is_empty) {
            section.problem(
                key,
                "names nothing, so that no event would be wanted; take it away to want all",
            );
        }
        given.unwrap_or_default()
    });
    let entities = accepted(section, &entity, field_name);
    if entities.len() == entity.len() {
        check_entity(section, topic, &entities);
    }
    FilterConfig {
        entity: entities,
        change: accepted(section, &change, change_type),
        changed: accepted(section, &changed, field_name),
    }
}

/// A topic of one object's changes says which they are: none of another would ever come.
fn check_entity(section: &Section<'_>, topic: Option<&Topic>, given: &[String]) {
    let Some(entity) = topic.and_then(Topic::entity) else {
        return;
    };
    // Changes of an external object come on a topic that is named as a custom object's.
    let external = entity.strip_suffix("__c").map(|stem| format!("{stem}__x"));
    let comes = |one: &String| *one == entity || Some(one) == external.as_ref();
    if given.is_empty() || given.iter().any(comes) {
        return;
    }
    section.problem(
        "entity",
        format!(
            "the topic carries changes of {entity} alone, and none of them would be wanted: write {entity}, capitals \
             included, or take it away"
        ),
    );
}

/// What of their fields; `key` is the field that orders a platform event.
pub(super) fn read_fields(section: &Section<'_>, key: Option<&str>) -> FieldsConfig {
    let fields = section.table("fields");
    let names = |list: &'static str| {
        let given = fields.texts(list)?;
        // Of an empty `only` nothing is left, which hides more than was meant, and not less.
        if given.is_empty() && list != "only" {
            fields.problem(
                list,
                "names nothing, so that nothing would be hidden; take it away",
            );
        }
        Some(accepted(&fields, &given, shown_name))
    };
    let config = FieldsConfig {
        only: names("only"),
        without: names("without").unwrap_or_default(),
        mask: names("mask").unwrap_or_default(),
        hash: names("hash").unwrap_or_default(),
        hash_key: None,
    };
    check_together(&fields, &config, key);
    let variable = Var::Named("ORGSTREAM_HASH_KEY");
    let hash_key = if config.hash.is_empty() {
        fields.know("hash_key");
        None
    } else {
        fields.needed(
            "hash_key",
            variable,
            "`hash` needs it: under the same key the same value has the same hash; make one with `openssl rand -hex 32`",
        )
    };
    if let Some(given) = &hash_key
        && given.text.chars().count() < KEY_LENGTH
    {
        fields.reader().problem(
            given.place.clone(),
            format!(
                "is shorter than {KEY_LENGTH} characters; make one with `openssl rand -hex 32`"
            ),
        );
    }
    fields.finish();
    FieldsConfig {
        hash_key: hash_key.map(|given| given.text.into()),
        ..config
    }
}

/// What the lists say of the same field must not contradict itself.
fn check_together(fields: &Section<'_>, config: &FieldsConfig, key: Option<&str>) {
    if config.only.is_some() && !config.without.is_empty() {
        fields.problem(
            "without",
            "`only` says already what is left: take one of the two away",
        );
    }
    let lists = [
        ("without", &config.without),
        ("mask", &config.mask),
        ("hash", &config.hash),
    ];
    for (number, (list, names)) in lists.iter().enumerate() {
        for name in *names {
            let others = lists.iter().skip(number + 1);
            let mut others = others.flat_map(|(list, names)| names.iter().map(move |n| (list, n)));
            if let Some((other, named)) = others.find(|(_, other)| overlap(name, other)) {
                fields.problem(
                    list,
                    format!("`{name}` meets `{named}` in `{other}`: a field is in one of them"),
                );
            }
            let only = config.only.as_ref().filter(|_| *list != "without");
            if only.is_some_and(|only| !only.iter().any(|kept| is_within(name, kept))) {
                fields.problem(
                    list,
                    format!("`{name}` is left out by `only`: name it there too, or nowhere"),
                );
            }
        }
    }
    let Some(key) = key else { return };
    if let Some(only) = &config.only
        && !only.iter().any(|kept| is_within(key, kept))
    {
        fields.problem(
            "only",
            format!(
                "leaves `{key}` out, which is the `key` of the subscription: its value is the event's subject and is \
                 in the store, for all to see; name it, too, or choose another `key`"
            ),
        );
    }
    let hidden = lists.iter().find_map(|(list, names)| {
        let it = names.iter().any(|name| overlap(name, key));
        it.then_some(*list)
    });
    if let Some(list) = hidden {
        fields.problem(
            list,
            format!(
                "hides `{key}`, which is the `key` of the subscription: its value is the event's subject and is in \
                 the store, for all to see; show it, or choose another `key`"
            ),
        );
    }
}

fn overlap(one: &str, other: &str) -> bool {
    is_within(one, other) || is_within(other, one)
}

/// True where a field is this one, or a component of it.
pub(crate) fn is_within(path: &str, field: &str) -> bool {
    path.strip_prefix(field)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// What the texts stand for; a note of each that cannot be used.
fn accepted<T>(
    section: &Section<'_>,
    given: &[Given],
    parse: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let each = given.iter();
    each.filter_map(|given| section.accepted(given, &parse))
        .collect()
}

/// The name of an entity, or of a field: `Account`, `Phone`, `BillingAddress.City`.
fn field_name(text: &str) -> Result<String, String> {
    let part = |part: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        !part.is_empty() && part.bytes().all(plain)
    };
    if text.split('.').all(part) {
        Ok(text.to_owned())
    } else {
        Err("expected an API name, such as Phone, Email__c or BillingAddress.City".to_owned())
    }
}

/// The name of a field that can be hidden.
fn shown_name(text: &str) -> Result<String, String> {
    match text.split('.').next() {
        Some("ChangeEventHeader") => Err(
            "the header of a change event is always given; name fields of the record".to_owned(),
        ),
        _ => field_name(text),
    }
}

fn change_type(text: &str) -> Result<ChangeType, String> {
    let word = |one: &ChangeType| one.symbol().to_ascii_lowercase();
    if let Some(found) = CHANGES.iter().find(|one| word(one) == text) {
        return Ok(found.clone());
    }
    let words: Vec<String> = CHANGES.iter().map(word).collect();
    let hint = nearest(text, words.iter().map(String::as_str));
    let hint = hint.map(|word| format!("; did you mean {word}?"));
    Err(format!(
        "expected one of {}{}",
        words.join(", "),
        hint.unwrap_or_default()
    ))
}
