//! Names of fields that an event is about.

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

/// Some of a schema's field names, in its order. The names are there once, however many events name some of them.
#[derive(Clone, Default)]
pub struct FieldNames {
    /// None where it names nothing: what all events share is not touched without need, from several threads.
    all: Option<Arc<[Box<str>]>>,
    /// A bit for each of them.
    which: Bits,
}

/// Bits from the least significant of the first on. Most schemas have fewer fields than fit in without an allocation.
pub(crate) type Bits = SmallVec<[u64; 4]>;

/// The places of the bits that are set, rising.
pub(crate) fn places(bits: &[u64]) -> impl Iterator<Item = usize> + '_ {
    bits.iter().enumerate().flat_map(|(i, word)| {
        let mut left = *word;
        std::iter::from_fn(move || {
            let bit = (left != 0).then(|| left.trailing_zeros() as usize)?;
            left &= left - 1;
            Some(64 * i + bit)
        })
    })
}

impl FieldNames {
    /// Those of these names whose bits are set; a bit beyond them names nothing.
    pub(crate) fn of(all: &Arc<[Box<str>]>, which: &[u64]) -> Self {
        match which.iter().any(|word| *word != 0) {
            true => Self {
                all: Some(Arc::clone(all)),
                which: Bits::from_slice(which),
            },
            false => Self::default(),
        }
    }

    /// The names.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let all = self.all.as_deref().unwrap_or_default();
        places(&self.which).filter_map(|place| all.get(place).map(|name| &**name))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Leaves out what is not to be kept.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        let all = self.all.as_deref().unwrap_or_default();
        for (names, word) in all.chunks(64).zip(&mut self.which) {
            for (bit, name) in names.iter().enumerate() {
                if *word >> bit & 1 == 1 && !keep(name) {
                    *word &= !(1 << bit);
                }
            }
        }
    }
}

impl<T: Into<Box<str>>> FromIterator<T> for FieldNames {
    fn from_iter<I: IntoIterator<Item = T>>(names: I) -> Self {
        let all: Arc<[Box<str>]> = names.into_iter().map(Into::into).collect();
        let bits = |names: &[Box<str>]| u64::MAX >> (64 - names.len());
        let which: Bits = all.chunks(64).map(bits).collect();
        Self::of(&all, &which)
    }
}

impl PartialEq for FieldNames {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for FieldNames {}

impl PartialEq<[&str]> for FieldNames {
    fn eq(&self, other: &[&str]) -> bool {
        self.iter().eq(other.iter().copied())
    }
}

impl<const N: usize> PartialEq<[&str; N]> for FieldNames {
    fn eq(&self, other: &[&str; N]) -> bool {
        *self == other[..]
    }
}

impl fmt::Debug for FieldNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart_by_what_they_say_and_not_by_whose_they_are() {
        let all: Arc<[Box<str>]> = ["Name", "Phone", "Fax"].map(Into::into).into();
        let some = FieldNames::of(&all, &[0b1000_0101, 1]);
        assert_eq!(some, ["Name", "Fax"]);
        assert_eq!(some.len(), 2);
        assert_eq!(some, FieldNames::from_iter(["Name", "Fax"]));
        assert_ne!(some, FieldNames::from_iter(["Fax", "Name"]));
        assert_eq!(format!("{some:?}"), r#"["Name", "Fax"]"#);
        assert_eq!(FieldNames::of(&all, &[0, 0]), FieldNames::default());
    }

    #[test]
    fn there_may_be_more_than_fit_in_one_word() {
        let many: Vec<String> = (0..150).map(|number| format!("F{number}")).collect();
        for count in [0, 1, 63, 64, 65, 128, 150] {
            let mut names = FieldNames::from_iter(many[..count].iter().cloned());
            assert_eq!(names.len(), count);
            assert!(names.iter().eq(&many[..count]));
            names.retain(|name| name.ends_with('7'));
            let left = many[..count].iter().filter(|name| name.ends_with('7'));
            assert!(names.iter().eq(left));
        }
    }

    #[test]
    fn what_is_not_kept_is_left_out() {
        let mut names = FieldNames::from_iter(["Name", "Phone", "Fax"]);
        names.retain(|name| name != "Phone");
        assert_eq!((names.len(), names.is_empty()), (2, false));
        assert_eq!(names, ["Name", "Fax"]);
        assert!(FieldNames::default().is_empty());
    }
}
