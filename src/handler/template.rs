//! Names at a far side that are made of what an event says of itself: a stream, a topic, a subject, a routing key.

use std::fmt;

use crate::event::Event;

/// A name with placeholders, for example `salesforce.{topic}`.
///
/// | placeholder | stands for |
/// | --- | --- |
/// | `{topic}` | last part of the topic: `AccountChangeEvent`, `Order__e`, `ChangeEvents` |
/// | `{entity}` | object of a change event, name of a platform event: `Account`, `Order__e` |
/// | `{subscription}` | name of the subscription |
/// | `{org}` | 18-character organization ID |
///
/// What is put in has ASCII letters, digits, `_` and `-` only: any other character becomes `_`, so nothing that comes from
/// outside can add a level to a name or a wildcard. What is written around the placeholders stays as it is.
///
/// ```
/// # use orgstream::handler::Template;
/// assert!(Template::parse("salesforce.{topic}").is_ok());
/// let error = Template::parse("salesforce.{topics}").unwrap_err();
/// assert_eq!(error, "has no placeholder {topics}, did you mean {topic}?");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Of(Placeholder),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placeholder {
    Topic,
    Entity,
    Subscription,
    Org,
}

impl Placeholder {
    const ALL: [(&'static str, Self); 4] = [
        ("topic", Self::Topic),
        ("entity", Self::Entity),
        ("subscription", Self::Subscription),
        ("org", Self::Org),
    ];

    fn of_name(name: &str) -> Option<Self> {
        let (_, placeholder) = Self::ALL.iter().find(|(known, _)| *known == name)?;
        Some(*placeholder)
    }
}

impl Template {
    /// Reads a name with placeholders.
    ///
    /// # Errors
    ///
    /// What is wrong and what would be right; reads on after the key of an option
    /// ([`Options::invalid`](super::Options::invalid)).
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("must not be blank".to_owned());
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err("must not have white space or control characters".to_owned());
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, braced) = rest.split_at(at);
            let inner = braced.strip_prefix('{').and_then(|b| b.split_once('}'));
            let Some((name, after)) = inner else {
                return Err(format!(
                    "has a brace without its other half; the placeholders are {}",
                    known()
                ));
            };
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(Part::Of(
                Placeholder::of_name(name).ok_or_else(|| unknown(name))?,
            ));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self {
            text: text.to_owned(),
            parts,
        })
    }

    /// The name for an event that came through this subscription.
    pub fn render(&self, subscription: &str, event: &Event) -> String {
        let mut name = String::with_capacity(self.text.len() + 24);
        for part in &self.parts {
            match part {
                Part::Text(text) => name.push_str(text),
                Part::Of(Placeholder::Topic) => push_safe(&mut name, event.source.topic().name()),
                Part::Of(Placeholder::Entity) => push_safe(&mut name, entity(event)),
                Part::Of(Placeholder::Subscription) => push_safe(&mut name, subscription),
                Part::Of(Placeholder::Org) => push_safe(&mut name, event.source.org_id().as_str()),
            }
        }
        name
    }

    /// The name with the same text in the place of every placeholder: for looking at a far side before there is an event.
    pub fn filled(&self, text: &str) -> String {
        let part = |part: &Part| match part {
            Part::Text(own) => own.clone(),
            Part::Of(_) => text.to_owned(),
        };
        self.parts.iter().map(part).collect()
    }

    /// The name, where it is the same for every event: known before there is one.
    pub fn fixed(&self) -> Option<&str> {
        let fixed = self.parts.iter().all(|part| matches!(part, Part::Text(_)));
        fixed.then_some(self.text.as_str())
    }

    /// What is written around the placeholders, for a far side that does not take every character.
    pub fn literals(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Of(_) => None,
        })
    }
}

/// As it was written.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

/// The object of a change event, the name of a platform event.
fn entity(event: &Event) -> &str {
    match &event.decoded.header {
        Some(header) => &header.entity_name,
        None => &event.decoded.record_name,
    }
}

fn push_safe(name: &mut String, text: &str) {
    // An empty level is no name for most far sides.
    if text.is_empty() {
        name.push('_');
    }
    name.extend(text.chars().map(|c| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '-' => c,
        _ => '_',
    }));
}

fn known() -> String {
    let names = Placeholder::ALL.map(|(name, _)| format!("{{{name}}}"));
    names.join(", ")
}

fn unknown(name: &str) -> String {
    let names = Placeholder::ALL.iter().map(|(name, _)| *name);
    match super::options::nearest(name, names) {
        Some(nearest) => format!("has no placeholder {{{name}}}, did you mean {{{nearest}}}?"),
        None => format!("has no placeholder {{{name}}}: there are {}", known()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::batch;
    use super::*;

    fn rendered(template: &str) -> String {
        let batch = batch(&["{}"]);
        let template = Template::parse(template).unwrap();
        template.render(&batch.subscription, &batch.events[0])
    }

    #[test]
    fn every_placeholder_has_its_value() {
        assert_eq!(
            rendered("sf:{org}.{topic}/{entity}-{subscription}"),
            "sf:00D58000000arpqEAA.Order__e/Order__e-orders"
        );
        assert_eq!(rendered("plain"), "plain");
        assert_eq!(rendered("{topic}"), "Order__e");
    }

    #[test]
    fn a_name_without_placeholders_is_known_beforehand() {
        assert_eq!(Template::parse("a.b").unwrap().fixed(), Some("a.b"));
        assert_eq!(Template::parse("a.{topic}").unwrap().fixed(), None);
        let template = Template::parse("a.{topic}.b").unwrap();
        assert_eq!(template.literals().collect::<Vec<_>>(), ["a.", ".b"]);
        assert_eq!(template.to_string(), "a.{topic}.b");
        assert_eq!(template.filled("*"), "a.*.b");
    }

    #[test]
    fn what_is_wrong_with_a_template_is_said() {
        let reason = |text: &str| Template::parse(text).unwrap_err();
        assert_eq!(reason(" "), "must not be blank");
        assert!(reason("a b").contains("white space"));
        for text in ["a{", "a}", "{topic}}", "{", "{topic"] {
            assert!(reason(text).contains("brace"), "{text}");
        }
        assert_eq!(
            reason("{Topic}"),
            "has no placeholder {Topic}, did you mean {topic}?"
        );
        assert!(reason("{zzz}").ends_with("there are {topic}, {entity}, {subscription}, {org}"));
        // A brace within a placeholder is no name of one.
        assert!(reason("{{topic}}").contains("no placeholder"));
    }

    proptest! {
        #[test]
        fn what_comes_from_outside_is_one_plain_part(name in ".{0,30}") {
            let mut batch = batch(&["{}"]);
            let event = std::sync::Arc::make_mut(&mut batch.events[0]);
            event.decoded.record_name = name.as_str().into();
            let got = Template::parse("{entity}").unwrap().render("s", event);
            prop_assert!(!got.is_empty());
            prop_assert!(got.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'), "{}", got);
        }
    }
}
