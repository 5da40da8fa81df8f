//! The Prometheus text format (version 0.0.4) as values: read what a recorder wrote, add a label, put several
//! processes' metrics together, and write it again.
//!
//! Format: prometheus.io/docs/instrumenting/exposition_formats. Read are the parts of it that recorders of ours
//! write; timestamps, which none of them does, are refused like anything else that is not understood.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use super::metrics::{self, Metric};

/// How the values of a family behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FamilyKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts of observations up to bounds, in samples `_bucket`, with their `_sum` and `_count`.
    Histogram,
    /// Quantiles, with `_sum` and `_count`.
    Summary,
    /// Nobody said.
    Untyped,
}

impl FamilyKind {
    const ALL: [Self; 5] = [
        Self::Counter,
        Self::Gauge,
        Self::Histogram,
        Self::Summary,
        Self::Untyped,
    ];

    /// The word in `# TYPE`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Summary => "summary",
            Self::Untyped => "untyped",
        }
    }

    /// What may follow the family's name in the name of a sample.
    fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Counter | Self::Gauge | Self::Untyped => &[""],
            Self::Histogram => &["_bucket", "_sum", "_count"],
            Self::Summary => &["", "_sum", "_count"],
        }
    }
}

/// One line with a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// What follows the family's name: nothing, `_bucket`, `_sum` or `_count`.
    pub suffix: &'static str,
    /// Names and values, in the order of the text; `le` of a bucket among them.
    pub labels: Vec<(String, String)>,
    /// The value; may be NaN.
    pub value: f64,
}

impl Sample {
    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(label, _)| label == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// A metric with all its samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    /// Name, without a suffix.
    pub name: String,
    /// What it means; `None` where nothing was said.
    pub help: Option<String>,
    /// How its values behave.
    pub kind: FamilyKind,
    /// Its samples, in the order of the text.
    pub samples: Vec<Sample>,
}

impl Family {
    /// A family of the table, without samples yet.
    pub fn of(metric: &Metric) -> Self {
        Self {
            name: metric.name.to_owned(),
            help: Some(metric.help.to_owned()),
            kind: match metric.kind {
                metrics::Kind::Counter => FamilyKind::Counter,
                metrics::Kind::Gauge => FamilyKind::Gauge,
                metrics::Kind::Histogram(_) => FamilyKind::Histogram,
            },
            samples: Vec::new(),
        }
    }

    fn write(&self, out: &mut String) {
        if let Some(help) = &self.help {
            let _ = write!(out, "# HELP {} ", self.name);
            escape(help, false, out);
            out.push('\n');
        }
        let _ = writeln!(out, "# TYPE {} {}", self.name, self.kind.word());
        for sample in &self.samples {
            out.push_str(&self.name);
            out.push_str(sample.suffix);
            for (index, (name, value)) in sample.labels.iter().enumerate() {
                out.push(if index == 0 { '{' } else { ',' });
                out.push_str(name);
                out.push_str("=\"");
                escape(value, true, out);
                out.push('"');
            }
            if !sample.labels.is_empty() {
                out.push('}');
            }
            let _ = writeln!(out, " {}", Value(sample.value));
        }
    }
}

/// Families by name, each once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exposition {
    families: BTreeMap<String, Family>,
}

/// Text that cannot be read. Says where, and nothing of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the metrics cannot be read: {why}")]
pub struct ExpositionError {
    /// Counted from one.
    pub line: usize,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Exposition {
    /// Reads a text whole.
    ///
    /// # Errors
    ///
    /// [`ExpositionError`] at the first line that is not as the format has it. Never panics, whatever the text.
    pub fn parse(text: &str) -> Result<Self, ExpositionError> {
        let mut parsed = Self::default();
        // The families whose HELP or TYPE was read, for either is given once.
        let mut current: Option<String> = None;
        for (index, line) in text.split('\n').enumerate() {
            let fail = |why| ExpositionError {
                line: index + 1,
                why,
            };
            // The end belongs to a help text.
            let line = line.trim_start_matches([' ', '\t']);
            if line.is_empty() {
                continue;
            }
            if let Some(comment) = line.strip_prefix('#') {
                if let Some(about) = About::of(comment).map_err(fail)? {
                    parsed.describe(about, &mut current).map_err(fail)?;
                }
                continue;
            }
            let read = SampleLine::read(line).map_err(fail)?;
            parsed.take(read, &mut current).map_err(fail)?;
        }
        Ok(parsed)
    }

    fn describe(
        &mut self,
        about: About<'_>,
        current: &mut Option<String>,
    ) -> Result<(), &'static str> {
        let name = about.name();
        let begun = current.as_deref() == Some(name);
        if !begun && self.families.contains_key(name) {
            return Err("a family that is there already");
        }
        let family = self
            .families
            .entry(name.to_owned())
            .or_insert_with(|| Family {
                name: name.to_owned(),
                help: None,
                kind: FamilyKind::Untyped,
                samples: Vec::new(),
            });
        if !family.samples.is_empty() {
            return Err("a description after samples");
        }
        match about {
            About::Help(_, text) => family.help = Some(unescape(text, false)?),
            About::Type(_, kind) => family.kind = kind,
        }
        if !begun {
            *current = Some(name.to_owned());
        }
        Ok(())
    }

    fn take(
        &mut self,
        read: SampleLine<'_>,
        current: &mut Option<String>,
    ) -> Result<(), &'static str> {
        let of_current = current
            .as_ref()
            .and_then(|name| self.families.get_mut(name))
            .and_then(|family| {
                let rest = read.name.strip_prefix(family.name.as_str())?;
                let mut suffixes = family.kind.suffixes().iter();
                let suffix = suffixes.find(|suffix| **suffix == rest)?;
                Some((family, *suffix))
            });
        if let Some((family, suffix)) = of_current {
            family.samples.push(read.sample(suffix));
            return Ok(());
        }
        if self.families.contains_key(read.name) {
            return Err("a sample apart from its family");
        }
        let family = Family {
            name: read.name.to_owned(),
            help: None,
            kind: FamilyKind::Untyped,
            samples: vec![read.sample("")],
        };
        *current = Some(family.name.clone());
        self.families.insert(family.name.clone(), family);
        Ok(())
    }

    /// The families, by name.
    pub fn families(&self) -> impl Iterator<Item = &Family> {
        self.families.values()
    }

    /// One family.
    pub fn family(&self, name: &str) -> Option<&Family> {
        self.families.get(name)
    }

    /// Adds a label to every sample; one of that name is replaced.
    pub fn label(&mut self, name: &str, value: &str) {
        let families = self.families.values_mut();
        for sample in families.flat_map(|family| &mut family.samples) {
            sample.labels.retain(|(label, _)| label != name);
            sample.labels.push((name.to_owned(), value.to_owned()));
        }
    }

    /// Adds a sample of a metric of our table; `values` are those of its labels, in their order.
    pub fn record(&mut self, metric: &Metric, values: &[&str], value: f64) {
        debug_assert_eq!(metric.labels.len(), values.len(), "{}", metric.name);
        let labels = metric.labels.iter().zip(values);
        let sample = Sample {
            suffix: "",
            labels: labels
                .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()))
                .collect(),
            value,
        };
        self.families
            .entry(metric.name.to_owned())
            .or_insert_with(|| Family::of(metric))
            .samples
            .push(sample);
    }

    /// Adds samples of a metric of our table.
    pub fn extend(&mut self, metric: &Metric, samples: impl IntoIterator<Item = Sample>) {
        self.families
            .entry(metric.name.to_owned())
            .or_insert_with(|| Family::of(metric))
            .samples
            .extend(samples);
    }

    /// Adds a family without samples, where it is not there: so that it is described although it has no value.
    pub fn declare(&mut self, metric: &Metric) {
        self.families
            .entry(metric.name.to_owned())
            .or_insert_with(|| Family::of(metric));
    }

    /// Puts another process's families beside these. The first to describe a family is believed; samples of one
    /// that behaves differently (another release) cannot stand beside it, and are left out.
    pub fn merge(&mut self, other: Self) {
        for (name, mut family) in other.families {
            match self.families.get_mut(&name) {
                None => {
                    self.families.insert(name, family);
                }
                Some(ours) if ours.kind == family.kind => ours.samples.append(&mut family.samples),
                Some(_) => {}
            }
        }
    }
}

/// The text, families in the order of their names.
impl fmt::Display for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        for family in self.families.values() {
            out.clear();
            family.write(&mut out);
            f.write_str(&out)?;
        }
        Ok(())
    }
}

/// A value as Go writes it, which is what readers of the format expect.
struct Value(f64);

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            value if value == f64::INFINITY => f.write_str("+Inf"),
            value if value == f64::NEG_INFINITY => f.write_str("-Inf"),
            value => write!(f, "{value}"),
        }
    }
}

/// What a comment says of a family.
enum About<'a> {
    Help(&'a str, &'a str),
    Type(&'a str, FamilyKind),
}

impl<'a> About<'a> {
    /// `None` for a comment that is only that.
    fn of(comment: &'a str) -> Result<Option<Self>, &'static str> {
        let comment = comment.trim_start_matches([' ', '\t']);
        let (word, rest) = comment.split_once([' ', '\t']).unwrap_or((comment, ""));
        if word != "HELP" && word != "TYPE" {
            return Ok(None);
        }
        let rest = rest.trim_start_matches([' ', '\t']);
        let (name, text) = rest.split_once([' ', '\t']).unwrap_or((rest, ""));
        if !is_name(name) {
            return Err("not a metric's name");
        }
        if word == "HELP" {
            return Ok(Some(Self::Help(name, text)));
        }
        let mut kinds = FamilyKind::ALL.into_iter();
        let kind = kinds.find(|kind| kind.word() == text.trim_matches([' ', '\t']));
        kind.map(|kind| Some(Self::Type(name, kind)))
            .ok_or("not a metric's type")
    }

    fn name(&self) -> &'a str {
        match self {
            Self::Help(name, _) | Self::Type(name, _) => name,
        }
    }
}

/// One line with a value, its name not yet told from its suffix.
struct SampleLine<'a> {
    name: &'a str,
    labels: Vec<(String, String)>,
    value: f64,
}

impl<'a> SampleLine<'a> {
    fn read(line: &'a str) -> Result<Self, &'static str> {
        let end = line
            .find(['{', ' ', '\t'])
            .ok_or("a sample without value")?;
        let (name, mut rest) = line.split_at(end);
        if !is_name(name) {
            return Err("not a metric's name");
        }
        let mut labels: Vec<(String, String)> = Vec::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            loop {
                rest = rest.trim_start_matches([' ', '\t']);
                if let Some(after) = rest.strip_prefix('}') {
                    rest = after;
                    break;
                }
                let (label, value, after) = label(rest)?;
                if labels.iter().any(|(name, _)| name == label) {
                    return Err("a label twice");
                }
                labels.push((label.to_owned(), value));
                rest = after.trim_start_matches([' ', '\t']);
                match rest.strip_prefix(',') {
                    Some(after) => rest = after,
                    None if rest.starts_with('}') => {}
                    None => return Err("labels without end"),
                }
            }
        }
        let value = rest.trim_matches([' ', '\t']);
        Ok(Self {
            name,
            labels,
            value: value.parse().map_err(|_| "not a number")?,
        })
    }

    fn sample(self, suffix: &'static str) -> Sample {
        Sample {
            suffix,
            labels: self.labels,
            value: self.value,
        }
    }
}

/// `name="value"` at the beginning of a text: both, and what follows.
fn label(text: &str) -> Result<(&str, String, &str), &'static str> {
    let (name, rest) = text.split_once('=').ok_or("a label without value")?;
    let name = name.trim_matches([' ', '\t']);
    if !is_name(name) || name.contains(':') {
        return Err("not a label's name");
    }
    let rest = rest.trim_start_matches([' ', '\t']);
    let quoted = rest
        .strip_prefix('"')
        .ok_or("a label's value without quotes")?;
    let mut escaped = false;
    for (at, byte) in quoted.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => {
                let (value, rest) = quoted.split_at(at);
                return Ok((name, unescape(value, true)?, &rest[1..]));
            }
            _ => {}
        }
    }
    Err("a label's value without end")
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == ':')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
}

/// Help escapes backslash and line feed, values of labels the double quote, too.
fn escape(text: &str, quotes: bool, out: &mut String) {
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            other => out.push(other),
        }
    }
}

fn unescape(text: &str, quotes: bool) -> Result<String, &'static str> {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            out.push(character);
            continue;
        }
        out.push(match characters.next() {
            Some('\\') => '\\',
            Some('n') => '\n',
            Some('"') if quotes => '"',
            _ => return Err("an escape that does not exist"),
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
