//! What reading a configuration has at hand, and what it has found.

use std::cell::RefCell;

use super::env::Env;
use super::error::{Place, Problem};

/// Where values come from and problems go to.
pub(super) struct Reader<'a> {
    /// The environment.
    pub(super) env: &'a dyn Env,
    /// Name of the text; `None` where the environment is all there is.
    pub(super) source: Option<String>,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
}

impl<'a> Reader<'a> {
    /// Nothing wrong so far.
    pub(super) fn new(env: &'a dyn Env, source: Option<String>) -> Self {
        Self {
            env,
            source,
            problems: RefCell::default(),
            warnings: RefCell::default(),
        }
    }

    /// Notes something that has to change.
    pub(super) fn problem(&self, place: Place, message: impl Into<String>) {
        self.problems.borrow_mut().push(Problem {
            place,
            message: message.into(),
        });
    }

    /// Notes something that works, but probably not as meant.
    pub(super) fn warn(&self, place: Place, message: impl Into<String>) {
        self.warnings.borrow_mut().push(Problem {
            place,
            message: message.into(),
        });
    }

    /// True where a problem at this place was noted.
    pub(super) fn has_problem_at(&self, place: &Place) -> bool {
        self.problems
            .borrow()
            .iter()
            .any(|problem| problem.place == *place)
    }

    /// Problems and warnings, in the order of the file.
    pub(super) fn into_findings(self) -> (Vec<Problem>, Vec<Problem>) {
        let sorted = |findings: RefCell<Vec<Problem>>| {
            let mut once: Vec<Problem> = Vec::new();
            for finding in findings.into_inner() {
                // A key that is looked at twice is still one finding.
                if !once.contains(&finding) {
                    once.push(finding);
                }
            }
            once.sort_by_key(|finding| finding.place.line);
            once
        };
        (sorted(self.problems), sorted(self.warnings))
    }
}
