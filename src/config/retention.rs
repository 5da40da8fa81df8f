//! The `[retention]` section: how long the store keeps what is done with.

use std::time::Duration;

use super::RetentionConfig;
use super::salesforce::positive_duration;
use super::section::{Section, Var};

/// Where the value of a key belongs.
type Field = fn(&mut RetentionConfig) -> &mut Duration;

const KEYS: [(&str, Field); 6] = [
    ("dead_letters", |config| &mut config.dead_letters),
    ("holes", |config| &mut config.holes),
    ("position_marks", |config| &mut config.position_marks),
    ("samples", |config| &mut config.samples),
    ("state_changes", |config| &mut config.state_changes),
    ("allocation", |config| &mut config.allocation),
];

/// Reads the section.
pub(super) fn read(section: Section<'_>) -> RetentionConfig {
    let mut config = RetentionConfig::default();
    for (key, field) in KEYS {
        if let Some(value) = section.parsed(key, Var::None, positive_duration) {
            *field(&mut config) = value;
        }
    }
    section.finish();
    config
}
