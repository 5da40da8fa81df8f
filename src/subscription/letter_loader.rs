//! From a dead letter back to an event: its bytes out of the store, decoded with the schema that wrote
//! them, however the schema of its topic has changed since.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::decoder::EventMaker;
use super::held::{Drawn, Slot, Ticket};
use super::lanes::Unit;
use super::parking::Named;
use crate::avro::{SchemaCache, SchemaUnavailable};
use crate::event::{Event, RawEvent};
use crate::store::{DeadLetter, PART, Placed, Refusal, Store, StoredDeadLetter};
use crate::telemetry::metrics;

/// How long a schema may be sought while other letters wait.
const SCHEMA_PATIENCE: Duration = Duration::from_secs(15);

/// Reasons of letters that were given to nobody.
const UNREAD: [&str; 3] = ["undecodable", "schema_refused", "schema_unavailable"];

/// Loads portions of dead letters.
#[derive(Clone)]
pub(super) struct LetterLoader {
    pub(super) store: Arc<dyn Store>,
    pub(super) schemas: Arc<SchemaCache>,
    pub(super) maker: EventMaker,
}

/// A portion, or why there is none.
pub(super) type Loaded = Result<Vec<LoadedLetter>, NotLoaded>;

/// Nothing could be read from the store.
#[derive(Debug)]
pub(super) struct NotLoaded {
    pub(super) tickets: Vec<Ticket>,
    pub(super) why: String,
}

/// What was drawn together, as far as it got.
#[derive(Debug)]
pub(super) enum LoadedLetter {
    /// For the lanes of its handler.
    Ready {
        handler: usize,
        /// That of its first letter.
        place: Placed,
        tickets: Vec<Ticket>,
        /// Their numbers, one for each event of the unit.
        ids: Arc<[i64]>,
        unit: Unit,
    },
    /// Could not be handed to anyone, because one of them did not decode; now all do.
    Decodes {
        unit: Option<String>,
        events: Vec<(Named, Event)>,
    },
    /// Could not be decoded when it came, and now that it can be, its handler turns out not to want it.
    Unwanted(Vec<Named>),
    /// No longer open, one of them at least.
    Gone(Vec<Ticket>),
    /// Not just now.
    Later { tickets: Vec<Ticket>, why: String },
    /// One of them does not decode, so `others` cannot go either.
    Undecodable {
        slot: Slot,
        named: Named,
        others: Vec<Named>,
        refusal: Refusal,
    },
}

/// Why a letter gives no event.
enum NoEvent {
    Later(String),
    Never { reason: &'static str, error: String },
}

impl LetterLoader {
    /// Reads and decodes what was drawn, in this order.
    pub(super) async fn load(&self, drawn: Vec<Drawn>) -> Loaded {
        let letters = drawn.iter().flat_map(|drawn| &drawn.letters);
        let (tickets, ids): (Vec<Ticket>, Vec<i64>) =
            letters.map(|(ticket, placed)| (*ticket, placed.id)).unzip();
        let began = Instant::now();
        let read = self.store.letters(&ids).await;
        metrics::store_called("letters", began.elapsed());
        let stored = read.map_err(|error| NotLoaded {
            tickets,
            why: error.to_string(),
        })?;
        let mut stored: HashMap<i64, StoredDeadLetter> =
            stored.into_iter().map(|one| (one.id, one)).collect();
        let mut loaded = Vec::with_capacity(drawn.len());
        for one in drawn {
            loaded.push(self.load_one(one, &mut stored).await);
        }
        Ok(loaded)
    }

    async fn load_one(
        &self,
        drawn: Drawn,
        stored: &mut HashMap<i64, StoredDeadLetter>,
    ) -> LoadedLetter {
        let tickets: Vec<Ticket> = drawn.letters.iter().map(|(ticket, _)| *ticket).collect();
        let mut unit = None;
        let mut events: Vec<(Named, Event)> = Vec::with_capacity(drawn.letters.len());
        // Nobody can have said yet that its handler wants it.
        let mut never_given = Vec::new();
        for (ticket, placed) in &drawn.letters {
            let Some(one) = stored.remove(&placed.id).filter(|one| one.state == "open") else {
                return LoadedLetter::Gone(tickets);
            };
            unit.clone_from(&one.letter.unit);
            let unread = UNREAD.contains(&&*one.letter.reason);
            let anew = drawn.slot == Slot::Everyone || unread;
            if unread {
                never_given.push(placed.id);
            }
            let event = match one.unreadable {
                Some(error) => Err(NoEvent::Never {
                    reason: "unreadable",
                    error,
                }),
                None => self.event(one.letter, anew).await,
            };
            match event {
                Ok(event) => events.push(((*ticket, placed.id), event)),
                Err(NoEvent::Later(why)) if drawn.slot != Slot::Everyone => {
                    return LoadedLetter::Later { tickets, why };
                }
                Err(why) => {
                    let (reason, error) = match why {
                        NoEvent::Later(error) => ("schema_unavailable", error),
                        NoEvent::Never { reason, error } => (reason, error),
                    };
                    let all = drawn.letters.iter().map(|(other, at)| (*other, at.id));
                    return LoadedLetter::Undecodable {
                        slot: drawn.slot,
                        named: (*ticket, placed.id),
                        others: all.filter(|(other, _)| other != ticket).collect(),
                        refusal: Refusal {
                            reason: reason.to_owned(),
                            error,
                            attempts: 0,
                        },
                    };
                }
            }
        }
        let Slot::Handler(handler) = drawn.slot else {
            return LoadedLetter::Decodes { unit, events };
        };
        let part = unit.is_some_and(|unit| unit.starts_with(PART));
        let named: Vec<Named> = events.iter().map(|(named, _)| *named).collect();
        let wanted = |(named, event): &(Named, Event)| {
            let header = event.decoded.header.as_ref();
            !never_given.contains(&named.1) || self.maker.forms.wants(handler, header)
        };
        let (ids, mut events): (Vec<i64>, Vec<Arc<Event>>) = events
            .into_iter()
            .filter(wanted)
            .map(|((_, id), mut event)| {
                event.partial = part;
                (id, Arc::new(event))
            })
            .unzip();
        let Some((_, place)) = drawn.letters.first().copied() else {
            return LoadedLetter::Gone(tickets);
        };
        if events.is_empty() {
            return LoadedLetter::Unwanted(named);
        }
        LoadedLetter::Ready {
            handler,
            place,
            // What is left out of a unit shares its fate.
            tickets,
            ids: ids.into(),
            unit: match events.len() {
                1 => Unit::One(events.swap_remove(0)),
                _ => Unit::Several(events.into()),
            },
        }
    }

    /// `anew` has a schema sought that was refused a moment ago.
    async fn event(&self, letter: DeadLetter, anew: bool) -> Result<Event, NoEvent> {
        let replayed = letter.replayed;
        let seeking = async {
            match anew {
                true => self.schemas.get_anew(&letter.schema_id).await,
                false => self.schemas.get(&letter.schema_id).await,
            }
        };
        let schema = match tokio::time::timeout(SCHEMA_PATIENCE, seeking).await {
            Ok(Ok(schema)) => schema,
            Ok(Err(SchemaUnavailable::Later(why))) => return Err(NoEvent::Later(why)),
            Ok(Err(SchemaUnavailable::Refused(error))) => {
                return Err(NoEvent::Never {
                    reason: "schema_refused",
                    error,
                });
            }
            Err(_) => {
                let why = format!("no answer within {SCHEMA_PATIENCE:?}");
                return Err(NoEvent::Later(why));
            }
        };
        let raw = RawEvent {
            id: letter.event_uuid,
            schema_id: letter.schema_id,
            payload: letter.payload,
            replay_id: letter.replay_id,
        };
        let made = self.maker.make(&schema, raw, letter.received_at);
        made.map(|event| Event { replayed, ..event })
            .map_err(|(_, failure)| NoEvent::Never {
                reason: "undecodable",
                error: failure.error.to_string(),
            })
    }
}
