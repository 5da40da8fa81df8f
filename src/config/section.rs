//! Reads one section: the file's value first, then the environment's, then nothing. Everything wrong is
//! collected, so that all of it can be mended in one go.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::RangeInclusive;

use super::document::{Entries, Entry, Node};
use super::error::{Place, nearest};
use super::interpolate::interpolate;
use super::reader::Reader;

/// Longest value that a message repeats, in bytes.
const SPOKEN_LENGTH: usize = 80;

/// The environment variable behind a key.
#[derive(Debug, Clone, Copy)]
pub(super) enum Var {
    /// There is none.
    None,
    /// This one.
    Named(&'static str),
    /// For `[salesforce]`: the key in capitals after `SALESFORCE_`, or after its aliases `SF_` and `SFDC_`.
    Salesforce,
}

/// A text value, where it was found, and how to speak of it.
#[derive(Clone)]
pub(super) struct Given {
    /// The value; never blank.
    pub(super) text: String,
    /// Where it stands.
    pub(super) place: Place,
    /// True where the file says it, if only by naming a variable.
    pub(super) from_file: bool,
    /// What a message may call it. A value is repeated only where it stands in the file for all to see.
    spoken: Option<String>,
}

/// What was found for a key.
pub(super) enum Found {
    /// Nothing, or a blank.
    Nothing,
    /// Something that is no text, or names a variable that is not set. That has been noted.
    Bad,
    /// A text.
    Given(Given),
}

/// One table of the document with what the environment has for it.
pub(super) struct Section<'a> {
    reader: &'a Reader<'a>,
    path: String,
    line: Option<usize>,
    entries: Option<&'a Entries>,
    known: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Section<'a> {
    /// The whole document.
    pub(super) fn root(reader: &'a Reader<'a>, entries: Option<&'a Entries>) -> Self {
        Self::new(reader, String::new(), None, entries)
    }

    fn new(
        reader: &'a Reader<'a>,
        path: String,
        line: Option<usize>,
        entries: Option<&'a Entries>,
    ) -> Self {
        Self {
            reader,
            path,
            line,
            entries,
            known: RefCell::default(),
        }
    }

    /// Where values come from and problems go to.
    pub(super) fn reader(&self) -> &'a Reader<'a> {
        self.reader
    }

    /// Where a key of this section stands, or should stand.
    pub(super) fn place(&self, key: &str) -> Place {
        let line = self.entry(key).map(|entry| entry.line).or(self.line);
        Place {
            source: self
                .reader
                .source
                .clone()
                .unwrap_or_else(|| "environment".to_owned()),
            line,
            key: Some(self.path_of(key)),
        }
    }

    /// Notes a problem with a key.
    pub(super) fn problem(&self, key: &str, message: impl Into<String>) {
        self.reader.problem(self.place(key), message);
    }

    /// Notes that a key is missing, why that matters, and the variable that could stand for it.
    pub(super) fn missing(&self, key: &str, var: Var, why: &str) {
        let names = self.variables(key, var);
        match (names.first(), &self.reader.source) {
            (Some(name), None) => self
                .reader
                .problem(Place::variable(name), format!("is not set; {why}")),
            (Some(name), Some(_)) => self.problem(
                key,
                format!("is missing; {why}; set it here or as the variable {name}"),
            ),
            (None, _) => self.problem(key, format!("is missing; {why}")),
        }
    }

    /// True where the file has this key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// Looks for a text, with variables filled in: in the file, else in the environment.
    pub(super) fn find(&self, key: &'static str, var: Var) -> Found {
        self.know(key);
        match self.entry(key) {
            Some(entry) => self.text_of(key, entry),
            None => self.environment_text(key, var),
        }
    }

    /// A text, where there is one.
    pub(super) fn text(&self, key: &'static str, var: Var) -> Option<Given> {
        match self.find(key, var) {
            Found::Given(given) => Some(given),
            Found::Nothing | Found::Bad => None,
        }
    }

    /// A text that has to be there; `why` says so where it is not.
    pub(super) fn needed(&self, key: &'static str, var: Var, why: &str) -> Option<Given> {
        match self.find(key, var) {
            Found::Given(given) => Some(given),
            Found::Nothing => {
                self.missing(key, var, why);
                None
            }
            Found::Bad => None,
        }
    }

    /// A value that is made from text.
    pub(super) fn parsed<T, E: Display>(
        &self,
        key: &'static str,
        var: Var,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        self.accepted(&self.text(key, var)?, parse)
    }

    /// What a text stands for, or a note that it cannot be used.
    pub(super) fn accepted<T, E: Display>(
        &self,
        given: &Given,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        parse(&given.text)
            .map_err(|error| self.refuse(given, &error.to_string()))
            .ok()
    }

    /// Notes that a value cannot be used.
    pub(super) fn refuse(&self, given: &Given, why: &str) {
        let message = match &given.spoken {
            Some(spoken) => format!("{spoken}: {why}"),
            None => why.to_owned(),
        };
        self.reader.problem(given.place.clone(), message);
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &self,
        key: &'static str,
        var: Var,
        words: &[(&str, T)],
    ) -> Option<T> {
        self.parsed(key, var, |text| {
            words
                .iter()
                .find(|(word, _)| *word == text)
                .map(|(_, value)| *value)
                .ok_or_else(|| {
                    let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                    let hint = nearest(text, all.iter().copied())
                        .map(|word| format!("; did you mean {word}?"))
                        .unwrap_or_default();
                    format!("expected {}{hint}", either(&all))
                })
        })
    }

    /// A whole number within a range.
    pub(super) fn number<T>(
        &self,
        key: &'static str,
        var: Var,
        range: RangeInclusive<T>,
    ) -> Option<T>
    where
        T: std::str::FromStr + PartialOrd + Display,
    {
        self.parsed(key, var, |text| {
            text.parse::<T>()
                .ok()
                .filter(|number| range.contains(number))
                .ok_or_else(|| {
                    format!(
                        "expected a whole number from {} to {}",
                        range.start(),
                        range.end()
                    )
                })
        })
    }

    /// Several texts: a list of them, or one text with commas or white space between them, for `${VAR}` works in
    /// texts only. `None` where the key is not there.
    pub(super) fn texts(&self, key: &'static str) -> Option<Vec<Given>> {
        self.know(key);
        let entry = self.entry(key)?;
        let entries = match &entry.node {
            Node::List(list) => list.as_slice(),
            _ => std::slice::from_ref(entry),
        };
        let mut texts = Vec::new();
        for entry in entries {
            if let Found::Given(given) = self.text_of(key, entry) {
                let parts = given.text.split([',', ' ', '\t', '\r', '\n']);
                let parts = parts.filter(|part| !part.is_empty());
                texts.extend(parts.map(|part| Given {
                    text: part.to_owned(),
                    ..given.clone()
                }));
            }
        }
        Some(texts)
    }

    /// A table inside this one; an empty one where it is left out, for the environment may still fill it.
    pub(super) fn table(&self, key: &'static str) -> Section<'a> {
        self.know(key);
        let entries = match self.entry(key) {
            Some(Entry {
                node: Node::Table(entries),
                ..
            }) => Some(entries),
            Some(entry) => {
                self.problem(key, format!("expected a table, not {}", entry.node.kind()));
                None
            }
            None => None,
        };
        let line = self.entry(key).map(|entry| entry.line);
        Self::new(self.reader, self.path_of(key), line.or(self.line), entries)
    }

    /// The tables of `[[key]]`.
    pub(super) fn tables(&self, key: &'static str) -> Vec<Section<'a>> {
        self.know(key);
        let path = self.path_of(key);
        let not_tables = |kind: &str| {
            self.problem(
                key,
                format!("expected one or more [[{path}]] tables, with two brackets, not {kind}"),
            );
        };
        let Some(entry) = self.entry(key) else {
            return Vec::new();
        };
        let Node::List(list) = &entry.node else {
            not_tables(entry.node.kind());
            return Vec::new();
        };
        let mut sections = Vec::with_capacity(list.len());
        for entry in list {
            if let Node::Table(entries) = &entry.node {
                sections.push(Self::new(
                    self.reader,
                    path.clone(),
                    Some(entry.line),
                    Some(entries),
                ));
            } else {
                not_tables(entry.node.kind());
            }
        }
        sections
    }

    /// Everything not asked for so far, with variables filled in: the keys of a handler's own type.
    pub(super) fn rest(&self) -> BTreeMap<String, toml::Value> {
        let known = self.known.borrow();
        self.entries
            .into_iter()
            .flatten()
            .filter(|(key, _)| !known.contains(key.as_str()))
            .filter_map(|(key, entry)| Some((key.clone(), self.value_of(key, entry)?)))
            .collect()
    }

    /// Notes every key that was never asked for. Call it after all keys were read.
    pub(super) fn finish(self) {
        let known = self.known.borrow();
        for (key, _) in self.entries.into_iter().flatten() {
            if known.contains(key.as_str()) {
                continue;
            }
            let message = match nearest(key, known.iter().copied()) {
                Some(name) => format!("unknown key; did you mean {name}?"),
                None => {
                    let all: Vec<&str> = known.iter().copied().collect();
                    format!("unknown key; known here: {}", all.join(", "))
                }
            };
            self.problem(key, message);
        }
    }

    fn entry(&self, key: &str) -> Option<&'a Entry> {
        self.entries?.get(key)
    }

    /// Names a key that exists, whether or not it is looked at this time.
    pub(super) fn know(&self, key: &'static str) {
        self.known.borrow_mut().insert(key);
    }

    /// The variables behind a key, the first to be preferred.
    fn variables(&self, key: &str, var: Var) -> Vec<String> {
        match var {
            Var::None => Vec::new(),
            Var::Named(name) => vec![name.to_owned()],
            Var::Salesforce => {
                let path = self.path_of(key).to_uppercase().replace('.', "_");
                let rest = path.strip_prefix("SALESFORCE_").unwrap_or(&path);
                ["SALESFORCE", "SF", "SFDC"]
                    .map(|prefix| format!("{prefix}_{rest}"))
                    .into()
            }
        }
    }

    fn path_of(&self, key: &str) -> String {
        // A key may hold anything in quotes; a message stays one line.
        let key: String = key.escape_debug().collect();
        if self.path.is_empty() {
            key
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn text_of(&self, key: &'static str, entry: &Entry) -> Found {
        let raw = match &entry.node {
            Node::Text(text) => text.clone(),
            Node::Scalar(toml::Value::Integer(number)) => number.to_string(),
            Node::Scalar(toml::Value::Boolean(yes)) => yes.to_string(),
            other => {
                self.problem(key, format!("expected a string, not {}", other.kind()));
                return Found::Bad;
            }
        };
        let Some(filled) = self.interpolated(key, entry.line, &raw) else {
            return Found::Bad;
        };
        let text = filled.text.trim();
        if text.is_empty() {
            return Found::Nothing;
        }
        let spoken = if !filled.variables.is_empty() {
            let variables: Vec<String> = filled
                .variables
                .iter()
                .map(|name| format!("${{{name}}}"))
                .collect();
            Some(format!("the value of {}", variables.join(" and ")))
        } else if text.len() > SPOKEN_LENGTH || text.contains(['@', '\n']) {
            // Too long for a message, or it may have a password in it that belongs elsewhere.
            None
        } else {
            Some(format!("`{}`", text.escape_debug()))
        };
        Found::Given(Given {
            text: text.to_owned(),
            place: self.place(key),
            from_file: true,
            spoken,
        })
    }

    fn environment_text(&self, key: &str, var: Var) -> Found {
        let mut set = self
            .variables(key, var)
            .into_iter()
            .filter_map(|name| Some((self.reader.env.var(&name)?, name)));
        let Some((text, name)) = set.next() else {
            return Found::Nothing;
        };
        for (other, alias) in set {
            if other != text {
                self.reader.warn(
                    Place::variable(&alias),
                    format!("differs from {name}, which is used"),
                );
            }
        }
        Found::Given(Given {
            text,
            place: Place::variable(&name),
            from_file: false,
            spoken: None,
        })
    }

    fn interpolated(
        &self,
        key: &str,
        line: usize,
        raw: &str,
    ) -> Option<super::interpolate::Interpolated> {
        match interpolate(raw, self.reader.env) {
            Ok(filled) => Some(filled),
            Err(error) => {
                let place = Place {
                    line: Some(line),
                    ..self.place(key)
                };
                self.reader.problem(place, error.to_string());
                None
            }
        }
    }

    fn value_of(&self, key: &str, entry: &Entry) -> Option<toml::Value> {
        match &entry.node {
            Node::Text(text) => {
                let filled = self.interpolated(key, entry.line, text)?;
                Some(toml::Value::String(filled.text))
            }
            Node::Scalar(value) => Some(value.clone()),
            Node::List(list) => list
                .iter()
                .map(|entry| self.value_of(key, entry))
                .collect::<Option<Vec<_>>>()
                .map(toml::Value::Array),
            Node::Table(entries) => entries
                .iter()
                .map(|(name, entry)| {
                    let path = format!("{key}.{name}");
                    Some((name.clone(), self.value_of(&path, entry)?))
                })
                .collect::<Option<toml::Table>>()
                .map(toml::Value::Table),
        }
    }
}

/// `a`, `a or b`, `a, b or c`.
pub(super) fn either(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}
