//! From a dead letter back to an event: its bytes out of the store, decoded with the schema that wrote
//! them, however the schema of its topic has changed since.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::decoder::EventMaker;
use super::held::{Drawn, PARKED_BEHIND, Slot, Ticket};
use super::lanes::Unit;
use super::parking::Named;
use crate::avro::{SchemaCache, SchemaUnavailable};
use crate::event::{Event, RawEvent};
use crate::store::{DeadLetter, PART, Placed, Refusal, Store, StoredDeadLetter};

/// How long a schema may be sought while other letters wait.
const SCHEMA_PATIENCE: Duration = Duration::from_secs(15);

/// Reasons of letters that were given to nobody, and of which nobody could tell whether their handler wants them.
const UNREAD: [&str; 3] = ["undecodable", "schema_refused", "schema_unavailable"];

/// Reason of letters that could not be read when it was their turn.
const UNREADABLE: &str = "unreadable";

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
        events: Vec<(Named, Arc<Event>)>,
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
        /// Why it does not.
        why: Refusal,
        /// What all of them are refused for.
        refusals: Vec<(Vec<Named>, Refusal)>,
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
        let read = self.store.letters(&ids).await;
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
        let of_store = |(_, placed): &(Ticket, Placed)| stored.get(&placed.id);
        let asked =
            (drawn.letters.iter().filter_map(of_store)).any(|one| one.retry_asked_at.is_some());
        let reasons: Vec<String> = drawn
            .letters
            .iter()
            .map(|letter| {
                of_store(letter).map_or_else(String::new, |one| one.letter.reason.clone())
            })
            .collect();
        let mut unit = None;
        let mut events: Vec<(Named, Arc<Event>)> = Vec::with_capacity(drawn.letters.len());
        // Nobody can have said yet that its handler wants it.
        let mut never_given = Vec::new();
        for (ticket, placed) in &drawn.letters {
            let Some(one) = stored.remove(&placed.id).filter(|one| one.state == "open") else {
                return LoadedLetter::Gone(tickets);
            };
            unit.clone_from(&one.letter.unit);
            let unread = UNREAD.contains(&&*one.letter.reason);
            let anew = drawn.slot == Slot::Everyone || unread || asked;
            if unread {
                never_given.push(placed.id);
            }
            let event = match one.unreadable {
                Some(error) => Err(NoEvent::Never {
                    reason: UNREADABLE,
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
                    let why = Refusal {
                        reason: reason.to_owned(),
                        error,
                        attempts: 0,
                    };
                    let all = drawn.letters.iter().map(|(other, at)| (*other, at.id));
                    let all: Vec<(Named, String)> = all.zip(reasons).collect();
                    let named = (*ticket, placed.id);
                    return LoadedLetter::Undecodable {
                        slot: drawn.slot,
                        named,
                        refusals: refusals(drawn.slot, named, &all, &why),
                        others: (all.into_iter().map(|(other, _)| other))
                            .filter(|other| *other != named)
                            .collect(),
                        why,
                    };
                }
            }
        }
        let Slot::Handler(handler) = drawn.slot else {
            return LoadedLetter::Decodes { unit, events };
        };
        let part = unit.is_some_and(|unit| unit.starts_with(PART));
        let named: Vec<Named> = events.iter().map(|(named, _)| *named).collect();
        let wanted = |(named, event): &(Named, Arc<Event>)| {
            let header = event.decoded.header.as_deref();
            !never_given.contains(&named.1) || self.maker.forms.wants(handler, header)
        };
        let (ids, mut events): (Vec<i64>, Vec<Arc<Event>>) = events
            .into_iter()
            .filter(wanted)
            .map(|((_, id), mut event)| {
                Arc::make_mut(&mut event).partial = part;
                (id, event)
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
    async fn event(&self, letter: DeadLetter, anew: bool) -> Result<Arc<Event>, NoEvent> {
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
            id: letter.event_uuid.into(),
            schema_id: letter.schema_id,
            payload: letter.payload,
            replay_id: letter.replay_id,
        };
        let made = self.maker.make(&schema, raw, letter.received_at);
        match made {
            Ok(mut event) => {
                Arc::make_mut(&mut event).replayed = replayed;
                Ok(event)
            }
            Err(failed) => Err(NoEvent::Never {
                reason: "undecodable",
                error: failed.1.error.to_string(),
            }),
        }
    }
}

/// What the letters of a unit are refused for, each with its reason so far, where `one` of them does not decode.
fn refusals(
    slot: Slot,
    one: Named,
    all: &[(Named, String)],
    why: &Refusal,
) -> Vec<(Vec<Named>, Refusal)> {
    let behind = format!("dead letter {} of the same transaction", one.1);
    let mut refusals: Vec<(Vec<Named>, Refusal)> = Vec::new();
    for (named, was) in all {
        let is_it = *named == one;
        let refusal = match slot {
            Slot::Everyone if is_it => why.clone(),
            // They were given to nobody. What is next is to go once the one is given up.
            Slot::Everyone => Refusal {
                reason: PARKED_BEHIND.to_owned(),
                error: format!("{behind} cannot be decoded"),
                ..why.clone()
            },
            Slot::Handler(_) => {
                let refusal = still(was, why);
                let error = match is_it {
                    true => refusal.error,
                    false => format!("{behind}: {}", refusal.error),
                };
                Refusal { error, ..refusal }
            }
        };
        match refusals.iter_mut().find(|(_, same)| *same == refusal) {
            Some((together, _)) => together.push(*named),
            None => refusals.push((vec![*named], refusal)),
        }
    }
    refusals
}

/// What a letter of a handler, parked for the reason `was`, is refused for where it cannot be read.
///
/// Its reason tells whether its handler was given it, or is known to want it, so that it stays. Only one that was
/// parked behind others has to have another, for it would be free to go again at once; that is none of [`UNREAD`].
fn still(was: &str, why: &Refusal) -> Refusal {
    let reason = match was {
        PARKED_BEHIND => UNREADABLE,
        _ => was,
    };
    let error = match reason == why.reason {
        true => why.error.clone(),
        false => format!("cannot be handed over now ({}): {}", why.reason, why.error),
    };
    Refusal {
        reason: reason.to_owned(),
        error,
        ..why.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_it_cannot_be_read_leaves_a_letter_the_reason_that_tells_whether_it_was_given() {
        let why = |reason: &str| Refusal {
            reason: reason.to_owned(),
            error: "no".to_owned(),
            attempts: 0,
        };
        for (was, reason, now, error) in [
            // It was given to its handler: it is not asked any more whether that wants it.
            (
                "rejected",
                "schema_refused",
                "rejected",
                "cannot be handed over now (schema_refused): no",
            ),
            (
                "exhausted",
                "undecodable",
                "exhausted",
                "cannot be handed over now (undecodable): no",
            ),
            // It was not, and a wrong key does not change that.
            (
                "undecodable",
                "unreadable",
                "undecodable",
                "cannot be handed over now (unreadable): no",
            ),
            ("undecodable", "undecodable", "undecodable", "no"),
            // Its handler wanted it when it was parked; it is to rest now.
            (
                PARKED_BEHIND,
                "undecodable",
                UNREADABLE,
                "cannot be handed over now (undecodable): no",
            ),
            (UNREADABLE, "unreadable", UNREADABLE, "no"),
        ] {
            let refusal = still(was, &why(reason));
            assert_eq!((&*refusal.reason, &*refusal.error), (now, error));
            let given = |reason: &str| !UNREAD.contains(&reason);
            assert_eq!(given(was), given(now), "{was}");
        }
    }
}
