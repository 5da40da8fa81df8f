//! Names of tables, functions and channels.

use std::fmt;

/// Longest identifier, in bytes; Postgres would cut a longer one off in silence.
const LONGEST: usize = 63;

/// The name of a thing in a schema, which is shown as SQL has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    /// Where it is named; else Postgres looks through the `search_path`.
    pub(super) schema: Option<String>,
    pub(super) name: String,
}

impl Name {
    /// Reads `name` or `schema.name`, taken letter by letter: capitals stay capitals. `what` it names is said in an
    /// error.
    ///
    /// # Errors
    ///
    /// What is wrong with it; reads on after the key's name.
    pub(super) fn parse(text: &str, what: &str) -> Result<Self, String> {
        let (schema, name) = match text.split_once('.') {
            Some((schema, name)) => (Some(schema), name),
            None => (None, text),
        };
        for part in schema.into_iter().chain([name]) {
            if !is_identifier(part) {
                return Err(format!(
                    "must be the name of a {what}, with that of its schema and a dot before it if need be: letters, \
                     digits, `_`, `-` and `$`, at most {LONGEST} bytes each"
                ));
            }
        }
        if schema == Some("orgstream") {
            return Err("must not lie in the schema `orgstream`, which is the store's own".into());
        }
        Ok(Self {
            schema: schema.map(str::to_owned),
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "{}.", quoted(schema))?;
        }
        f.write_str(&quoted(&self.name))
    }
}

/// Reads the name of a channel, taken letter by letter too. Channels lie in no schema.
///
/// # Errors
///
/// What is wrong with it; reads on after the key's name.
pub(super) fn channel(text: String) -> Result<String, String> {
    if text.len() <= LONGEST && text.split('.').all(is_identifier) {
        return Ok(text);
    }
    Err(format!(
        "must be the name of a channel: letters, digits, `_`, `-`, `$` and dots between, at most {LONGEST} bytes"
    ))
}

fn is_identifier(text: &str) -> bool {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '$');
    !text.is_empty() && text.len() <= LONGEST && text.chars().all(plain)
}

pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_letter_by_letter() {
        for (text, sql) in [
            ("orgstream_events", "\"orgstream_events\""),
            ("audit.Events", "\"audit\".\"Events\""),
            ("select", "\"select\""),
            ("événements-2026", "\"événements-2026\""),
        ] {
            assert_eq!(Name::parse(text, "table").unwrap().to_string(), sql);
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "x".repeat(64);
        for text in [
            "", ".", "a.", ".a", "a.b.c", "a b", "a\"b", "a;drop", "a\0", &long,
        ] {
            let reason = Name::parse(text, "table").unwrap_err();
            assert!(reason.contains("must be the name of a table"), "{text:?}");
        }
        let reason = Name::parse("orgstream.event", "table").unwrap_err();
        assert!(reason.contains("the store's own"));
    }

    #[test]
    fn a_channel_may_have_dots_and_no_schema() {
        for text in ["orgstream_events", "crm.Accounts", "a.b.c"] {
            assert_eq!(channel(text.to_owned()).as_deref(), Ok(text));
        }
        for text in ["", ".", "a b", "a'b", &"x".repeat(64)] {
            assert!(channel(text.to_owned()).is_err(), "{text:?}");
        }
    }
}
