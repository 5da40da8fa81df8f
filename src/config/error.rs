//! What can be wrong with a configuration, and where.

use std::fmt;
use std::path::PathBuf;

/// The configuration cannot be used. `orgstream` exits with [`ConfigError::EXIT_CODE`].
///
/// No variant ever holds the value of a secret, or a value that came out of the environment.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no configuration at all.
    #[error(
        "no configuration: there is no {looked_for} here, and neither ORGSTREAM_CONFIG nor ORGSTREAM_TOPICS is set. \
         Name a file with --config, write {looked_for}, or set ORGSTREAM_TOPICS (for example \
         /data/AccountChangeEvent) with the SALESFORCE_* variables"
    )]
    Missing {
        /// The file that would have been read.
        looked_for: &'static str,
    },
    /// The file cannot be read.
    #[error("{named_by}: cannot read {}: {reason}. Check the path and its permissions", path.display())]
    Unreadable {
        /// `--config`, `ORGSTREAM_CONFIG`, or the file found in the current directory.
        named_by: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
    },
    /// One or more things in it are wrong: all that were found.
    #[error("{}", listed(.0))]
    Invalid(Vec<Problem>),
}

impl ConfigError {
    /// What the process exits with: `EX_CONFIG` of `sysexits.h`.
    pub const EXIT_CODE: u8 = 78;

    /// Every single problem; empty where there is no configuration to have any.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Invalid(problems) => problems,
            Self::Missing { .. } | Self::Unreadable { .. } => &[],
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// What is wrong and what to do, as one sentence without a full stop.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Where something is said, or should have been.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file's path, `ORGSTREAM_CONFIG` where that holds the text, or an environment variable's name.
    pub source: String,
    /// Line in that text, from 1.
    pub line: Option<usize>,
    /// The key with the sections around it: `subscription.handler.type`.
    pub key: Option<String>,
}

impl Place {
    /// An environment variable.
    pub(super) fn variable(name: &str) -> Self {
        Self {
            source: name.to_owned(),
            line: None,
            key: None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {key}")?;
        }
        Ok(())
    }
}

fn listed(problems: &[Problem]) -> String {
    match problems {
        [] => "the configuration cannot be used".to_owned(),
        [one] => one.to_string(),
        several => {
            let mut text = format!("{} problems in the configuration:", several.len());
            for problem in several {
                text.push_str(&format!("\n  {problem}"));
            }
            text
        }
    }
}

/// The name among `known` that was most likely meant.
pub(super) fn nearest<'a>(
    given: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let given = given.to_lowercase();
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&given, name), name))
        // A third of the letters wrong is still the same word; more is another one.
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1))
        .min()
        .map(|(_, name)| name)
}
