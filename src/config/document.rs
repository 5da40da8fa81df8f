//! A TOML text as a tree that remembers the line of everything in it.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use super::error::{Place, Problem};

/// Tables of a document by key.
pub(super) type Entries = BTreeMap<String, Entry>;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Line of its key, from 1; for a part of a list, of the value.
    pub(super) line: usize,
    /// The value.
    pub(super) node: Node,
}

/// A TOML value. Strings are as written: variables are filled in when they are read, so that a command
/// which needs one section does not ask for the variables of another.
#[derive(Debug, Clone)]
pub(super) enum Node {
    /// A string.
    Text(String),
    /// Whole numbers, floating-point numbers, booleans and dates.
    Scalar(toml::Value),
    /// `[a, b]` or `[[a]]`.
    List(Vec<Entry>),
    /// `[a]` or `{ … }`.
    Table(Entries),
}

impl Node {
    /// What it is, for a message.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Scalar(toml::Value::Integer(_)) => "a number",
            Self::Scalar(toml::Value::Float(_)) => "a number with a fraction",
            Self::Scalar(toml::Value::Boolean(_)) => "true or false",
            Self::Scalar(_) => "a date or time",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

/// Reads a document, or says everything that is wrong with its syntax. `source` names it in messages.
pub(super) fn parse(text: &str, source: &str) -> Result<Entries, Vec<Problem>> {
    let lines = Lines::of(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut problems: Vec<Problem> = errors
        .iter()
        .map(|error| Problem {
            place: Place {
                source: source.to_owned(),
                line: error.span().map(|span| lines.line_at(span.start)),
                key: None,
            },
            // Only the parser's own words: its full message would quote the line, with any secret in it.
            message: format!("not TOML: {}", error.message()),
        })
        .collect();
    let mut reader = NodeReader {
        lines: &lines,
        source,
        problems: Vec::new(),
    };
    let entries = reader.entries(table.into_inner());
    problems.append(&mut reader.problems);
    if problems.is_empty() {
        Ok(entries)
    } else {
        Err(problems)
    }
}

struct NodeReader<'a> {
    lines: &'a Lines,
    source: &'a str,
    problems: Vec<Problem>,
}

impl NodeReader<'_> {
    fn entries(&mut self, table: DeTable<'_>) -> Entries {
        table
            .into_iter()
            .map(|(key, value)| {
                let line = self.lines.line_at(key.span().start);
                let node = self.node(value.into_inner(), line);
                (key.into_inner().into_owned(), Entry { line, node })
            })
            .collect()
    }

    fn node(&mut self, value: DeValue<'_>, line: usize) -> Node {
        match value {
            DeValue::String(text) => Node::Text(text.into_owned()),
            DeValue::Boolean(value) => Node::Scalar(toml::Value::Boolean(value)),
            DeValue::Datetime(value) => Node::Scalar(toml::Value::Datetime(value)),
            DeValue::Integer(number) => {
                match i64::from_str_radix(&number.as_str().replace('_', ""), number.radix()) {
                    Ok(number) => Node::Scalar(toml::Value::Integer(number)),
                    Err(_) => self.bad_number(line),
                }
            }
            DeValue::Float(number) => match number.as_str().replace('_', "").parse() {
                Ok(number) => Node::Scalar(toml::Value::Float(number)),
                Err(_) => self.bad_number(line),
            },
            DeValue::Array(array) => Node::List(
                array
                    .into_iter()
                    .map(|value| {
                        let line = self.lines.line_at(value.span().start);
                        let node = self.node(value.into_inner(), line);
                        Entry { line, node }
                    })
                    .collect(),
            ),
            DeValue::Table(table) => Node::Table(self.entries(table)),
        }
    }

    fn bad_number(&mut self, line: usize) -> Node {
        self.problems.push(Problem {
            place: Place {
                source: self.source.to_owned(),
                line: Some(line),
                key: None,
            },
            message: "a number that does not fit into 64 bits".to_owned(),
        });
        Node::Scalar(toml::Value::Integer(0))
    }
}

/// Where the lines of a text begin.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.match_indices('\n').map(|(at, _)| at + 1).collect())
    }

    /// Line number, from 1, of a byte.
    fn line_at(&self, byte: usize) -> usize {
        self.0.partition_point(|start| *start <= byte) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_knows_its_line() {
        let text =
            "# a\n\na = 1\n[b]\nc = [\n  'x',\n  'y',\n]\n\n[[d]]\ne = { f = true }\n[[d]]\n";
        let root = parse(text, "t.toml").unwrap();
        assert_eq!(root["a"].line, 3);
        assert_eq!(root["b"].line, 4);
        let Node::Table(b) = &root["b"].node else {
            panic!("{root:?}");
        };
        assert_eq!(b["c"].line, 5);
        let Node::List(c) = &b["c"].node else {
            panic!("{b:?}");
        };
        assert_eq!((c[0].line, c[1].line), (6, 7));
        let Node::List(d) = &root["d"].node else {
            panic!("{root:?}");
        };
        assert_eq!((d[0].line, d[1].line), (10, 12));
    }

    #[test]
    fn syntax_errors_name_their_lines_and_quote_nothing() {
        let problems = parse("a = 1\npassword = \"hunter2\nb = 2 3\n", "t.toml").unwrap_err();
        assert_eq!(problems[0].place.line, Some(2), "{problems:?}");
        assert!(!format!("{problems:?}").contains("hunter2"));
        let problems = parse("a = 1\na = 2\n", "t.toml").unwrap_err();
        assert_eq!(problems[0].place.line, Some(2), "{problems:?}");
        let problems = parse("\nn = 99999999999999999999\n", "t.toml").unwrap_err();
        assert_eq!(problems[0].place.line, Some(2), "{problems:?}");
    }
}
