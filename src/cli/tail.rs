//! `orgstream tail`: a look at the bus that leaves no trace in the store.

use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::connect::{self, call_failure};
use super::output::{length, note, print};
use super::run::on_signal;
use crate::app::Org;
use crate::avro::{Schema, SchemaCache, SchemaUnavailable};
use crate::config::SalesforceConfig;
use crate::event::{Event, RawEvent, ReplayId, SchemaId, Shown, Source, Topic};
use crate::salesforce::pubsub::{FetchBatch, MAX_OUTSTANDING, PubSubError, Recovery, ReplayFrom};
use crate::subscription;
use crate::text::visible;

/// How often a schema that cannot be had just now is asked for before its event is given up.
const SCHEMA_ATTEMPTS: u32 = 3;
const SCHEMA_PAUSE: Duration = Duration::from_secs(1);

/// What to do where the replay ID to begin after is gone.
const EXPIRED: &str =
    "The bus keeps events for three days at most: begin with `--from earliest` or `--from latest`";

/// Print events as they come; moves no position.
///
/// Streams a topic to standard output, one event a line as CloudEvents JSON, just as handlers receive
/// it. Nothing is stored, and no subscription's position moves. An event that cannot be decoded is told
/// on standard error. After a lost connection it goes on where it was; an event may then come twice.
///
/// Every event counts against the org's delivery allocation of rolling 24 hours, which all subscribers
/// share: think before you ask for `--from earliest`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  orgstream tail Account\n  orgstream tail /event/Order__e --from earliest --count 10 --data\n  orgstream tail /data/ChangeEvents | jq .type"
)]
pub(super) struct TailArgs {
    /// A topic or channel, such as /event/Order__e, /data/ChangeEvents, or the short forms Account and
    /// Order__e
    topic: Topic,
    /// Where to begin: latest, earliest (up to three days back), or after a replay ID in hexadecimal
    #[arg(
        long,
        default_value = "latest",
        value_name = "latest|earliest|REPLAY_ID"
    )]
    from: From,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print CloudEvents JSON, one event a line (the default)
    #[arg(long, conflicts_with = "data")]
    json: bool,
    /// Print only the event's fields, without the envelope
    #[arg(long)]
    data: bool,
}

/// Where to begin.
#[derive(Debug, Clone)]
struct From(ReplayFrom);

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "latest" => Ok(Self(ReplayFrom::Latest)),
            "earliest" => Ok(Self(ReplayFrom::Earliest)),
            id => id
                .parse()
                .map(|id| Self(ReplayFrom::After(id)))
                .map_err(|_| {
                    "expected latest, earliest, or a replay ID in hexadecimal, as `tail` and `status` print it"
                        .to_owned()
                }),
        }
    }
}

pub(super) async fn run(path: Option<&Path>, args: TailArgs) -> Result<ExitCode, Failure> {
    let config = connect::salesforce(path)?;
    let stop = CancellationToken::new();
    on_signal(stop.clone())?;
    connect::with_org(path, &config, async |org| {
        tokio::select! {
            done = follow(org, &config, args) => done?,
            () = stop.cancelled() => {}
        }
        Ok(ExitCode::SUCCESS)
    })
    .await
}

/// Prints events until there were enough.
async fn follow(org: &Org, config: &SalesforceConfig, args: TailArgs) -> Result<(), Failure> {
    let session = org.tokens.session().await.map_err(anyhow::Error::from)?;
    let tail = Tail {
        source: Arc::new(Source::new(
            session.org_id.clone(),
            session.host(),
            args.topic,
        )),
        schemas: org.schemas(None, &connect::schemas_dir()),
        place: Place::new(args.from.0),
        left: args.count.unwrap_or(u64::MAX),
        data_only: args.data,
        org: org.clone(),
        config: config.clone(),
    };
    note(&format!(
        "streaming {}; every event counts against the org's 24-hour delivery allocation; Ctrl-C ends",
        tail.source.topic()
    ));
    tail.run().await
}

/// Where the stream stands, so that it can go on after a break.
struct Place {
    from: ReplayFrom,
    /// The newest replay ID; on a channel more events may follow under it.
    newest: Option<ReplayId>,
}

impl Place {
    fn new(from: ReplayFrom) -> Self {
        Self { from, newest: None }
    }

    fn saw_event(&mut self, replay_id: Option<&ReplayId>, channel: bool) {
        let Some(id) = replay_id else { return };
        // Never LATEST again once something has come: all that lies between would be lost, where this way
        // only siblings of that one event can be.
        if !channel || self.from == ReplayFrom::Latest {
            self.newest = Some(id.clone());
            self.from = ReplayFrom::After(id.clone());
        } else if self.newest.as_ref() != Some(id)
            && let Some(complete) = self.newest.replace(id.clone())
        {
            self.from = ReplayFrom::After(complete);
        }
    }

    fn saw_keepalive(&mut self, latest: Option<&ReplayId>) {
        if let Some(id) = latest {
            self.newest = None;
            self.from = ReplayFrom::After(id.clone());
        }
    }
}

/// A stream being printed.
struct Tail {
    org: Org,
    config: SalesforceConfig,
    source: Arc<Source>,
    schemas: SchemaCache,
    place: Place,
    /// Events still to print.
    left: u64,
    data_only: bool,
}

/// How one stream ended.
enum Ended {
    /// Everything asked for is printed.
    Done,
    /// It broke, after so many responses.
    Broke(String, u32),
}

impl Tail {
    /// Streams until everything asked for is printed, or something is wrong that waiting cannot mend.
    async fn run(mut self) -> Result<(), Failure> {
        let mut failures = 0;
        let mut sign_ins = 0;
        loop {
            let (why, slow) = match self.stream().await {
                Ok(Ended::Done) => return Ok(()),
                Ok(Ended::Broke(why, responses)) => {
                    if responses > 0 {
                        (failures, sign_ins) = (0, 0);
                    }
                    (why, false)
                }
                Err(StreamError::Output(failure)) => return Err(failure),
                Err(StreamError::Call(error)) => match recovery(&error, sign_ins) {
                    Recovery::Reconnect => (error.to_string(), false),
                    Recovery::ReconnectSlowly => (error.to_string(), true),
                    Recovery::SignInAgain | Recovery::SignInAgainOnce => {
                        sign_ins += 1;
                        continue;
                    }
                    Recovery::ApplyExpiredReplayPolicy => {
                        return Err(Failure::Failed(anyhow::anyhow!("{error} {EXPIRED}")));
                    }
                    Recovery::WaitForAllocation | Recovery::Block => {
                        return Err(call_failure(&error));
                    }
                },
            };
            let pause = if slow {
                self.config.reconnect.max
            } else {
                subscription::pause(&self.config.reconnect, failures)
            };
            failures += 1;
            note(&format!(
                "{}; connecting again in {:.1} s",
                why.trim_end_matches('.'),
                pause.as_secs_f64()
            ));
            if self.place.from == ReplayFrom::Latest {
                note("nothing had come yet, so what is published meanwhile is not shown");
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// One stream, to its end.
    async fn stream(&mut self) -> Result<Ended, StreamError> {
        let topic = self.source.topic().clone();
        let mut owed = self.credits();
        let opened = self.org.bus.subscribe(&topic, &self.place.from, owed).await;
        let mut stream = opened.map_err(StreamError::Call)?;
        let mut responses = 0;
        loop {
            let next = tokio::time::timeout(self.config.silence_limit, stream.next());
            let batch = match next.await {
                Ok(Ok(Some(batch))) => batch,
                Ok(Ok(None)) => {
                    return Ok(Ended::Broke(
                        "the org ended the stream".to_owned(),
                        responses,
                    ));
                }
                Ok(Err(error)) => return Err(StreamError::Call(error)),
                Err(_) => {
                    let silence = length(self.config.silence_limit);
                    let why = format!("the stream was silent for {silence}");
                    return Ok(Ended::Broke(why, responses));
                }
            };
            responses += 1;
            let received = u32::try_from(batch.events.len()).unwrap_or(u32::MAX);
            owed = owed.saturating_sub(received);
            self.take(batch).await.map_err(StreamError::Output)?;
            if self.left == 0 {
                return Ok(Ended::Done);
            }
            let more = self.credits().saturating_sub(owed);
            // Where the call is over, `next` says why.
            if stream.request(more).is_ok() {
                owed += more;
            }
        }
    }

    /// How many events to be owed: as many as the platform allows, and none too many.
    fn credits(&self) -> u32 {
        u32::try_from(self.left).map_or(MAX_OUTSTANDING, |left| left.min(MAX_OUTSTANDING))
    }

    /// Prints a response's events.
    async fn take(&mut self, batch: FetchBatch) -> Result<(), Failure> {
        let channel = self.source.topic().is_channel();
        if batch.events.is_empty() {
            self.place.saw_keepalive(batch.latest_replay_id.as_ref());
        }
        for raw in batch.events {
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            let replay_id = raw.replay_id.clone();
            self.show(raw).await?;
            self.place.saw_event(replay_id.as_ref(), channel);
        }
        Ok(())
    }

    async fn show(&self, raw: RawEvent) -> Result<(), Failure> {
        match self.decode(raw).await {
            Ok(event) => {
                let mut line = if self.data_only {
                    event.decoded.data.to_vec()
                } else {
                    event.cloud_event().to_json()
                };
                line.push(b'\n');
                let line = String::from_utf8_lossy(&line);
                // It stays the same JSON; a program is given it as it is.
                if io::stdout().is_terminal() {
                    print(&visible(&line))
                } else {
                    print(&line)
                }
            }
            Err(why) => {
                note(&why);
                Ok(())
            }
        }
    }

    /// The event, or a line that says why it cannot be shown.
    async fn decode(&self, raw: RawEvent) -> Result<Event, String> {
        let decoded = match self.schema(&raw.schema_id).await {
            Ok(schema) => schema
                .decode(&raw.payload)
                .map_err(|failure| failure.error.to_string()),
            Err(why) => Err(why),
        };
        match decoded {
            Ok(decoded) => Ok(Event {
                source: self.source.clone(),
                raw,
                decoded,
                received_at: SystemTime::now(),
                epoch: 0,
                replayed: false,
                partial: false,
                key: None,
                shown: Shown::Whole,
                known_as: OnceLock::new(),
            }),
            Err(why) => Err(format!(
                "cannot decode event {} ({} bytes, schema {}): {why}",
                raw.replay_id
                    .as_ref()
                    .map_or_else(|| raw.id.to_string(), ToString::to_string),
                raw.payload.len(),
                raw.schema_id
            )),
        }
    }

    async fn schema(&self, id: &SchemaId) -> Result<Arc<Schema>, String> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.schemas.get(id).await {
                Ok(schema) => return Ok(schema),
                Err(SchemaUnavailable::Later(_)) if attempts < SCHEMA_ATTEMPTS => {
                    tokio::time::sleep(SCHEMA_PAUSE).await;
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// Why a stream is not read any further.
enum StreamError {
    Call(PubSubError),
    Output(Failure),
}

/// What to do about a failed call, where so many sign-ins in a row have not helped.
fn recovery(error: &PubSubError, sign_ins: u32) -> Recovery {
    match sign_ins {
        0 => error.recovery(),
        _ => error.recovery().refused_again(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ReplayId {
        text.parse().unwrap()
    }

    #[test]
    fn it_begins_where_told() {
        for (text, from) in [
            ("latest", ReplayFrom::Latest),
            ("earliest", ReplayFrom::Earliest),
            ("0a0b", ReplayFrom::After(id("0a0b"))),
        ] {
            assert_eq!(text.parse::<From>().unwrap().0, from);
        }
        assert!("yesterday".parse::<From>().is_err());
    }

    #[test]
    fn on_a_channel_it_goes_on_before_an_event_that_may_have_siblings() {
        let mut place = Place::new(ReplayFrom::Latest);
        place.saw_event(Some(&id("01")), true);
        assert_eq!(place.from, ReplayFrom::After(id("01")));
        place.saw_event(Some(&id("02")), true);
        place.saw_event(Some(&id("02")), true);
        assert_eq!(place.from, ReplayFrom::After(id("01")));
        place.saw_keepalive(Some(&id("05")));
        assert_eq!(place.from, ReplayFrom::After(id("05")));
        place.saw_event(Some(&id("06")), true);
        assert_eq!(place.from, ReplayFrom::After(id("05")));
    }

    #[test]
    fn on_a_topic_of_one_event_it_goes_on_after_the_last() {
        let mut place = Place::new(ReplayFrom::Earliest);
        place.saw_event(None, false);
        assert_eq!(place.from, ReplayFrom::Earliest);
        place.saw_event(Some(&id("01")), false);
        assert_eq!(place.from, ReplayFrom::After(id("01")));
    }
}
