//! Handler types by name.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::exec::ExecHandler;
use super::kafka::KafkaHandler;
use super::options::{OptionProblem, nearest};
use super::transactional::InTransaction;
use super::webhook::WebhookHandler;
use super::{Handler, LogHandler, TransactionalHandler, postgres};
use crate::config::HandlerConfig;

/// A handler that cannot be made from its configuration. Shows no values: they may be secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandlerConfigError {
    /// No type of that name.
    #[error(
        "handler `{handler}`: there is no type `{kind}`{}; the types are {}",
        .nearest.as_ref().map(|name| format!(", did you mean `{name}`?")).unwrap_or_default(),
        .known.join(", ")
    )]
    UnknownType {
        /// Name of the handler.
        handler: String,
        /// The `type` as written.
        kind: String,
        /// The type probably meant.
        nearest: Option<String>,
        /// All types.
        known: Vec<String>,
    },
    /// Keys that are unknown, missing or of the wrong kind: all of them.
    #[error("handler `{handler}` of type `{kind}`: {}", joined(.problems))]
    Options {
        /// Name of the handler.
        handler: String,
        /// Its type.
        kind: String,
        /// What is wrong, key by key.
        problems: Vec<OptionProblem>,
    },
    /// Sound options, but this machine does not have what the handler needs.
    #[error("handler `{handler}` of type `{kind}` cannot start: {reason}")]
    Setup {
        /// Name of the handler.
        handler: String,
        /// Its type.
        kind: String,
        /// What is missing.
        reason: String,
    },
}

impl HandlerConfigError {
    /// A handler whose options are sound but which cannot start.
    pub fn setup(config: &HandlerConfig, reason: impl Into<String>) -> Self {
        Self::Setup {
            handler: config.name.clone(),
            kind: config.kind.clone(),
            reason: reason.into(),
        }
    }
}

fn joined(problems: &[OptionProblem]) -> String {
    let texts: Vec<String> = problems.iter().map(OptionProblem::to_string).collect();
    texts.join("; ")
}

type Factory = dyn Fn(&HandlerConfig) -> Result<Arc<dyn Handler>, HandlerConfigError> + Send + Sync;

/// Handler types by the name that `type` has in the configuration.
///
/// ```
/// # use std::sync::Arc;
/// # use orgstream::handler::*;
/// struct Discard;
///
/// #[async_trait::async_trait]
/// impl Handler for Discard {
///     async fn handle(&self, _: &EventBatch) -> BatchAnswer {
///         BatchAnswer::HANDLED
///     }
/// }
///
/// let mut registry = Registry::builtin();
/// registry.register("discard", |config| {
///     Options::new(config).finish(Some(()))?; // it has no keys of its own
///     Ok(Arc::new(Discard))
/// });
/// ```
pub struct Registry {
    factories: BTreeMap<String, Box<Factory>>,
}

impl Registry {
    /// The types that orgstream brings along.
    pub fn builtin() -> Self {
        let mut registry = Self {
            factories: BTreeMap::new(),
        };
        registry.register("exec", |config| {
            Ok(Arc::new(ExecHandler::from_config(config)?))
        });
        registry.register("kafka", |config| {
            Ok(Arc::new(KafkaHandler::from_config(config)?))
        });
        registry.register("log", |config| {
            Ok(Arc::new(LogHandler::from_config(config)?))
        });
        registry.register("webhook", |config| {
            Ok(Arc::new(WebhookHandler::from_config(config)?))
        });
        registry.register("postgres", postgres::build);
        #[cfg(feature = "nats")]
        registry.register("nats", |config| {
            Ok(Arc::new(super::nats::NatsHandler::from_config(config)?))
        });
        #[cfg(feature = "redis")]
        registry.register("redis", |config| {
            Ok(Arc::new(super::redis::RedisHandler::from_config(config)?))
        });
        registry
    }

    /// Adds a type, or puts it in the place of one with the same name. The factory is called for each
    /// handler of that type; it checks the handler's options (see [`Options`](super::Options)) and does
    /// no I/O: the other side may be down just now.
    pub fn register<F>(&mut self, type_name: impl Into<String>, factory: F)
    where
        F: Fn(&HandlerConfig) -> Result<Arc<dyn Handler>, HandlerConfigError>
            + Send
            + Sync
            + 'static,
    {
        self.factories.insert(type_name.into(), Box::new(factory));
    }

    /// As [`Registry::register`], for a type whose handlers write into the store's own database.
    pub fn register_transactional<F>(&mut self, type_name: impl Into<String>, factory: F)
    where
        F: Fn(&HandlerConfig) -> Result<Arc<dyn TransactionalHandler>, HandlerConfigError>
            + Send
            + Sync
            + 'static,
    {
        self.register(type_name, move |config| {
            Ok(Arc::new(InTransaction(factory(config)?)))
        });
    }

    /// Makes a handler.
    ///
    /// # Errors
    ///
    /// All are errors of configuration, [`HandlerConfigError::Setup`] apart.
    pub fn build(&self, config: &HandlerConfig) -> Result<Arc<dyn Handler>, HandlerConfigError> {
        match self.factories.get(&config.kind) {
            Some(factory) => factory(config),
            None => Err(HandlerConfigError::UnknownType {
                handler: config.name.clone(),
                kind: config.kind.clone(),
                nearest: nearest(&config.kind, self.type_names()).map(str::to_owned),
                known: self.type_names().map(str::to_owned).collect(),
            }),
        }
    }

    /// The names of all types, in alphabetical order.
    pub fn type_names(&self) -> impl Iterator<Item = &str> {
        self.factories.keys().map(String::as_str)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.type_names()).finish()
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::super::testing::{batch, config};
    use super::super::{BatchAnswer, EventBatch, Options};
    use super::*;

    struct Discard;

    #[async_trait]
    impl Handler for Discard {
        async fn handle(&self, _: &EventBatch) -> BatchAnswer {
            BatchAnswer::HANDLED
        }
    }

    #[test]
    fn the_builtin_types_are_there() {
        let registry = Registry::builtin();
        let names: Vec<&str> = registry.type_names().collect();
        for name in ["exec", "kafka", "log", "postgres", "webhook"] {
            assert!(names.contains(&name), "{name}");
        }
        assert!(registry.build(&config("log", "")).is_ok());
    }

    #[test]
    fn an_unknown_type_names_the_nearest_and_all_others() {
        let registry = Registry::builtin();
        let Err(error) = registry.build(&config("webhok", "")) else {
            panic!("built");
        };
        let known: Vec<&str> = registry.type_names().collect();
        assert_eq!(
            error.to_string(),
            format!(
                "handler `h`: there is no type `webhok`, did you mean `webhook`?; the types are {}",
                known.join(", ")
            )
        );
    }

    #[test]
    fn an_option_that_a_type_does_not_have_is_refused() {
        let Err(error) = Registry::builtin().build(&config("log", "url = 'x'")) else {
            panic!("built");
        };
        assert_eq!(
            error.to_string(),
            "handler `h` of type `log`: unknown key `url`: this type of handler has no keys of its own"
        );
    }

    #[tokio::test]
    async fn a_registered_type_is_built_and_called() {
        let mut registry = Registry::builtin();
        registry.register("discard", |config| {
            Options::new(config).finish(Some(()))?;
            Ok(Arc::new(Discard))
        });
        let handler = registry.build(&config("discard", "")).unwrap();
        assert_eq!(handler.handle(&batch(&["{}"])).await, BatchAnswer::HANDLED);
    }
}
