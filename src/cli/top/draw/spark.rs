//! A chart of one line of text.

const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What has no value.
const ABSENT: char = '·';

/// Values that all are below this are no mountain: a lag of a second is none.
const LEAST_TOP: f64 = 30.0;

/// The values, oldest first, in `width` characters: each the greatest of its share of them, in proportion to the
/// greatest of all. Nothing for no values.
pub(super) fn spark(values: &[Option<f64>], width: usize) -> String {
    if values.is_empty() || width == 0 {
        return String::new();
    }
    let greatest = |of: &[Option<f64>]| {
        let known = of
            .iter()
            .flatten()
            .copied()
            .filter(|value| value.is_finite());
        known.reduce(f64::max)
    };
    let top = greatest(values).unwrap_or(0.0).max(LEAST_TOP);
    let width = width.min(values.len());
    (0..width)
        .map(|place| {
            let from = place * values.len() / width;
            let to = (place + 1) * values.len() / width;
            let share = values.get(from..to).unwrap_or_default();
            greatest(share).map_or(ABSENT, |value| level(value / top))
        })
        .collect()
}

fn level(part: f64) -> char {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 8, and whatever is not is at an end of the list"
    )]
    let index = (part * 8.0).floor().clamp(0.0, 7.0) as usize;
    LEVELS.get(index).copied().unwrap_or(ABSENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_shows_the_greatest_of_each_share_and_where_nothing_is_known() {
        let values = [Some(0.0), Some(80.0), None, None, Some(40.0), Some(1.0)];
        assert_eq!(spark(&values, 3), "█·▅");
        assert_eq!(spark(&values, 6), "▁█··▅▁");
        assert_eq!(spark(&values, 60), "▁█··▅▁", "no more than there is");
        assert_eq!(spark(&[], 9), "");
    }

    #[test]
    fn small_lags_are_no_mountains_and_odd_values_draw_nothing_odd() {
        assert_eq!(spark(&[Some(0.2), Some(3.0)], 2), "▁▁");
        assert_eq!(spark(&[Some(f64::NAN), Some(-5.0)], 2), "·▁");
    }
}
