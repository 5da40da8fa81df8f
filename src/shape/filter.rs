//! Which events a handler wants.

use crate::config::FilterConfig;
use crate::event::{ChangeEventHeader, ChangeType, FieldNames};

/// Which events a handler wants, by their change header. What has none, a platform event, is wanted by all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter(FilterConfig);

impl Filter {
    /// As configured.
    pub fn new(config: &FilterConfig) -> Self {
        Self(config.clone())
    }

    /// True where entities are chosen by name.
    pub fn names_entities(&self) -> bool {
        !self.0.entity.is_empty()
    }

    /// True for an event that the handler wants.
    ///
    /// What nobody can have left out on purpose passes: a kind of change that this version does not know, and
    /// an update that names no field.
    pub fn wants(&self, header: Option<&ChangeEventHeader>) -> bool {
        let Some(header) = header else {
            return true;
        };
        self.takes_entity(header) && self.takes_change(header) && self.takes_fields(header)
    }

    /// True where events of this entity are wanted at all.
    pub fn takes_entity(&self, header: &ChangeEventHeader) -> bool {
        let wanted = &self.0.entity;
        wanted.is_empty() || wanted.iter().any(|entity| *entity == header.entity_name)
    }

    fn takes_change(&self, header: &ChangeEventHeader) -> bool {
        let wanted = &self.0.change;
        wanted.is_empty()
            || wanted.contains(&header.change_type)
            || matches!(header.change_type, ChangeType::Other(_))
    }

    /// An update of one of the fields, or a change of any other kind.
    fn takes_fields(&self, header: &ChangeEventHeader) -> bool {
        let wanted = &self.0.changed;
        if wanted.is_empty() || header.change_type != ChangeType::Update {
            return true;
        }
        let lists = [
            &header.changed_fields,
            &header.nulled_fields,
            &header.diff_fields,
        ];
        let mut named = lists.into_iter().flat_map(FieldNames::iter).peekable();
        named.peek().is_none() || named.any(|name| wanted.iter().any(|one| touches(one, name)))
    }
}

/// True where a change of one of these fields may be a change of the other: they are the same, or one is a
/// component of the other.
fn touches(one: &str, other: &str) -> bool {
    super::is_within(one, other) || super::is_within(other, one)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(entity: &str, change: &str, changed: &[&str]) -> ChangeEventHeader {
        ChangeEventHeader {
            entity_name: entity.into(),
            record_ids: ["001A".into()].into(),
            change_type: ChangeType::from_symbol(change),
            change_origin: "".into(),
            transaction_key: "".into(),
            sequence_number: 1,
            commit_timestamp: 0,
            commit_number: 0,
            commit_user: "".into(),
            nulled_fields: FieldNames::default(),
            diff_fields: FieldNames::default(),
            changed_fields: changed.iter().copied().collect(),
        }
    }

    fn filter(entity: &[&str], change: &[ChangeType], changed: &[&str]) -> Filter {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Filter::new(&FilterConfig {
            entity: owned(entity),
            change: change.to_vec(),
            changed: owned(changed),
        })
    }

    #[test]
    fn without_a_word_about_it_everything_is_wanted() {
        let filter = Filter::default();
        assert_eq!(filter, Filter::default());
        assert!(filter.wants(None));
        assert!(filter.wants(Some(&header("Account", "UPDATE", &[]))));
    }

    #[test]
    fn entities_are_wanted_by_name_whatever_kind_of_event_it_is() {
        let filter = filter(&["Account", "Contact"], &[], &[]);
        for change in ["CREATE", "GAP_UPDATE", "GAP_OVERFLOW"] {
            assert!(filter.wants(Some(&header("Contact", change, &[]))));
            assert!(!filter.wants(Some(&header("Lead", change, &[]))));
        }
        assert!(!filter.wants(Some(&header("account", "CREATE", &[]))));
    }

    #[test]
    fn kinds_of_change_are_wanted_by_name_and_unknown_ones_always() {
        let filter = filter(&[], &[ChangeType::Create, ChangeType::GapCreate], &[]);
        for (change, wanted) in [
            ("CREATE", true),
            ("GAP_CREATE", true),
            ("UPDATE", false),
            ("GAP_OVERFLOW", false),
            ("MERGE", true),
        ] {
            let header = header("Account", change, &[]);
            assert_eq!(filter.wants(Some(&header)), wanted, "{change}");
        }
    }

    #[test]
    fn changed_fields_narrow_updates_and_nothing_else() {
        let filter = filter(&[], &[], &["Phone", "BillingAddress.City"]);
        for (changed, wanted) in [
            (&["Name"][..], false),
            (&["Name", "Phone"], true),
            (&["BillingAddress.City"], true),
            (&["BillingAddress.CityCode"], false),
            (&["BillingAddress.Street"], false),
            (&["BillingAddress"], true),
            (&["PhoneExtension"], false),
            (&[], true),
        ] {
            let header = header("Account", "UPDATE", changed);
            assert_eq!(filter.wants(Some(&header)), wanted, "{changed:?}");
        }
        for change in ["CREATE", "DELETE", "UNDELETE", "GAP_UPDATE", "MERGE"] {
            assert!(filter.wants(Some(&header("Account", change, &["Name"]))));
        }
        let mut nulled = header("Account", "UPDATE", &["Name"]);
        nulled.nulled_fields = FieldNames::from_iter(["Phone"]);
        assert!(filter.wants(Some(&nulled)));
        let mut diff = header("Account", "UPDATE", &["Name"]);
        diff.diff_fields = FieldNames::from_iter(["Phone"]);
        assert!(filter.wants(Some(&diff)));
    }

    #[test]
    fn a_compound_field_named_whole_is_changed_by_any_of_its_components() {
        let filter = filter(&[], &[], &["BillingAddress"]);
        assert!(filter.wants(Some(&header("Account", "UPDATE", &["BillingAddress.City"]))));
        assert!(!filter.wants(Some(&header("Account", "UPDATE", &["BillingAddressX"]))));
    }
}
