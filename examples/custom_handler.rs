//! A whole `orgstream` with one more type of handler: `folder`, which keeps each event as a file.
//!
//!     [[subscription.handler]]
//!     type = "folder"
//!     path = "events"
//!
//! Every command knows it: `cargo run --example custom_handler -- check`, and `-- run` is the daemon. Without a
//! Salesforce org, run `orgstream emulator` beside it: it prints the variables to set.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use orgstream::event::Event;
use orgstream::handler::{BatchAnswer, EventBatch, Handler, Options, Registry, async_trait};
use tokio::io::AsyncWriteExt as _;

struct Folder(PathBuf);

#[async_trait]
impl Handler for Folder {
    /// One event a call, unless `batch_limits` asks for more. `Handled` says that the events are kept for good.
    async fn handle(&self, batch: &EventBatch) -> BatchAnswer {
        for event in &batch.events {
            if let Err(error) = self.keep(event).await {
                // Not the event's fault: it comes again after a pause.
                return BatchAnswer::retry(format!("cannot write to `path`: {error}"));
            }
        }
        BatchAnswer::HANDLED
    }

    /// For `orgstream check`.
    async fn check(&self) -> Result<(), String> {
        let made = tokio::fs::create_dir_all(&self.0).await;
        made.map_err(|error| format!("cannot make the folder, look at `path`: {error}"))
    }
}

impl Folder {
    /// An event that comes again, after a crash, has the same identity, and so the same file.
    async fn keep(&self, event: &Event) -> std::io::Result<()> {
        let (id, json) = (event.identity(), event.cloud_event().to_json());
        let begun = self.0.join(format!(".{id}"));
        tokio::fs::create_dir_all(&self.0).await?;
        let mut file = tokio::fs::File::create(&begun).await?;
        file.write_all(&json).await?;
        file.sync_all().await?;
        tokio::fs::rename(&begun, self.0.join(format!("{id}.json"))).await?;
        // The name too, or a power cut takes it back.
        tokio::fs::File::open(&self.0).await?.sync_all().await
    }
}

fn main() -> ExitCode {
    let mut registry = Registry::builtin();
    registry.register("folder", |config| {
        let mut options = Options::new(config);
        let path = options.required_text("path", "the folder for the events");
        Ok(Arc::new(Folder(options.finish(path)?.into())))
    });
    orgstream::cli::main_with(registry)
}
