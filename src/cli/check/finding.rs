//! What a check found, and how it is told.

use serde::Serialize;

use crate::cli::Failure;
use crate::cli::output::{one_line, print_json, print_line};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warning,
    Failed,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    what: String,
    why: String,
    /// What to change, and where.
    cure: Option<String>,
}

impl Finding {
    /// `failed   what: why. cure`
    fn line(&self) -> String {
        let why = one_line(self.why.trim_end_matches('.'));
        let head = format!("{:<8} {}: {why}", self.level.name(), self.what);
        match &self.cure {
            Some(cure) => format!("{head}. {}", one_line(cure)),
            None => head,
        }
    }
}

/// How findings are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Telling {
    /// As they are found, a line each.
    Lines,
    /// As one JSON list at the end.
    Json,
    /// Not at all: they are for somebody else to show.
    Kept,
}

/// Everything found so far.
#[derive(Debug)]
pub(in crate::cli) struct Report {
    telling: Telling,
    findings: Vec<Finding>,
}

impl Report {
    pub(super) fn new(as_json: bool) -> Self {
        Self {
            telling: if as_json {
                Telling::Json
            } else {
                Telling::Lines
            },
            findings: Vec::new(),
        }
    }

    /// One that prints nothing.
    pub(in crate::cli) fn kept() -> Self {
        Self {
            telling: Telling::Kept,
            findings: Vec::new(),
        }
    }

    /// What was found, as JSON.
    pub(in crate::cli) fn json(&self) -> serde_json::Value {
        serde_json::to_value(&self.findings).unwrap_or_default()
    }

    /// What was found, as lines.
    #[cfg(test)]
    pub(super) fn lines(&self) -> Vec<String> {
        self.findings.iter().map(Finding::line).collect()
    }

    /// All is well with `what`.
    pub(super) fn ok(&mut self, what: &str, why: &str) -> Result<(), Failure> {
        self.add(Level::Ok, what, why, None)
    }

    /// It works, but perhaps not as meant.
    pub(super) fn warning(
        &mut self,
        what: &str,
        why: &str,
        cure: Option<&str>,
    ) -> Result<(), Failure> {
        self.add(Level::Warning, what, why, cure)
    }

    /// It does not work.
    pub(super) fn failed(
        &mut self,
        what: &str,
        why: &str,
        cure: Option<&str>,
    ) -> Result<(), Failure> {
        self.add(Level::Failed, what, why, cure)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.findings
            .iter()
            .any(|finding| finding.level == Level::Failed)
    }

    /// Prints what has not been printed yet.
    pub(super) fn finish(&self) -> Result<(), Failure> {
        if self.telling == Telling::Json {
            print_json(&self.findings)?;
        }
        Ok(())
    }

    fn add(
        &mut self,
        level: Level,
        what: &str,
        why: &str,
        cure: Option<&str>,
    ) -> Result<(), Failure> {
        let finding = Finding {
            level,
            what: what.to_owned(),
            why: why.to_owned(),
            cure: cure.map(str::to_owned),
        };
        if self.telling == Telling::Lines {
            print_line(&finding.line())?;
        }
        self.findings.push(finding);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_with_its_cure_as_a_second_sentence() {
        let mut finding = Finding {
            level: Level::Failed,
            what: "topic /event/X__e".into(),
            why: "unknown\ntopic.".into(),
            cure: Some("Check its name".into()),
        };
        assert_eq!(
            finding.line(),
            "failed   topic /event/X__e: unknown topic. Check its name"
        );
        finding.cure = None;
        finding.level = Level::Ok;
        assert_eq!(finding.line(), "ok       topic /event/X__e: unknown topic");
    }
}
