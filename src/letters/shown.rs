//! What people are shown of parked events: no more than their handlers are.

use std::collections::HashSet;
use std::path::Path;

use crate::config::{self, Ordering, ProcessEnv, SubscriptionConfig};
use crate::event::Decoded;
use crate::shape::Shape;
use crate::store::{LetterSummary, StoredDeadLetter};

/// What the configuration says of subscriptions and of what their handlers are shown, as far as it can be read here:
/// where commands run, the org's credentials may be missing.
pub(crate) struct Configured(Result<Vec<SubscriptionConfig>, String>);

/// How an event is shown: under each of these in turn. Under none, all of it is.
#[derive(Default)]
pub(crate) struct Shapes(Vec<Shape>);

impl Configured {
    /// Reads the configuration, as far as it is needed. That it cannot be read matters only where an event is to be
    /// shown.
    pub(crate) fn load(path: Option<&Path>) -> Self {
        let read = config::load_subscriptions(path, &ProcessEnv);
        Self(read.map_err(|error| match error.problems() {
            [] => error.to_string(),
            [one] => one.to_string(),
            [first, more @ ..] => format!("{first}, and {} more", more.len()),
        }))
    }

    /// Those that are configured; none where that cannot be read.
    fn subscriptions(&self) -> &[SubscriptionConfig] {
        self.0.as_deref().unwrap_or_default()
    }

    /// Subscriptions in which nothing is held back.
    pub(crate) fn unordered(&self) -> HashSet<String> {
        let all = self.subscriptions().iter();
        let unordered = all.filter(|one| one.ordering != Ordering::Record);
        unordered.map(|one| one.name.clone()).collect()
    }

    /// True where the subscription is configured, and the letter's handler is not: nobody could be given it.
    pub(crate) fn has_no_handler(&self, letter: &LetterSummary) -> bool {
        let mut all = self.subscriptions().iter();
        let subscription = all.find(|one| one.name == letter.subscription);
        match (subscription, &letter.handler) {
            (Some(subscription), Some(name)) => !subscription
                .handlers
                .iter()
                .any(|handler| handler.name == *name),
            _ => false,
        }
    }

    /// How this event may be shown: as its handler is shown it. One that could not be decoded for anyone, or whose
    /// handler is configured no more, has everything hidden that any handler is not shown; where that is nothing by
    /// now, although something was hidden when it was parked, nobody can tell.
    ///
    /// # Errors
    ///
    /// Why nobody can tell; then nothing of it is to be shown.
    pub(crate) fn shapes(&self, stored: &StoredDeadLetter) -> Result<Shapes, String> {
        let name = &stored.subscription;
        let all = self.0.as_ref().map_err(|why| {
            format!(
                "the configuration, which says what may be shown of it, cannot be read here ({why}): run this where \
                 the daemon runs, or name its file with --config"
            )
        })?;
        let subscription = all.iter().find(|one| one.name == *name).ok_or_else(|| {
            format!(
                "subscription `{name}` is not in the configuration that is read here, which says what may be shown of \
                 it: run this where the daemon runs, or name its file with --config; or, if it was taken away, add it \
                 to the file again, with the `fields` that its handlers had"
            )
        })?;
        let handlers = &subscription.handlers;
        let named = stored.letter.handler.as_ref();
        let own = named.and_then(|own| handlers.iter().position(|one| one.name == *own));
        let hiding = match own {
            Some(number) => &handlers[number..=number],
            None => &handlers[..],
        };
        let shapes: Vec<Shape> = hiding
            .iter()
            .filter_map(|one| Shape::new(&one.fields))
            .collect();
        if let (Some(gone), None, true, true) =
            (named, own, stored.letter.sealed, shapes.is_empty())
        {
            return Err(format!(
                "something was hidden from handlers when it was parked, and its handler `{gone}` is configured no \
                 more, nor is any that hides something: add it to the file again, with the `fields` that it had"
            ));
        }
        Ok(Shapes(shapes))
    }
}

impl Shapes {
    /// True where all of it is shown, so that its bytes may be, too.
    pub(crate) fn show_all(&self) -> bool {
        self.0.is_empty()
    }

    /// What is shown of it.
    pub(crate) fn apply(&self, decoded: Decoded) -> Result<Decoded, String> {
        let mut shapes = self.0.iter();
        shapes
            .try_fold(decoded, |decoded, shape| shape.apply(&decoded))
            .map_err(|error| error.to_string())
    }
}

/// Why the bytes of an event are not shown.
pub(crate) const BYTES_HIDDEN: &str =
    "its bytes are not shown, because `fields` hides a part of them from its handler";

/// The bytes of an event that may be shown.
///
/// # Errors
///
/// Why not.
pub(crate) fn bytes<'a>(
    stored: &'a StoredDeadLetter,
    shapes: Result<&Shapes, &String>,
) -> Result<&'a [u8], String> {
    match (shapes, &stored.unreadable) {
        (Err(why), _) => Err(why.clone()),
        (Ok(_), Some(why)) => Err(why.clone()),
        (Ok(shapes), None) if shapes.show_all() => Ok(&stored.letter.payload),
        (Ok(_), None) => Err(BYTES_HIDDEN.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FieldsConfig, HandlerConfig};
    use crate::store::StoredDeadLetter;

    fn configured() -> Configured {
        let mut config = SubscriptionConfig::new("orders", "Order__e".parse().unwrap());
        let handler = |name: &str, mask: &[&str]| HandlerConfig {
            name: name.to_owned(),
            fields: FieldsConfig {
                mask: mask.iter().map(|name| (*name).to_owned()).collect(),
                ..FieldsConfig::default()
            },
            ..HandlerConfig::new("log")
        };
        config.handlers = vec![
            handler("all", &[]),
            handler("a", &["A"]),
            handler("b", &["B"]),
        ];
        Configured(Ok(vec![config]))
    }

    fn letter(handler: Option<&str>) -> StoredDeadLetter {
        let mut stored = crate::letters::tests::stored();
        stored.letter.handler = handler.map(str::to_owned);
        stored
    }

    fn shown(handler: Option<&str>) -> (String, bool) {
        let stored = letter(handler);
        let shapes = configured().shapes(&stored).unwrap();
        let decoded = Decoded {
            record_name: "Order__e".into(),
            header: None,
            data: bytes::Bytes::from_static(br#"{"A":1,"B":2,"C":3}"#),
            ignored_bits: 0,
        };
        let data = shapes.apply(decoded).unwrap().data;
        let bytes = super::bytes(&stored, Ok(&shapes)).is_ok();
        (String::from_utf8(data.to_vec()).unwrap(), bytes)
    }

    #[test]
    fn an_event_is_shown_as_its_handler_is_shown_it() {
        assert_eq!(shown(Some("all")), (r#"{"A":1,"B":2,"C":3}"#.into(), true));
        assert_eq!(
            shown(Some("a")),
            (r#"{"A":"***","B":2,"C":3}"#.into(), false)
        );
    }

    #[test]
    fn an_event_of_everyone_or_of_nobody_any_more_is_shown_as_the_strictest_would_have_it() {
        for handler in [None, Some("gone")] {
            let hidden = r#"{"A":"***","B":"***","C":3}"#;
            assert_eq!(shown(handler), (hidden.into(), false));
        }
    }

    #[test]
    fn where_nobody_can_tell_what_may_be_shown_nothing_is() {
        let mut elsewhere = letter(Some("all"));
        elsewhere.subscription = "others".into();
        let why = configured().shapes(&elsewhere).err().unwrap();
        assert!(
            why.contains("`others` is not in the configuration"),
            "{why}"
        );
        assert!(why.contains("add it to the file again"), "{why}");
        let unread = Configured(Err("no".to_owned()));
        let why = unread.shapes(&letter(Some("all"))).err().unwrap();
        assert!(why.contains("cannot be read here (no)"), "{why}");
        assert_eq!(super::bytes(&elsewhere, Err(&why)), Err(why.clone()));
    }

    #[test]
    fn a_sealed_letter_of_a_handler_that_is_gone_is_not_shown_where_nobody_left_hides_anything() {
        let mut configured = configured();
        if let Ok(all) = &mut configured.0 {
            all[0].handlers.truncate(1);
        }
        let mut stored = letter(Some("a"));
        assert!(configured.shapes(&stored).unwrap().show_all());
        stored.letter.sealed = true;
        let why = configured.shapes(&stored).err().unwrap();
        assert!(
            why.contains("`a` is configured no more") && !why.contains("`all`"),
            "{why}"
        );
        assert_eq!(super::bytes(&stored, Err(&why)), Err(why.clone()));
        // As long as its handler, or one that hides something, is there, that says what is shown.
        stored.letter.handler = Some("all".into());
        assert!(configured.shapes(&stored).unwrap().show_all());
        stored.letter.handler = Some("a".into());
        assert!(
            !super::tests::configured()
                .shapes(&stored)
                .unwrap()
                .show_all()
        );
    }

    #[test]
    fn what_cannot_be_read_says_so() {
        let mut stored = letter(Some("all"));
        stored.unreadable = Some("no key".to_owned());
        let shapes = configured().shapes(&stored).unwrap();
        assert_eq!(super::bytes(&stored, Ok(&shapes)), Err("no key".to_owned()));
    }
}
