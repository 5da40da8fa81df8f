//! Topic names and what they say about their events.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Text that is not a topic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{given}` is not a topic: expected /event/Name__e, /data/NameChangeEvent, /data/ChangeEvents, \
     a channel such as /data/Name__chn, or one of the short forms Name__e and Account"
)]
pub struct InvalidTopic {
    /// What was given.
    pub given: String,
}

/// What kind of stream a topic names (facts 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TopicKind {
    /// `/event/Order__e`: one platform event.
    PlatformEvent,
    /// `/event/Orders__chn`: a custom channel of platform events.
    PlatformEventChannel,
    /// `/data/AccountChangeEvent`: changes of one object.
    ChangeEvent,
    /// `/data/ChangeEvents` and `/data/Sales__chn`: changes of several objects.
    ChangeEventChannel,
}

/// A topic's full path, for example `/data/AccountChangeEvent`. Case matters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

impl Topic {
    /// The full path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last part of the path: `AccountChangeEvent`.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// What kind of stream this is.
    pub fn kind(&self) -> TopicKind {
        let channel = self.0.ends_with("__chn");
        if self.0.starts_with("/event/") {
            if channel {
                TopicKind::PlatformEventChannel
            } else {
                TopicKind::PlatformEvent
            }
        } else if channel || self.name() == "ChangeEvents" {
            TopicKind::ChangeEventChannel
        } else {
            TopicKind::ChangeEvent
        }
    }

    /// The API name of the object whose changes the stream carries: `Account`, `Employee__c`. `None` where it carries
    /// those of several, or no changes.
    pub fn entity(&self) -> Option<String> {
        let name = self.name().strip_suffix("ChangeEvent")?;
        (self.kind() == TopicKind::ChangeEvent).then(|| match name.strip_suffix("__") {
            Some(custom) => format!("{custom}__c"),
            None => name.to_owned(),
        })
    }

    /// True where several kinds of event share the stream. There GetTopic names no schema, and several
    /// events may carry one replay ID (design 3.1, rule 1).
    pub fn is_channel(&self) -> bool {
        matches!(
            self.kind(),
            TopicKind::PlatformEventChannel | TopicKind::ChangeEventChannel
        )
    }
}

impl FromStr for Topic {
    type Err = InvalidTopic;

    fn from_str(given: &str) -> Result<Self, InvalidTopic> {
        let text = given.trim();
        let invalid = || InvalidTopic {
            given: given.to_owned(),
        };
        let path = match text.strip_prefix('/') {
            Some(_) => text.to_owned(),
            None if text.contains('/') => return Err(invalid()),
            None if text.ends_with("__e") => format!("/event/{text}"),
            None if text.ends_with("__chn") => return Err(invalid()), // of data or of events: unknown
            None if text == "ChangeEvents" || text.ends_with("ChangeEvent") => {
                format!("/data/{text}")
            }
            None => match text.strip_suffix("__c") {
                Some(custom) => format!("/data/{custom}__ChangeEvent"),
                None => format!("/data/{text}ChangeEvent"),
            },
        };
        let name = path
            .strip_prefix("/event/")
            .or_else(|| path.strip_prefix("/data/"))
            .ok_or_else(invalid)?;
        let valid_name = name.len() <= 255
            && name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let valid_kind = path.starts_with("/event/")
            || name == "ChangeEvents"
            || name.ends_with("__chn")
            || name
                .strip_suffix("ChangeEvent")
                .is_some_and(|entity| !entity.is_empty());
        if valid_name && valid_kind {
            Ok(Self(path.into()))
        } else {
            Err(invalid())
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_forms_become_full_paths() {
        for (given, path) in [
            ("Account", "/data/AccountChangeEvent"),
            ("Employee__c", "/data/Employee__ChangeEvent"),
            ("AccountChangeEvent", "/data/AccountChangeEvent"),
            ("ChangeEvents", "/data/ChangeEvents"),
            ("Order__e", "/event/Order__e"),
            (" /event/LoginEventStream ", "/event/LoginEventStream"),
            ("/data/Sales__chn", "/data/Sales__chn"),
        ] {
            assert_eq!(given.parse::<Topic>().unwrap().as_str(), path);
        }
    }

    #[test]
    fn malformed_topics_are_refused() {
        for given in [
            "",
            "/",
            "/event/",
            "/topic/X",
            "event/Order__e",
            "/data/Account",
            "/data/ChangeEvent",
            "Sales__chn",
            "/event/Order e",
            "/event/Order__e/x",
            "/event/1Order__e",
        ] {
            assert!(given.parse::<Topic>().is_err(), "{given}");
        }
    }

    #[test]
    fn kinds_follow_the_path() {
        let kind = |text: &str| text.parse::<Topic>().unwrap().kind();
        assert_eq!(kind("/event/Order__e"), TopicKind::PlatformEvent);
        assert_eq!(kind("/event/Orders__chn"), TopicKind::PlatformEventChannel);
        assert_eq!(kind("/data/AccountChangeEvent"), TopicKind::ChangeEvent);
        assert_eq!(kind("/data/ChangeEvents"), TopicKind::ChangeEventChannel);
        assert_eq!(kind("/data/Sales__chn"), TopicKind::ChangeEventChannel);
    }

    #[test]
    fn a_topic_of_changes_of_one_object_names_it() {
        for (topic, entity) in [
            ("/data/AccountChangeEvent", Some("Account")),
            ("/data/Employee__ChangeEvent", Some("Employee__c")),
            ("/data/acme__Rig__ChangeEvent", Some("acme__Rig__c")),
            ("/data/ChangeEvents", None),
            ("/data/Sales__chn", None),
            ("/event/Order__e", None),
            ("/event/OddChangeEvent", None),
        ] {
            let found = topic.parse::<Topic>().unwrap().entity();
            assert_eq!(found.as_deref(), entity, "{topic}");
        }
    }
}
