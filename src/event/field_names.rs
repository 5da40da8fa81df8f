//! Names of fields that an event is about.

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

/// Names of fields, in order. A schema's names are there once, however many events name some of them.
#[derive(Clone, Default)]
pub struct FieldNames {
    all: Arc<[Box<str>]>,
    /// Places within `all`.
    which: SmallVec<[u32; 4]>,
}

impl FieldNames {
    /// Some of these names, by their places among them; one that is beyond them names nothing.
    pub(crate) fn of(all: &Arc<[Box<str>]>, which: impl IntoIterator<Item = usize>) -> Self {
        let which = which.into_iter().filter(|place| *place < all.len());
        Self {
            all: all.clone(),
            which: which
                .filter_map(|place| u32::try_from(place).ok())
                .collect(),
        }
    }

    /// The names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        let name = |place: &u32| self.all.get(*place as usize).map_or("", |name| name);
        self.which.iter().map(name)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.which.len()
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.which.is_empty()
    }

    /// Leaves out what is not to be kept.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        let all = &self.all;
        self.which
            .retain(|place| all.get(*place as usize).is_some_and(|name| keep(name)));
    }
}

impl<T: Into<Box<str>>> FromIterator<T> for FieldNames {
    fn from_iter<I: IntoIterator<Item = T>>(names: I) -> Self {
        let all: Arc<[Box<str>]> = names.into_iter().map(Into::into).collect();
        Self::of(&all, 0..all.len())
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
        let some = FieldNames::of(&all, [2, 0, 7]);
        assert_eq!(some, ["Fax", "Name"]);
        assert_eq!(some, FieldNames::from_iter(["Fax", "Name"]));
        assert_ne!(some, FieldNames::from_iter(["Name", "Fax"]));
        assert_eq!(format!("{some:?}"), r#"["Fax", "Name"]"#);
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
