//! `orgstream config`: what came of the configuration.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::Failure;
use super::connect::JsonFlag;
use super::output::{note, print, print_json};
use crate::app;
use crate::config::{ProcessEnv, Subscriptions, show};

/// Print the effective configuration, secrets masked.
///
/// Every key with its value, defaults included, as TOML that would be read the same again but for the
/// secrets, which are `***`. Where it came from stands in the first line; environment variables fill in
/// whatever the file leaves out.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  orgstream --config orgstream.toml config")]
pub(super) struct ConfigArgs {
    #[command(flatten)]
    output: JsonFlag,
}

pub(super) fn run(path: Option<&Path>, args: ConfigArgs) -> Result<ExitCode, Failure> {
    let registry = super::registry();
    let loaded = app::load_config(path, Subscriptions::Optional, &ProcessEnv, registry)?;
    let shown = show(&loaded.config);
    if args.output.json {
        let table: toml::Table = shown.parse().map_err(anyhow::Error::from)?;
        let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
        print_json(&json!({
            "origin": loaded.origin.to_string(),
            "warnings": warnings,
            "configuration": plain(toml::Value::Table(table)),
        }))?;
    } else {
        for warning in &loaded.warnings {
            note(&format!("warning: {warning}"));
        }
        print(&format!("# from {}\n{shown}", loaded.origin))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// As JSON, with the dollar signs that TOML doubles single again.
fn plain(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => text.replace("$$", "$").into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(truth) => truth.into(),
        toml::Value::Datetime(time) => time.to_string().into(),
        toml::Value::Array(list) => list.into_iter().map(plain).collect(),
        toml::Value::Table(table) => table
            .into_iter()
            .map(|(key, value)| (key, plain(value)))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_holds_the_values_without_the_escapes_of_toml() {
        let table: toml::Table = "a = 'x$$y'\nb = [1, true]\n[c]\nd = 1.5\n".parse().unwrap();
        assert_eq!(
            plain(toml::Value::Table(table)),
            json!({"a": "x$y", "b": [1, true], "c": {"d": 1.5}})
        );
    }
}
