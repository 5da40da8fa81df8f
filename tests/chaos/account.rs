//! The account of a run: what became of every published event, and whether the promises held. Pure: from
//! what was published, answered and stored to a table and a list of broken promises.

use std::collections::{HashMap, HashSet};
use std::fmt;

mod holes;
mod letters;
mod order;
mod position;
mod repeats;

/// One event as one subscription carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Its place on the bus. Pieces of one enriched change share it.
    pub(crate) place: u64,
    /// Its first record; empty for platform events and for what cannot be decoded.
    pub(crate) record: String,
    /// What it stays in order with.
    pub(crate) lanes: Lanes,
    /// A gap event, which is to be recorded as a hole and handed over as well.
    pub(crate) gap: bool,
    pub(crate) poison: Poison,
}

/// What an event stays in order with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lanes {
    /// Nothing.
    None,
    /// Everything.
    All,
    /// Events that share one of these.
    Of(Vec<String>),
}

/// Why an event may be parked although its handlers are well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Poison {
    None,
    /// This handler answers 422.
    Refused(String),
    /// This handler answers 503, for it alone.
    Fails(String),
    /// Bytes that are no event.
    Bytes,
    /// An event whose schema does not exist.
    Schema,
}

/// One request that a handler has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) place: u64,
    pub(crate) record: String,
    /// Of the worker that handed it over.
    pub(crate) epoch: i64,
    /// By a replay beside the live stream.
    pub(crate) replayed: bool,
    /// Microseconds since 1970.
    pub(crate) came_us: i64,
    pub(crate) at_us: i64,
    pub(crate) status: u16,
}

/// A row of `dead_letter`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Letter {
    /// None: for all.
    pub(crate) handler: Option<String>,
    pub(crate) place: u64,
    /// Its first record; empty where none is known.
    pub(crate) record: String,
    pub(crate) reason: String,
    /// `open`, `handled` or `discarded`.
    pub(crate) state: String,
}

/// A letter that was put down or opened again, or that was resolved or taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parking {
    pub(crate) at_us: i64,
    /// Number of the letter.
    pub(crate) letter: i64,
    /// None: for all.
    pub(crate) handler: Option<String>,
    pub(crate) place: u64,
    /// What the letter holds: records, or the value of a key.
    pub(crate) records: Vec<String>,
    pub(crate) open: bool,
    /// A replay beside the live stream brought it, after newer ones: those need not wait for it.
    pub(crate) replayed: bool,
}

/// A row of an `append` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Appended {
    pub(crate) place: u64,
    pub(crate) record: String,
    /// When it was written, somewhat before its commit.
    pub(crate) at_us: i64,
    /// By a replay beside the live stream.
    pub(crate) replayed: bool,
}

/// A row of `hole`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hole {
    pub(crate) lost: bool,
    pub(crate) reason: String,
    pub(crate) from: Option<u64>,
    pub(crate) to: Option<u64>,
}

/// A change of a subscription's row that says who runs it or where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) at_us: i64,
    /// The process whose connection wrote.
    pub(crate) writer: String,
    pub(crate) before: Row,
    pub(crate) after: Row,
    /// What is stored as finished above the position then.
    pub(crate) ahead: Vec<Ahead>,
}

/// What one handler has finished above the position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ahead {
    pub(crate) handler: String,
    pub(crate) place: u64,
    pub(crate) record: String,
}

/// The part of a subscription's row that fencing is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Row {
    pub(crate) epoch: i64,
    pub(crate) holder: Option<String>,
    pub(crate) write_number: i64,
    pub(crate) position: Option<u64>,
}

/// What is known of one handler.
#[derive(Debug, Clone, Default)]
pub(crate) struct HandlerCase {
    pub(crate) name: String,
    /// Attempts that count, after which an event is parked.
    pub(crate) attempts: u32,
    /// In the order of the answers.
    pub(crate) answers: Vec<Answered>,
    /// Rows of an `append` table, in the order in which they were written; none for other handlers.
    pub(crate) rows: Option<Vec<Appended>>,
}

/// What is known of one subscription.
#[derive(Debug, Clone, Default)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// Several events may share a place.
    pub(crate) channel: bool,
    pub(crate) max_in_flight: usize,
    pub(crate) concurrency: usize,
    /// A position that is gone is followed by LATEST: events that are still there may be skipped.
    pub(crate) skips: bool,
    /// In bus order.
    pub(crate) pieces: Vec<Piece>,
    pub(crate) handlers: Vec<HandlerCase>,
    pub(crate) letters: Vec<Letter>,
    /// In order.
    pub(crate) parkings: Vec<Parking>,
    pub(crate) holes: Vec<Hole>,
    /// In order.
    pub(crate) writes: Vec<Write>,
    /// Up to where the bus has forgotten events.
    pub(crate) gone_up_to: u64,
    /// The same, for each time that it forgot.
    pub(crate) forgotten: Vec<u64>,
    /// Its events have no commit time.
    pub(crate) untimed: bool,
    /// Transactions are handed over, and parked, whole.
    pub(crate) grouped: bool,
    /// How often a process was killed, frozen or stopped, or left without an answer: each may repeat what is
    /// under way.
    pub(crate) interruptions: usize,
    /// How often one was killed or frozen: what is under way may arrive late.
    pub(crate) pauses: usize,
    /// A person had events handed over again, as often as that takes.
    pub(crate) replays: bool,
    /// A person gave parked events up meanwhile.
    pub(crate) discards: bool,
    /// Everything parked was seen to: what can be handled, is.
    pub(crate) tidied: bool,
}

impl Case {
    /// How many events share a place.
    fn pieces_at(&self, place: u64) -> usize {
        let from = self.pieces.partition_point(|piece| piece.place < place);
        let there = self.pieces[from..].iter();
        there.take_while(|piece| piece.place == place).count()
    }

    /// True where nothing tells a worker that has just started that an event is younger than that of an open letter: they
    /// are platform events, and the bus has forgotten the letter's and begins with what is behind it.
    fn nobody_knows(&self, letter: u64, event: u64) -> bool {
        let mut forgotten = self.forgotten.iter();
        self.untimed && forgotten.any(|gone| (letter..event).contains(gone))
    }

    /// Events that may be with a handler at once.
    fn under_way(&self) -> usize {
        // A transaction of ours has four at most, and an enriching channel splits each up.
        self.concurrency * if self.grouped { 16 } else { 1 }
    }
}

/// One line of the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) subscription: String,
    pub(crate) handler: String,
    pub(crate) published: usize,
    pub(crate) handled: usize,
    pub(crate) parked: usize,
    /// In a hole, and neither handled nor parked.
    pub(crate) lost: usize,
    pub(crate) missing: usize,
    /// Handled again under a later epoch, and how often that may be.
    pub(crate) repeats: usize,
    pub(crate) repeats_allowed: usize,
    /// Handled again under the same epoch.
    pub(crate) again: usize,
    /// Handed over by a worker that another had already followed.
    pub(crate) late: usize,
}

/// The account of one subscription.
#[derive(Debug, Clone, Default)]
pub(crate) struct Account {
    pub(crate) lines: Vec<Line>,
    /// Broken promises; none is what we want.
    pub(crate) broken: Vec<String>,
    /// What the trouble led to, once for each time.
    pub(crate) met: Vec<String>,
}

impl Account {
    /// Pieces that are not accounted for.
    pub(crate) fn missing(&self) -> usize {
        self.lines.iter().map(|line| line.missing).sum()
    }
}

/// The lane of platform events without a key.
pub(crate) const NO_RECORD: &str = "(no record)";

type Key<'a> = (u64, &'a str);

/// Draws up the account of one subscription.
pub(crate) fn account(case: &Case) -> Account {
    let mut account = Account::default();
    let known: HashMap<Key<'_>, &Piece> = case
        .pieces
        .iter()
        .map(|piece| ((piece.place, piece.record.as_str()), piece))
        .collect();
    for handler in &case.handlers {
        let handled = handled(handler);
        let mut line = Line {
            subscription: case.name.clone(),
            handler: handler.name.clone(),
            published: case.pieces.len(),
            ..Line::default()
        };
        whereabouts(case, handler, &handled, &mut line, &mut account.broken);
        for key in handled.iter().filter(|key| !known.contains_key(*key)) {
            account.broken.push(format!(
                "{}/{}: handled {key:?}, which nobody published",
                case.name, handler.name
            ));
        }
        let broken = &mut account.broken;
        if handler.rows.is_some() {
            repeats::once_each(case, handler, &handled, broken);
        } else {
            repeats::repeats(case, handler, &mut line, broken);
            repeats::known(case, handler, broken);
            repeats::late(case, handler, &mut line, broken);
            order::one_at_a_time(case, handler, &known, broken);
        }
        order::in_order(case, handler, &known, broken);
        letters::held(case, handler, &known, broken);
        account.lines.push(line);
    }
    letters::have_reasons(case, &known, &mut account.broken);
    letters::seen_to(case, &mut account.broken);
    holes::have_reasons(case, &mut account.broken);
    position::passes_nothing_unfinished(case, &mut account.broken);
    position::keeps_what_is_ahead(case, &mut account.broken);
    super::fencing::fenced(case, &mut account.broken);
    account.met = super::census::met(case, &account);
    account
}

/// What a handler has handled, in order, repeats included.
fn handled(handler: &HandlerCase) -> Vec<Key<'_>> {
    match &handler.rows {
        Some(rows) => rows
            .iter()
            .map(|row| (row.place, row.record.as_str()))
            .collect(),
        None => successes(handler)
            .map(|answer| (answer.place, answer.record.as_str()))
            .collect(),
    }
}

/// What a handler has handled of the live stream, in order, repeats included. A replay beside it hands older
/// values over after newer ones, which is what it is for: some of them the live stream may have lost.
fn handled_live(handler: &HandlerCase) -> Vec<Key<'_>> {
    match &handler.rows {
        Some(rows) => {
            let live = rows.iter().filter(|row| !row.replayed);
            live.map(|row| (row.place, row.record.as_str())).collect()
        }
        None => successes(handler)
            .filter(|answer| !answer.replayed)
            .map(|answer| (answer.place, answer.record.as_str()))
            .collect(),
    }
}

/// When a handler first had handled each event: when it was handed over, and when that was done.
fn first_handlings(handler: &HandlerCase) -> HashMap<Key<'_>, (i64, i64)> {
    let mut first = HashMap::new();
    let mut add = |place, record, came_us, at_us| {
        let entry = first.entry((place, record)).or_insert((came_us, at_us));
        if at_us < entry.1 {
            *entry = (came_us, at_us);
        }
    };
    match &handler.rows {
        Some(rows) => {
            for row in rows {
                add(row.place, row.record.as_str(), row.at_us, row.at_us);
            }
        }
        None => {
            for answer in successes(handler) {
                add(
                    answer.place,
                    answer.record.as_str(),
                    answer.came_us,
                    answer.at_us,
                );
            }
        }
    }
    first
}

fn successes(handler: &HandlerCase) -> impl Iterator<Item = &Answered> {
    handler.answers.iter().filter(|answer| answer.status == 200)
}

/// Every piece is handled, parked, or in a hole.
fn whereabouts(
    case: &Case,
    handler: &HandlerCase,
    handled: &[Key<'_>],
    line: &mut Line,
    broken: &mut Vec<String>,
) {
    let handled: HashSet<_> = handled.iter().copied().collect();
    let mut parked: HashMap<Key<'_>, usize> = HashMap::new();
    let of_handler = |letter: &&Letter| {
        let of = letter.handler.as_ref();
        of.is_none_or(|name| *name == handler.name)
    };
    let kept = |letter: &&Letter| letter.state != "handled";
    for letter in case.letters.iter().filter(of_handler).filter(kept) {
        *parked
            .entry((letter.place, letter.record.as_str()))
            .or_default() += 1;
    }
    for piece in &case.pieces {
        let key = (piece.place, piece.record.as_str());
        if handled.contains(&key) {
            line.handled += 1;
        } else if parked.contains_key(&key) || take_unread(&mut parked, piece.place) {
            line.parked += 1;
        } else if let Some(hole) = case
            .holes
            .iter()
            .find(|hole| covers(case, hole, piece.place))
        {
            line.lost += 1;
            if piece.place > case.gone_up_to && !case.skips {
                broken.push(format!(
                    "{}/{}: {key:?} is in the hole {hole:?}, and the bus still has it",
                    case.name, handler.name
                ));
            }
        } else {
            line.missing += 1;
            broken.push(format!(
                "{}/{}: {key:?} is neither handled nor parked nor in a hole",
                case.name, handler.name
            ));
        }
    }
}

/// A letter of a place whose records nobody could read stands for one piece of that place.
fn take_unread(parked: &mut HashMap<Key<'_>, usize>, place: u64) -> bool {
    match parked.get_mut(&(place, "")) {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    }
}

/// After its beginning (on a channel, at it: more events may share the last place known) and up to its end,
/// which may be a keepalive that names a lost place.
fn covers(case: &Case, hole: &Hole, place: u64) -> bool {
    let begun = |from| from < place || (case.channel && from == place);
    hole.lost && hole.from.is_none_or(begun) && hole.to.is_some_and(|to| place <= to)
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<10} {:<3} {:>6} published = {:>6} handled + {:>4} parked + {:>4} lost + {} missing; {} repeats \
             (of {} allowed), {} again, {} late",
            self.subscription,
            self.handler,
            self.published,
            self.handled,
            self.parked,
            self.lost,
            self.missing,
            self.repeats,
            self.repeats_allowed,
            self.again,
            self.late
        )
    }
}
