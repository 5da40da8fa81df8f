//! A look at the other side: is there what was answered with handled, and in which order did it come?

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

/// How often the other side is looked at again.
const PAUSE: Duration = Duration::from_millis(200);

/// What a handler writes to, as somebody else sees it.
#[async_trait]
pub trait FarSide: Send + Sync {
    /// What it has, in the order in which it came: for each thing that arrived any text that holds the `id`
    /// of its event, or of its events. What it had before the run may be among it.
    ///
    /// # Errors
    ///
    /// Why it cannot be looked at.
    async fn received(&self) -> Result<Vec<String>, String>;
}

/// The other side, and how test events are told apart there.
pub(super) struct View {
    pub(super) far_side: Arc<dyn FarSide>,
    /// What the `id` of each event of this run begins with; a number and a colon follow.
    pub(super) mark: String,
    /// How long what is missing is looked for.
    pub(super) settle: Duration,
}

/// What is at the other side, by the events' numbers.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The place of the first arrival of each.
    first: HashMap<usize, usize>,
    /// How often each arrived.
    times: HashMap<usize, usize>,
    /// Missing at the first look, and there later.
    pub(super) late: usize,
    /// Missing for good.
    pub(super) missing: Vec<usize>,
}

impl View {
    /// Looks until all of these are there, or for as long as is worth waiting.
    pub(super) async fn look(&self, wanted: &[usize]) -> Result<Seen, String> {
        let began = Instant::now();
        let mut late: usize = 0;
        loop {
            let in_time = began.elapsed() < self.settle;
            let mut seen = match self.read().await {
                // A file, a table or a queue may only come to be with the first event.
                Err(_) if in_time => Seen::default(),
                read => read?,
            };
            let missing = wanted
                .iter()
                .filter(|number| !seen.first.contains_key(number));
            seen.missing = missing.copied().collect();
            if seen.missing.is_empty() || !in_time {
                seen.late = late.saturating_sub(seen.missing.len());
                return Ok(seen);
            }
            late = late.max(seen.missing.len());
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn read(&self) -> Result<Seen, String> {
        let mut seen = Seen::default();
        let mut place = 0;
        for text in self.far_side.received().await? {
            for number in numbers(&text, &self.mark) {
                seen.first.entry(number).or_insert(place);
                *seen.times.entry(number).or_default() += 1;
                place += 1;
            }
        }
        Ok(seen)
    }
}

impl Seen {
    /// Two events of one record whose first arrivals are the wrong way round, where there are such. `events`
    /// with their numbers and records, as they were handed over.
    pub(super) fn out_of_order(&self, events: &[(usize, Vec<Box<str>>)]) -> Option<(usize, usize)> {
        let mut newest: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for (number, records) in events {
            let Some(place) = self.first.get(number) else {
                continue;
            };
            for record in records {
                match newest.get(&**record) {
                    Some((earlier, before)) if before > place => return Some((*earlier, *number)),
                    _ => newest.insert(record, (*number, *place)),
                };
            }
        }
        None
    }

    /// How many of these arrived more than once.
    pub(super) fn repeated(&self, numbers: &[usize]) -> usize {
        let times = |number| self.times.get(number).copied().unwrap_or(0);
        numbers.iter().filter(|number| times(*number) > 1).count()
    }
}

/// The numbers of the events that a text is about, each once: an `id` stands there more often than the
/// event came, where it is a header too.
fn numbers(text: &str, mark: &str) -> Vec<usize> {
    let mut numbers = Vec::new();
    for (at, _) in text.match_indices(mark) {
        let rest = &text[at + mark.len()..];
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        // The publisher's own ID, which begins alike, ends here. A colon may be escaped, in a URL for instance.
        if rest[digits..].starts_with([':', '%', '\\'])
            && let Ok(number) = rest[..digits].parse()
            && !numbers.contains(&number)
        {
            numbers.push(number);
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_counted_once_in_a_text_that_names_it_often() {
        let text = r#"accounts/orgstreamtest-1-7:00: {"id":"orgstreamtest-1-7:00:r","eventuuid":"orgstreamtest-1-7"}
            {"id":"orgstreamtest-1-12:01"} {"eventuuid":"orgstreamtest-1-9"} {"id":"orgstreamtest-2-3:00"}"#;
        assert_eq!(numbers(text, "orgstreamtest-1-"), [7, 12]);
    }

    #[test]
    fn first_arrivals_decide_about_order() {
        let of = |places: &[usize]| {
            let mut seen = Seen::default();
            for (place, number) in places.iter().enumerate() {
                seen.first.entry(*number).or_insert(place);
            }
            seen
        };
        let events = [
            (0, vec!["a".into()]),
            (1, vec!["b".into()]),
            (2, vec!["a".into()]),
        ];
        assert_eq!(of(&[0, 1, 2, 0]).out_of_order(&events), None);
        assert_eq!(of(&[1, 0, 2]).out_of_order(&events), None);
        assert_eq!(of(&[2, 1, 0]).out_of_order(&events), Some((0, 2)));
        assert_eq!(
            of(&[1, 2]).out_of_order(&events),
            None,
            "a missing one is no disorder"
        );
    }
}
