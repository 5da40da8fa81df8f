//! The account of a run: what became of every published event, and whether the promises held. Pure: from
//! what was published, answered and stored to a table and a list of broken promises.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

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
    pub(crate) rows: Option<Vec<(u64, String)>>,
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
    pub(crate) holes: Vec<Hole>,
    /// In order.
    pub(crate) writes: Vec<Write>,
    /// Up to where the bus has forgotten events.
    pub(crate) gone_up_to: u64,
    /// Transactions are handed over, and parked, whole.
    pub(crate) grouped: bool,
    /// How often a process was killed, frozen or stopped, or left without an answer: each may repeat what is
    /// under way.
    pub(crate) interruptions: usize,
    /// How often one was killed or frozen: what is under way may arrive late.
    pub(crate) pauses: usize,
    /// A person had events handed over again, as often as that takes.
    pub(crate) replays: bool,
    /// Everything parked was seen to: what can be handled, is.
    pub(crate) tidied: bool,
}

impl Case {
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
        if handler.rows.is_some() {
            once_each(case, handler, &handled, &mut account.broken);
        } else {
            repeats(case, handler, &mut line, &mut account.broken);
            late(case, handler, &mut line, &mut account.broken);
        }
        in_order(case, handler, &handled, &known, &mut account.broken);
        account.lines.push(line);
    }
    letters_have_reasons(case, &mut account.broken);
    holes_have_reasons(case, &mut account.broken);
    super::fencing::fenced(case, &mut account.broken);
    account
}

/// What a handler has handled, in order, repeats included.
fn handled(handler: &HandlerCase) -> Vec<Key<'_>> {
    match &handler.rows {
        Some(rows) => rows
            .iter()
            .map(|(place, record)| (*place, record.as_str()))
            .collect(),
        None => successes(handler)
            .map(|answer| (answer.place, answer.record.as_str()))
            .collect(),
    }
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

fn once_each(case: &Case, handler: &HandlerCase, handled: &[Key<'_>], broken: &mut Vec<String>) {
    let mut seen = HashSet::new();
    for key in handled.iter().filter(|key| !seen.insert(**key)) {
        broken.push(format!(
            "{}/{}: {key:?} is in the table more than once",
            case.name, handler.name
        ));
    }
}

/// First handlings follow bus order, lane by lane. An event that was given up holds its own records, and
/// nothing else: where it has none, and in strict order, later ones pass it, and barriers pass it anywhere.
fn in_order(
    case: &Case,
    handler: &HandlerCase,
    handled: &[Key<'_>],
    known: &HashMap<Key<'_>, &Piece>,
    broken: &mut Vec<String>,
) {
    let given_up = given_up(case, handler);
    let mut seen = HashSet::new();
    let mut newest: HashMap<&str, u64> = HashMap::new();
    // The newest of all, and the newest that everything stays in order with.
    let (mut any, mut all) = (0, 0);
    for key in handled.iter().filter(|key| seen.insert(**key)) {
        let Some(piece) = known.get(key) else {
            continue;
        };
        let given_up = given_up.contains(key) || matches!(piece.poison, Poison::Fails(_));
        let before = match &piece.lanes {
            Lanes::All if !given_up => any,
            Lanes::Of(lanes) if !given_up || !lanes.iter().any(|lane| lane == NO_RECORD) => {
                let own = lanes.iter().filter_map(|lane| newest.get(lane.as_str()));
                let own = own.copied().max().unwrap_or(0);
                if given_up { own } else { own.max(all) }
            }
            _ => continue,
        };
        // Siblings share a place and have records of their own, but for `strict`.
        if before > piece.place {
            broken.push(format!(
                "{}/{}: {key:?} of {:?} was first handled after {before}",
                case.name, handler.name, piece.lanes
            ));
        }
        if !given_up {
            any = any.max(piece.place);
        }
        match &piece.lanes {
            Lanes::None => {}
            Lanes::All => all = all.max(piece.place),
            Lanes::Of(lanes) => {
                for lane in lanes {
                    let newest = newest.entry(lane).or_default();
                    *newest = piece.place.max(*newest);
                }
            }
        }
    }
}

/// What a handler has refused, or was ever parked for it.
fn given_up<'a>(case: &'a Case, handler: &'a HandlerCase) -> HashSet<Key<'a>> {
    let refused = handler.answers.iter().filter(|answer| answer.status == 422);
    let refused = refused.map(|answer| (answer.place, answer.record.as_str()));
    let letters = case.letters.iter();
    let letters = letters.map(|letter| (letter.place, letter.record.as_str()));
    refused.chain(letters).collect()
}

/// When each epoch began.
fn beginnings(case: &Case) -> BTreeMap<i64, i64> {
    let takeovers = case
        .writes
        .iter()
        .filter(|w| w.after.epoch != w.before.epoch);
    takeovers.map(|w| (w.after.epoch, w.at_us)).collect()
}

/// Repeats of a new epoch are bounded by what was in flight, and what finished since the last position write.
fn repeats(case: &Case, handler: &HandlerCase, line: &mut Line, broken: &mut Vec<String>) {
    let mut first: HashMap<Key<'_>, i64> = HashMap::new();
    let mut repeated: BTreeMap<i64, usize> = BTreeMap::new();
    for answer in successes(handler).filter(|answer| !answer.replayed) {
        match first.get(&(answer.place, answer.record.as_str())) {
            None => {
                first.insert((answer.place, &answer.record), answer.epoch);
            }
            Some(epoch) if *epoch == answer.epoch => line.again += 1,
            Some(epoch) if *epoch < answer.epoch => {
                *repeated.entry(answer.epoch).or_default() += 1;
            }
            // What a worker says that was followed is counted as late.
            Some(_) => {}
        }
    }
    for (epoch, began) in beginnings(case) {
        let allowed = case.max_in_flight + finished_since_write(case, handler, began);
        let count = repeated.remove(&epoch).unwrap_or(0);
        line.repeats += count;
        line.repeats_allowed += allowed;
        if count > allowed && !case.replays {
            broken.push(format!(
                "{}/{}: {count} repeats in epoch {epoch}, where {allowed} are allowed",
                case.name, handler.name
            ));
        }
    }
    for (epoch, count) in repeated {
        broken.push(format!(
            "{}/{}: {count} repeats in epoch {epoch}, whose beginning nobody saw",
            case.name, handler.name
        ));
    }
    let allowed = case.interruptions * case.under_way();
    if line.again > allowed && !case.replays {
        broken.push(format!(
            "{}/{}: {} repeats within one epoch, where {allowed} are allowed",
            case.name, handler.name, line.again
        ));
    }
}

/// What a handler handled before a takeover, and no write of the position can have known of: the last one
/// began when the last but one was done, at the earliest.
fn finished_since_write(case: &Case, handler: &HandlerCase, takeover: i64) -> usize {
    let earlier = case.writes.iter().filter(|w| {
        w.at_us < takeover
            && w.after.write_number != w.before.write_number
            && w.after.write_number > 0
    });
    let mut times: Vec<i64> = earlier.map(|w| w.at_us).collect();
    times.pop();
    let since = times.pop().unwrap_or(0);
    successes(handler)
        .filter(|answer| (since..=takeover).contains(&answer.at_us))
        .count()
}

/// A worker that was followed hands nothing over any more, but for what was under way.
fn late(case: &Case, handler: &HandlerCase, line: &mut Line, broken: &mut Vec<String>) {
    let beginnings = beginnings(case);
    let followed = |answer: &&Answered| {
        let next = beginnings.range(answer.epoch + 1..).next();
        next.is_some_and(|(_, began)| *began < answer.came_us)
    };
    line.late = handler.answers.iter().filter(followed).count();
    let allowed = case.pauses * case.under_way();
    if line.late > allowed {
        broken.push(format!(
            "{}/{}: {} events handed over by a worker that another had followed, where {allowed} are allowed",
            case.name, handler.name, line.late
        ));
    }
}

fn letters_have_reasons(case: &Case, broken: &mut Vec<String>) {
    for letter in &case.letters {
        let of_place = case
            .pieces
            .iter()
            .filter(|piece| piece.place == letter.place);
        let mut pieces = of_place.peekable();
        if pieces.peek().is_none() {
            broken.push(format!(
                "{}: {letter:?} is of no published event",
                case.name
            ));
            continue;
        }
        let explained = match letter.reason.as_str() {
            // In a transaction another event may be to blame.
            "undecodable" => case.grouped || pieces.any(|piece| piece.poison == Poison::Bytes),
            "schema_refused" => case.grouped || pieces.any(|piece| piece.poison == Poison::Schema),
            "rejected" => answers_of(case, letter).any(|answer| answer.status == 422),
            "exhausted" => {
                let attempts = case
                    .handlers
                    .iter()
                    .find(|handler| Some(&handler.name) == letter.handler.as_ref())
                    .map_or(0, |handler| handler.attempts);
                let failed = answers_of(case, letter).filter(|answer| answer.status != 200);
                failed.count() >= attempts as usize
            }
            // What could not be decoded, and can be now, is exchanged for a letter of each handler.
            "parked_behind" => {
                pieces.any(|piece| matches!(piece.poison, Poison::Bytes | Poison::Schema))
                    || case.letters.iter().any(|other| {
                        let together = other.handler.is_none() || other.handler == letter.handler;
                        other.place < letter.place && together
                    })
            }
            _ => false,
        };
        if !explained {
            broken.push(format!("{}: nothing explains {letter:?}", case.name));
        }
    }
}

/// What the letter's handler answered for its event.
fn answers_of<'a>(case: &'a Case, letter: &'a Letter) -> impl Iterator<Item = &'a Answered> {
    let of_letter = case
        .handlers
        .iter()
        .filter(|handler| Some(&handler.name) == letter.handler.as_ref());
    of_letter
        .flat_map(|handler| &handler.answers)
        .filter(|answer| answer.place == letter.place && answer.record == letter.record)
}

fn holes_have_reasons(case: &Case, broken: &mut Vec<String>) {
    for hole in case.holes.iter().filter(|hole| hole.lost) {
        if case.gone_up_to == 0 {
            broken.push(format!(
                "{}: nothing was lost, and there is {hole:?}",
                case.name
            ));
        }
        if hole.to.is_none() {
            broken.push(format!(
                "{}: the end of {hole:?} was never filled in",
                case.name
            ));
        }
    }
    if case.tidied {
        let left = case.letters.iter().filter(|letter| letter.state == "open");
        broken.extend(left.map(|letter| format!("{}: {letter:?} was left", case.name)));
        let discarded = case.letters.iter().filter(|l| l.state == "discarded");
        for letter in discarded.filter(|l| !["undecodable", "schema_refused"].contains(&&*l.reason))
        {
            broken.push(format!("{}: nobody discarded {letter:?}", case.name));
        }
    }
    let gaps = case.holes.iter().filter(|hole| !hole.lost).count();
    let handed = case.pieces.iter().filter(|piece| {
        let lost = case
            .holes
            .iter()
            .any(|hole| covers(case, hole, piece.place));
        piece.gap && !lost
    });
    let expected = handed.count();
    if gaps < expected {
        broken.push(format!(
            "{}: {expected} gap events, and {gaps} holes of kind gap",
            case.name
        ));
    }
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
