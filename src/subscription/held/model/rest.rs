//! What always holds in the model, and what holds in the end.

use super::*;

impl Model {
    /// Letters that are written, and whose events have come and had their turn, are in bus order.
    pub(super) fn in_order(&self) {
        let has_turn = |seq: Seq| self.live[usize::try_from(seq).unwrap()] == Live::Waits;
        let rests = |letter: &&Letter| {
            let rests = !matches!(letter.phase, Phase::New | Phase::Moving);
            // One that a person settled just now may be on its way to another place.
            let is_open = self.is_open(letter.rank.id);
            rests && is_open && letter.since != Since::ToCome && !letter.came.is_some_and(has_turn)
        };
        let mut letters: Vec<&Letter> = self.held.letters.values().filter(rests).collect();
        letters.sort_by_key(|letter| letter.rank);
        for (number, one) in letters.iter().enumerate() {
            for other in &letters[number..] {
                let (one, other) = (one.event(), other.event());
                assert!(
                    one <= other || !self.share(one, other) || self.nobody_knew(other, one),
                    "{one} before {other}"
                );
            }
        }
    }

    fn write_all(&mut self) {
        loop {
            self.write(3);
            if self.writing.is_none() {
                return;
            }
            self.write(3);
        }
    }

    /// Everything is accepted from now on, and asked for.
    pub(super) fn come_to_rest(&mut self) {
        for _ in 0..4 * (self.bus.len() + self.rows.len() + 4) {
            self.bring();
            self.hand_over(0);
            self.answer(0, true);
            self.write_all();
            self.keepalive();
            self.save(0);
            (0..self.rows.len()).for_each(|which| self.person(which, false));
            self.draw();
            self.load(0);
        }
        for (event, published) in self.bus.iter().enumerate() {
            assert!(
                published.settled,
                "{event} is forgotten: {:?}",
                self.held.letters
            );
        }
        assert!(
            self.rows.iter().all(|row| !row.open && !row.ahead),
            "{:?}",
            self.rows
        );
    }
}
