//! The ceiling: a bare tonic client that asks for 100 events, takes them, and asks for as many again. It decodes
//! nothing and keeps nothing. A process of its own, on one thread.

use std::time::Instant;

use anyhow::Context as _;
use orgstream::salesforce::pubsub::MAX_OUTSTANDING;
use orgstream::salesforce::pubsub::proto::pub_sub_client::PubSubClient;
use orgstream::salesforce::pubsub::proto::{FetchRequest, ReplayPreset};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Request;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use super::figures::quantile;
use super::org::micros;

const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Counts as the variables of the other clients say, prints its figures, and waits for the end of its standard input.
pub(crate) async fn run() -> anyhow::Result<()> {
    let variable = |name: &str| std::env::var(name).context(name.to_owned());
    let (wanted, topic) = (variable("COUNT")?.parse::<usize>()?, variable("TOPIC")?);
    let live = variable("FROM")? == "latest";
    let ca = Certificate::from_pem(std::fs::read(variable("CA")?)?);
    let channel = Endpoint::from_shared(format!("https://{}", variable("ENDPOINT")?))?
        .tls_config(ClientTlsConfig::new().ca_certificate(ca))?
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .connect()
        .await?;
    let (ask, asked) = mpsc::unbounded_channel();
    let num_requested = i32::try_from(MAX_OUTSTANDING)?;
    let preset = if live {
        ReplayPreset::Latest
    } else {
        ReplayPreset::Earliest
    };
    ask.send(FetchRequest {
        topic_name: topic.clone(),
        replay_preset: preset.into(),
        num_requested,
        ..FetchRequest::default()
    })?;
    let mut request = Request::new(UnboundedReceiverStream::new(asked));
    for (header, name) in [
        ("accesstoken", "TOKEN"),
        ("instanceurl", "INSTANCE_URL"),
        ("tenantid", "ORG_ID"),
    ] {
        request
            .metadata_mut()
            .insert(header, variable(name)?.parse()?);
    }
    let mut client = PubSubClient::new(channel).max_decoding_message_size(16 << 20);
    let mut responses = client.subscribe(request).await?.into_inner();
    let (mut received, mut first, mut latencies) = (0, None, Vec::new());
    while received < wanted {
        let response = responses.message().await?.context("the stream ended")?;
        if response.events.is_empty() {
            continue;
        }
        ask.send(FetchRequest {
            topic_name: topic.clone(),
            num_requested: i32::try_from(response.events.len())?,
            ..FetchRequest::default()
        })?;
        received += response.events.len();
        first.get_or_insert_with(|| (received, Instant::now(), cpu_seconds()));
        if live {
            let now = micros();
            let sent = response
                .events
                .iter()
                .filter_map(|event| event.event.as_ref()?.id.parse().ok());
            latencies.extend(sent.map(|sent: u64| now.saturating_sub(sent) as f64));
        }
    }
    let (before, began, cpu) = first.context("no events")?;
    let figures = json!({
        "events": received - before,
        "seconds": began.elapsed().as_secs_f64(),
        "cpu_seconds": cpu_seconds() - cpu,
        "p50_us": quantile(&mut latencies, 0.5),
        "p99_us": quantile(&mut latencies, 0.99),
    });
    println!("{figures}");
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()))
        .await??;
    Ok(())
}

/// Time that this process has had a processor.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
