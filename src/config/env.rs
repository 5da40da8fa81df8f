//! The environment, passed in: tests bring their own and leave the process's alone.

use std::collections::BTreeMap;

/// Where environment variables come from.
pub trait Env {
    /// The value of a variable exactly as it stands; `None` where it is not set.
    fn raw(&self, name: &str) -> Option<String>;

    /// The value of a variable without surrounding white space; `None` where it is not set or blank, since
    /// many dashboards and compose files cannot take a variable away, only empty it.
    fn var(&self, name: &str) -> Option<String> {
        let value = self.raw(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }
}

/// The environment of this process.
#[derive(Debug, Clone, Copy)]
pub struct ProcessEnv;

impl Env for ProcessEnv {
    fn raw(&self, name: &str) -> Option<String> {
        // Bytes that are no UTF-8 become a replacement character: the value is then refused by whatever
        // reads it, with the variable's name, instead of looking unset.
        std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
    }
}

/// Variables given as a map.
impl Env for BTreeMap<String, String> {
    fn raw(&self, name: &str) -> Option<String> {
        self.get(name).cloned()
    }
}
