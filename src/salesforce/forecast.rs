//! When the org's event deliveries will be used up.

use std::time::{Duration, SystemTime};

use super::limits::Deliveries;

/// The org counts deliveries over this time, which ends now (facts, section 9).
const WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

/// How far back the rate is measured.
const LOOK_BACK: Duration = Duration::from_secs(60 * 60);

/// Readings nearer to each other tell no rate: each is exact within five minutes.
const SHORTEST: Duration = Duration::from_secs(4 * 60);

/// When nothing will be left, by readings of one org, oldest first: from the rate at which it grew less within the
/// hour before the last of them, whoever took the events. Where nothing is left, since when that is so. `None` where
/// it will not be used up, or nobody can tell.
///
/// The window slides: with each moment deliveries of a day ago stop to count, and what is left grows by those. The
/// readings show the two together, and so the forecast takes it that as many will fall out of the window as in that
/// hour. Where the day before was busier, or quieter, than that, it is late or early by as much. In more than a day
/// all that counts now has fallen out: a forecast beyond that says nothing, and there is none.
pub fn exhausted_at(readings: &[(SystemTime, Deliveries)]) -> Option<SystemTime> {
    let (last_at, last) = readings.last()?;
    if last.remaining == 0 {
        let spent = readings.iter().rev();
        return spent
            .take_while(|(_, one)| one.remaining == 0)
            .last()
            .map(|(at, _)| *at);
    }
    let age = |at: &SystemTime| last_at.duration_since(*at).unwrap_or_default();
    let (first_at, first) = readings.iter().find(|(at, _)| age(at) <= LOOK_BACK)?;
    let took = age(first_at);
    // What is used, and not what is left, which also changes with what the org is allowed.
    let used = |one: &Deliveries| one.max.saturating_sub(one.remaining);
    let more = used(last)
        .checked_sub(used(first))
        .filter(|more| *more > 0)?;
    if took < SHORTEST {
        return None;
    }
    let millis = u128::from(last.remaining) * took.as_millis() / u128::from(more);
    let left = Duration::from_millis(u64::try_from(millis).ok()?);
    (left <= WINDOW)
        .then(|| last_at.checked_add(left))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 60;

    fn at(minutes: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000 + minutes * 60)
    }

    /// Of minutes and what is left of 10,000.
    fn forecast(readings: &[(u64, u64)]) -> Option<SystemTime> {
        let reading = |&(minutes, remaining)| {
            let max = 10_000;
            (at(minutes), Deliveries { max, remaining })
        };
        exhausted_at(&readings.iter().map(reading).collect::<Vec<_>>())
    }

    #[test]
    fn it_goes_on_as_in_the_last_hour_whatever_was_before() {
        // 600 in an hour, 5400 left: nine hours.
        let readings = [(0, 9_900), (60, 6_000), (90, 5_500), (120, 5_400)];
        assert_eq!(forecast(&readings), Some(at(120 + 9 * 60)));
        // Where there is less than an hour, by that.
        assert_eq!(forecast(&[(0, 1_000), (5, 900)]), Some(at(5 + 45)));
    }

    #[test]
    fn where_nothing_is_left_it_is_since_then() {
        assert_eq!(forecast(&[(0, 0)]), Some(at(0)));
        let readings = [(0, 0), (5, 40), (10, 0), (15, 0)];
        assert_eq!(forecast(&readings), Some(at(10)));
    }

    #[test]
    fn where_it_will_not_be_used_up_there_is_no_forecast() {
        for readings in [
            vec![],
            vec![(0, 9_000)],
            // Too near to each other.
            vec![(0, 9_000), (3, 8_000)],
            // As much falls out of the window as comes, or more.
            vec![(0, 9_000), (30, 9_000)],
            vec![(0, 8_000), (30, 9_000)],
            // Used up within the hour before, and not since.
            vec![(0, 9_000), (61, 5_000), (121, 5_000)],
            // In more than a day.
            vec![(0, 6_241), (60, 6_000)],
        ] {
            assert_eq!(forecast(&readings), None, "{readings:?}");
        }
        assert_eq!(forecast(&[(0, 6_250), (60, 6_000)]), Some(at(60 + DAY)));
    }

    #[test]
    fn an_allowance_that_grows_or_shrinks_spends_nothing() {
        let reading = |minutes, max, remaining| (at(minutes), Deliveries { max, remaining });
        let shrunk = [reading(0, 50_000, 49_000), reading(60, 10_000, 9_000)];
        assert_eq!(exhausted_at(&shrunk), None);
        let grown = [reading(0, 10_000, 9_000), reading(60, 50_000, 48_000)];
        assert_eq!(exhausted_at(&grown), None, "in 48 hours");
    }

    #[test]
    fn clocks_that_go_back_and_numbers_beyond_reason_are_no_reason_to_panic() {
        let most = u64::MAX;
        let reading = |minutes, max, remaining| (at(minutes), Deliveries { max, remaining });
        let back = [reading(60, 10, 9), reading(0, 10, 5)];
        assert_eq!(exhausted_at(&back), None);
        let huge = [reading(0, most, most), reading(60, most, most - 1)];
        assert_eq!(exhausted_at(&huge), None);
        // An org that has overspent is allowed less than it used.
        let overspent = [reading(0, 5, 9), reading(60, 5, 8)];
        assert_eq!(exhausted_at(&overspent), None);
    }
}
