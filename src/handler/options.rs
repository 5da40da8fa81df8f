//! Typed reading of a handler's own configuration keys, with every problem reported at once.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use secrecy::SecretString;

use super::registry::HandlerConfigError;
use crate::config::{HandlerConfig, parse_bytes, parse_duration};

/// What is wrong with one key of a `[[subscription.handler]]`. Never shows a value: it may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionProblem {
    /// No such key.
    #[error("unknown key `{key}`{}", hint(.nearest.as_deref(), .known))]
    Unknown {
        /// As written.
        key: String,
        /// The key probably meant.
        nearest: Option<String>,
        /// All keys of this type of handler.
        known: Vec<&'static str>,
    },
    /// A value of another type than the key takes.
    #[error("`{key}` must be {expected}, but is a value of type {found}")]
    WrongType {
        /// Dotted path of the key, for example `headers.Accept`.
        key: String,
        /// What the key takes.
        expected: &'static str,
        /// TOML type found.
        found: &'static str,
    },
    /// A key without which the handler cannot work.
    #[error("`{key}` is missing: give it {expected}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What the key takes.
        expected: &'static str,
    },
    /// A value of the right type that cannot be used.
    #[error("`{key}` {reason}")]
    Invalid {
        /// Dotted path of the key.
        key: String,
        /// What is wrong and what would be right; reads on after the key.
        reason: String,
    },
}

impl OptionProblem {
    /// The key it is about, so that a reader of the file can find the line. Dotted where it lies in a table.
    pub fn key(&self) -> &str {
        match self {
            Self::Unknown { key, .. } | Self::WrongType { key, .. } | Self::Invalid { key, .. } => {
                key
            }
            Self::Missing { key, .. } => key,
        }
    }
}

fn hint(nearest: Option<&str>, known: &[&str]) -> String {
    match nearest {
        Some(nearest) => format!(", did you mean `{nearest}`?"),
        None if known.is_empty() => ": this type of handler has no keys of its own".to_owned(),
        None => format!(": this type of handler has the keys {}", known.join(", ")),
    }
}

/// The candidate most like `given`, where one is like enough to be a slip of the finger.
pub(super) fn nearest<'a>(
    given: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let given = given.to_ascii_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&given, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Reads the options of one handler. Each accessor makes its key a known one and notes what is wrong
/// with its value; [`Options::finish`] then reports all of it, with the keys that nobody read.
///
/// ```
/// # use orgstream::{config::HandlerConfig, handler::{HandlerConfigError, Options}};
/// # use std::time::Duration;
/// struct Settings { queue: String, timeout: Duration }
///
/// fn settings(config: &HandlerConfig) -> Result<Settings, HandlerConfigError> {
///     let mut options = Options::new(config);
///     let queue = options.required_text("queue", "the name of a queue");
///     let timeout = options.duration("timeout", Duration::from_secs(30));
///     options.finish(queue.map(|queue| Settings { queue, timeout }))
/// }
/// ```
#[derive(Debug)]
pub struct Options<'a> {
    config: &'a HandlerConfig,
    known: Vec<&'static str>,
    problems: Vec<OptionProblem>,
}

impl<'a> Options<'a> {
    /// Starts reading.
    pub fn new(config: &'a HandlerConfig) -> Self {
        Self {
            config,
            known: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// A text, where the key is there and not blank.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        let value = self.value(key)?;
        let text = value.as_str().map(str::to_owned);
        self.typed(key, "a text", value, text)
    }

    /// A text that the handler cannot do without; `expected` says what the key takes.
    pub fn required_text(&mut self, key: &'static str, expected: &'static str) -> Option<String> {
        if !self.has(key) {
            self.known.push(key);
            self.problems.push(OptionProblem::Missing { key, expected });
            return None;
        }
        self.text(key)
    }

    /// A list of texts that the handler cannot do without; `expected` says what the key takes.
    pub fn required_texts(
        &mut self,
        key: &'static str,
        expected: &'static str,
    ) -> Option<Vec<String>> {
        let Some(value) = self.value(key) else {
            self.problems.push(OptionProblem::Missing { key, expected });
            return None;
        };
        let texts = value.as_array().and_then(|items| {
            let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
            texts.collect::<Option<Vec<_>>>()
        });
        self.typed(key, expected, value, texts)
    }

    /// A duration above zero such as `"30s"`.
    pub fn duration(&mut self, key: &'static str, default: Duration) -> Duration {
        const EXPECTED: &str = "a text with a duration, such as \"500ms\", \"30s\" or \"15m\"";
        let Some(value) = self.value(key) else {
            return default;
        };
        let text = value.as_str();
        match self.typed(key, EXPECTED, value, text).map(parse_duration) {
            None => {}
            Some(Ok(duration)) if duration.is_zero() => self.invalid(key, "must be above zero"),
            Some(Ok(duration)) => return duration,
            Some(Err(reason)) => self.invalid(key, format!("is not a duration: {reason}")),
        }
        default
    }

    /// Whether the value of a key is `true` or `false`, as such or as a text: for keys that take other types too.
    pub fn is_boolean(&self, key: &str) -> bool {
        let value = self.config.options.get(key);
        value.and_then(truth).is_some()
    }

    /// A whole number within `range`. A text with such a number will do too, because `${VAR}` works in
    /// texts only.
    pub fn integer(&mut self, key: &'static str, default: i64, range: RangeInclusive<i64>) -> i64 {
        let Some(value) = self.value(key) else {
            return default;
        };
        let number = value
            .as_integer()
            .or_else(|| value.as_str()?.trim().parse().ok());
        match self.typed(key, "a whole number", value, number) {
            Some(number) if range.contains(&number) => return number,
            Some(_) => self.invalid(
                key,
                format!("must be from {} to {}", range.start(), range.end()),
            ),
            None => {}
        }
        default
    }

    /// `true` or `false`, as such or as a text.
    pub fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        let Some(value) = self.value(key) else {
            return default;
        };
        self.typed(key, "true or false", value, truth(value))
            .unwrap_or(default)
    }

    /// A size in bytes such as `"64KiB"`, or a whole number of bytes, within `range`.
    pub fn bytes(
        &mut self,
        key: &'static str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> usize {
        const EXPECTED: &str = "a text with a size, such as \"64KiB\" or \"1MiB\"";
        let Some(value) = self.value(key) else {
            return default;
        };
        let text = match value {
            toml::Value::Integer(number) => Some(number.to_string()),
            value => value.as_str().map(str::to_owned),
        };
        let text = self.typed(key, EXPECTED, value, text);
        match text.map(|text| parse_bytes(&text)) {
            None => {}
            Some(Ok(bytes)) if range.contains(&bytes) => return bytes,
            Some(Ok(_)) => self.invalid(
                key,
                format!("must be from {} to {} bytes", range.start(), range.end()),
            ),
            Some(Err(reason)) => self.invalid(key, format!("is not a size: {reason}")),
        }
        default
    }

    /// Several texts: a list of them, or one text with commas or white space between them, for `${VAR}` works
    /// in texts only. Empty where the key is not there.
    pub fn texts(&mut self, key: &'static str) -> Vec<String> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let texts = match value {
            toml::Value::Array(items) => items
                .iter()
                .map(|item| item.as_str().map(str::to_owned))
                .collect(),
            value => value.as_str().map(|text| {
                text.split([',', ' ', '\t', '\r', '\n'])
                    .filter(|part| !part.is_empty())
                    .map(str::to_owned)
                    .collect()
            }),
        };
        self.typed(key, "a text or a list of texts", value, texts)
            .unwrap_or_default()
    }

    /// A table of texts, any of which may be a secret; empty where the key is not there.
    pub fn secret_table(&mut self, key: &'static str) -> BTreeMap<String, SecretString> {
        let Some(value) = self.value(key) else {
            return BTreeMap::new();
        };
        let Some(table) = self.typed(key, "a table of texts", value, value.as_table()) else {
            return BTreeMap::new();
        };
        let mut texts = BTreeMap::new();
        for (name, value) in table {
            let path = format!("{key}.{name}");
            if let Some(text) = self.typed(&path, "a text", value, value.as_str()) {
                texts.insert(name.clone(), SecretString::from(text));
            }
        }
        texts
    }

    /// Whether the key is there. A text that is blank counts as left out, as everywhere in the configuration.
    pub fn has(&self, key: &str) -> bool {
        self.config.options.contains_key(key) && !self.is_blank(key)
    }

    /// Whether the key is there with a blank text, for keys that must not count as left out because a variable behind
    /// them is empty.
    pub fn is_blank(&self, key: &str) -> bool {
        let text = self.config.options.get(key).and_then(toml::Value::as_str);
        text.is_some_and(|text| text.trim().is_empty())
    }

    /// Notes that the value of `key`, a dotted path where it lies in a table, cannot be used. `reason`
    /// reads on after the key and must not show the value, which may be a secret.
    pub fn invalid(&mut self, key: impl Into<String>, reason: impl Into<String>) {
        self.problems.push(OptionProblem::Invalid {
            key: key.into(),
            reason: reason.into(),
        });
    }

    /// Ends reading. `settings` is what was made of the options: `None` where one that is needed could
    /// not be had.
    ///
    /// # Errors
    ///
    /// [`HandlerConfigError::Options`] with all problems, unknown keys included.
    pub fn finish<T>(mut self, settings: Option<T>) -> Result<T, HandlerConfigError> {
        let config = self.config;
        for key in config.options.keys() {
            if !self.known.contains(&key.as_str()) {
                self.problems.push(OptionProblem::Unknown {
                    key: key.clone(),
                    nearest: nearest(key, self.known.iter().copied()).map(str::to_owned),
                    known: self.known.clone(),
                });
            }
        }
        match settings {
            Some(settings) if self.problems.is_empty() => Ok(settings),
            _ => Err(HandlerConfigError::Options {
                handler: config.name.clone(),
                kind: config.kind.clone(),
                problems: self.problems,
            }),
        }
    }

    fn value(&mut self, key: &'static str) -> Option<&'a toml::Value> {
        self.known.push(key);
        let value = self.config.options.get(key);
        value.filter(|_| !self.is_blank(key))
    }

    /// Passes `read` on, and notes that `value` has the wrong type where it is `None`.
    fn typed<T>(
        &mut self,
        key: &str,
        expected: &'static str,
        value: &toml::Value,
        read: Option<T>,
    ) -> Option<T> {
        if read.is_none() {
            self.problems.push(OptionProblem::WrongType {
                key: key.to_owned(),
                expected,
                found: value.type_str(),
            });
        }
        read
    }
}

fn truth(value: &toml::Value) -> Option<bool> {
    value
        .as_bool()
        .or_else(|| value.as_str()?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::super::testing::config;
    use super::*;

    #[test]
    fn options_are_read_by_type() {
        let config = config(
            "x",
            r#"
            name = "orders"
            pause = "90s"
            size = 500
            size_from_variable = "12"
            room = "64KiB"
            bytes = 100
            list = ["a b", "c"]
            list_from_variable = "a, b\n c"
            fast = true
            headers = { a = "b" }
            "#,
        );
        let mut options = Options::new(&config);
        assert_eq!(options.text("name").as_deref(), Some("orders"));
        assert_eq!(options.text("nothing"), None);
        assert_eq!(
            options.duration("pause", Duration::ZERO),
            Duration::from_secs(90)
        );
        assert_eq!(options.integer("size", 1, 1..=1000), 500);
        assert_eq!(options.integer("size_from_variable", 1, 1..=1000), 12);
        assert_eq!(options.bytes("room", 1, 1..=1 << 20), 64 << 10);
        assert_eq!(options.bytes("bytes", 1, 1..=1 << 20), 100);
        assert_eq!(options.texts("list"), ["a b", "c"]);
        assert_eq!(options.texts("list_from_variable"), ["a", "b", "c"]);
        assert!(options.texts("nothing").is_empty());
        assert!(options.has("list") && !options.has("nothing"));
        assert!(options.boolean("fast", false));
        assert_eq!(options.secret_table("headers")["a"].expose_secret(), "b");
        assert!(options.finish(Some(())).is_ok());
    }

    #[test]
    fn a_blank_text_counts_as_left_out() {
        let config = config(
            "x",
            "name = ' '\npause = ''\nsize = \"\\n\"\nroom = ''\nfast = ''\nlist = ' '\nheaders = ''\nurl = ''",
        );
        let mut options = Options::new(&config);
        assert_eq!(options.text("name"), None);
        let pause = Duration::from_secs(7);
        assert_eq!(options.duration("pause", pause), pause);
        assert_eq!(options.integer("size", 5, 1..=9), 5);
        assert_eq!(options.bytes("room", 5, 1..=9), 5);
        assert!(options.boolean("fast", true));
        assert!(options.texts("list").is_empty());
        assert!(options.secret_table("headers").is_empty());
        assert!(!options.has("name") && options.is_blank("name"));
        assert!(!options.is_blank("nothing"));
        options.required_text("url", "an address");
        let error = options.finish(Some(())).unwrap_err().to_string();
        assert!(error.contains("`url` is missing"), "{error}");
        assert!(!error.contains("name"), "{error}");
    }

    #[test]
    fn all_problems_come_at_once_and_show_no_value() {
        let config = config(
            "x",
            r#"
            tiemout = "hidden"
            zzz = "hidden"
            size = 5000
            pause = "hidden"
            fast = "hidden"
            room = "2MiB"
            list = ["hidden", 7]
            name = 7
            headers = { a = 1, b = "hidden" }
            "#,
        );
        let mut options = Options::new(&config);
        options.required_text("url", "an address");
        options.text("name");
        options.duration("timeout", Duration::ZERO);
        options.duration("pause", Duration::ZERO);
        options.integer("size", 1, 1..=1000);
        options.boolean("fast", false);
        options.bytes("room", 1, 1..=1 << 20);
        options.texts("list");
        options.secret_table("headers");
        let error = options.finish(Some(())).unwrap_err();
        let HandlerConfigError::Options { problems, .. } = &error else {
            panic!("{error}");
        };
        let keys: Vec<&str> = problems.iter().map(OptionProblem::key).collect();
        assert_eq!(
            keys,
            [
                "url",
                "name",
                "pause",
                "size",
                "fast",
                "room",
                "list",
                "headers.a",
                "tiemout",
                "zzz"
            ]
        );
        let text = error.to_string();
        assert!(text.contains("did you mean `timeout`?"), "{text}");
        assert!(!text.contains("hidden"), "{text}");
    }
}
