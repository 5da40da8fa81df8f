//! What each handler of a subscription is given of its events.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{info, warn};

use super::tracker::HandlerSet;
use crate::avro::Schema;
use crate::config::SubscriptionConfig;
use crate::event::{ChangeEventHeader, Decoded, Event, SchemaId, Shown};
use crate::shape::{Filter, NotShaped, Shape};

/// Which events the handlers of a subscription want, and what they are shown of them. Handlers that are shown the
/// same have one form of an event in common, which is made once, when it is decoded.
#[derive(Debug)]
pub(super) struct Forms {
    subscription: String,
    /// Several kinds of event come, so that a field may be one of another.
    channel: bool,
    /// By the handler's number.
    handlers: Vec<OfHandler>,
    shapes: Vec<Shape>,
    /// Schemas that were looked at, where names can be mistaken.
    looked_at: Option<Mutex<HashSet<SchemaId>>>,
}

#[derive(Debug)]
struct OfHandler {
    name: String,
    filter: Filter,
    /// Fields that the filter names.
    changed: Vec<String>,
    /// Number of its shape, where it has one.
    shape: Option<usize>,
}

/// What a configuration names and events of a schema do not have.
#[derive(Debug, PartialEq, Eq)]
enum Misfit<'a> {
    /// This entity is not among those that the handler takes.
    Entity(&'a str),
    /// These fields.
    Fields(String),
}

impl Forms {
    /// As configured.
    pub(super) fn new(config: &SubscriptionConfig) -> Self {
        let mut distinct: Vec<(&crate::config::FieldsConfig, Shape)> = Vec::new();
        let mut handlers = Vec::with_capacity(config.handlers.len());
        for handler in &config.handlers {
            let known = distinct
                .iter()
                .position(|(fields, _)| fields.is_same(&handler.fields));
            let shape = known.or_else(|| {
                distinct.push((&handler.fields, Shape::new(&handler.fields)?));
                Some(distinct.len() - 1)
            });
            handlers.push(OfHandler {
                name: handler.name.clone(),
                filter: Filter::new(&handler.filter),
                changed: handler.filter.changed.clone(),
                shape,
            });
        }
        let names = |one: &OfHandler| {
            one.shape.is_some() || !one.changed.is_empty() || one.filter.names_entities()
        };
        Self {
            subscription: config.name.clone(),
            channel: config.topic.is_channel(),
            looked_at: handlers.iter().any(names).then(Mutex::default),
            handlers,
            shapes: distinct.into_iter().map(|(_, shape)| shape).collect(),
        }
    }

    /// The handlers that do not want an event with this header.
    pub(super) fn unwanted(&self, header: Option<&ChangeEventHeader>) -> HandlerSet {
        let unwanted = |one: &OfHandler| !one.filter.wants(header);
        let handlers = self.handlers.iter().enumerate();
        handlers
            .filter(|(_, one)| unwanted(one))
            .fold(0, |all, (number, _)| all | 1 << number)
    }

    /// True where the handler of this number wants the event.
    pub(super) fn wants(&self, handler: usize, header: Option<&ChangeEventHeader>) -> bool {
        let one = self.handlers.get(handler);
        one.is_none_or(|one| one.filter.wants(header))
    }

    /// Makes what handlers are shown of an event that was just decoded: those that want it.
    pub(super) fn of(&self, decoded: &Decoded) -> Shown {
        if self.shapes.is_empty() {
            return Shown::Whole;
        }
        let header = decoded.header.as_deref();
        let form = |number: usize| {
            let shown = |one: &&OfHandler| one.shape == Some(number);
            let mut handlers = self.handlers.iter().filter(shown);
            let wanted = handlers.any(|one| one.filter.wants(header));
            // What cannot be made is found out when it is handed over.
            let shape = self.shapes.get(number).filter(|_| wanted)?;
            shape.apply(decoded).ok()
        };
        Shown::Forms((0..self.shapes.len()).map(form).collect())
    }

    /// What the handler of this number is given: the event itself, where it is shown all of it.
    ///
    /// # Errors
    ///
    /// Where what it is shown cannot be made.
    pub(super) fn given(
        &self,
        handler: usize,
        event: &Arc<Event>,
    ) -> Result<Arc<Event>, NotShaped> {
        let number = self.handlers.get(handler).and_then(|one| one.shape);
        let Some((number, shape)) = number.and_then(|n| Some((n, self.shapes.get(n)?))) else {
            return Ok(event.clone());
        };
        let form = match event.shown.form(number) {
            Some(form) => form.clone(),
            // A dead letter that its handler would not want by now.
            None => shape.apply(&event.decoded)?,
        };
        Ok(Arc::new(event.part(form)))
    }

    /// Tells of handlers that take none of an entity, and of names of fields that a schema does not have, the first
    /// time that it comes: nobody else can know that a name is mistaken.
    pub(super) fn look_at(
        &self,
        schema: &Schema,
        id: &SchemaId,
        header: Option<&ChangeEventHeader>,
    ) {
        let Some(looked_at) = &self.looked_at else {
            return;
        };
        {
            // Only names: a panic elsewhere cannot leave it half written.
            let mut looked_at = looked_at.lock().unwrap_or_else(PoisonError::into_inner);
            if looked_at.contains(id) {
                return;
            }
            looked_at.insert(id.clone());
        }
        for (one, misfit) in self.misfits(schema, header) {
            self.tell(&one.name, misfit, schema, id);
        }
    }

    /// What handlers are never given of events of a schema, or cannot be given.
    fn misfits<'a>(
        &'a self,
        schema: &Schema,
        header: Option<&'a ChangeEventHeader>,
    ) -> Vec<(&'a OfHandler, Misfit<'a>)> {
        let mut misfits = Vec::new();
        for one in &self.handlers {
            if let Some(header) = header.filter(|header| !one.filter.takes_entity(header)) {
                misfits.push((one, Misfit::Entity(&header.entity_name)));
                continue;
            }
            let shape = one.shape.and_then(|number| self.shapes.get(number));
            let names = shape.into_iter().flat_map(Shape::names);
            let names = names.chain(one.changed.iter().map(String::as_str));
            let unknown: Vec<&str> = names.filter(|name| !schema.has_field(name)).collect();
            if !unknown.is_empty() {
                misfits.push((one, Misfit::Fields(unknown.join(", "))));
            }
        }
        misfits
    }

    fn tell(&self, handler: &str, misfit: Misfit<'_>, schema: &Schema, id: &SchemaId) {
        let subscription = &self.subscription;
        let record = schema.record_name();
        match misfit {
            Misfit::Entity(entity) => info!(
                subscription, handler, %record, schema_id = %id, entity,
                "the handler's `entity` names others: it is given no events of this one"
            ),
            Misfit::Fields(fields) if self.channel => info!(
                subscription, handler, %record, schema_id = %id, fields,
                "events of this schema do not have these fields that `fields` or `changed` names"
            ),
            Misfit::Fields(fields) => warn!(
                subscription, handler, %record, schema_id = %id, fields,
                "no such fields: what `fields` or `changed` says of them has no effect, so look whether they are \
                 written as in the org"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FieldsConfig, FilterConfig, HandlerConfig};
    use crate::subscription::lanes::tests::event;

    fn forms(handlers: &[(&[&str], &[&str])]) -> Forms {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let mut config = SubscriptionConfig::new("accounts", "Account".parse().unwrap());
        let handlers = handlers.iter().map(|(entity, mask)| HandlerConfig {
            filter: FilterConfig {
                entity: owned(entity),
                ..FilterConfig::default()
            },
            fields: FieldsConfig {
                mask: owned(mask),
                ..FieldsConfig::default()
            },
            ..HandlerConfig::new("log")
        });
        config.handlers = handlers.collect();
        Forms::new(&config)
    }

    fn account(forms: &Forms) -> Arc<Event> {
        let mut one = event(&["001A"]);
        let inner = Arc::make_mut(&mut one);
        inner.raw.payload = bytes::Bytes::from_static(b"payload");
        inner.decoded.data = bytes::Bytes::from_static(br#"{"A":1,"B":2}"#);
        inner.decoded.header.as_deref_mut().unwrap().entity_name = "Account".into();
        inner.shown = forms.of(&inner.decoded);
        one
    }

    fn data(event: &Event) -> &str {
        std::str::from_utf8(&event.decoded.data).unwrap()
    }

    #[test]
    fn handlers_that_are_shown_the_same_share_one_form_and_others_are_given_the_event_itself() {
        let forms = forms(&[
            (&[], &["A"]),
            (&[], &[]),
            (&[], &["A"]),
            (&["Lead"], &["B"]),
        ]);
        let whole = account(&forms);
        let Shown::Forms(made) = &whole.shown else {
            panic!("{whole:?}");
        };
        // Nobody who wants it is shown the second.
        let made: Vec<bool> = made.iter().map(Option::is_some).collect();
        assert_eq!(made, [true, false]);
        assert!(whole.size() > whole.raw.size() + 2 * whole.decoded.data.len());
        let [a, itself, b] = [0, 1, 2].map(|handler| forms.given(handler, &whole).unwrap());
        assert!(Arc::ptr_eq(&itself, &whole));
        assert_eq!(data(&a), r#"{"A":"***","B":2}"#);
        assert_eq!(a.decoded.data.as_ptr(), b.decoded.data.as_ptr());
        // Wanted or not, what is handed over is never more than what may be shown.
        let unwanted = forms.given(3, &whole).unwrap();
        assert_eq!(data(&unwanted), r#"{"A":1,"B":"***"}"#);
    }

    #[test]
    fn what_is_shown_in_part_has_no_payload_and_the_identity_of_the_whole() {
        let forms = forms(&[(&[], &["A"])]);
        let whole = account(&forms);
        let part = forms.given(0, &whole).unwrap();
        assert_eq!(part.identity(), whole.identity());
        assert_eq!(part.payload(), None);
        assert!(part.raw.payload.is_empty());
        assert_eq!(whole.payload().unwrap(), "payload");
        let shown = String::from_utf8(part.cloud_event().to_json()).unwrap();
        assert!(shown.contains(r#""subject":"001A""#), "{shown}");
        let id = |event: &Event| {
            let json: serde_json::Value =
                serde_json::from_slice(&event.cloud_event().to_json()).unwrap();
            json["id"].clone()
        };
        assert_eq!(id(&part), id(&whole));
    }

    #[test]
    fn a_handler_that_takes_none_of_an_entity_is_told_of_beside_those_with_wrong_fields() {
        let json = r#"{"type":"record","name":"AccountChangeEvent","fields":[{"name":"A","type":"string"}]}"#;
        let schema = Schema::parse(json).unwrap();
        let forms = forms(&[
            (&["account"], &["A"]),
            (&["Account"], &["a"]),
            (&["Account"], &["A"]),
        ]);
        let whole = account(&forms);
        let found = forms.misfits(&schema, whole.decoded.header.as_deref());
        let found: Vec<_> = found.into_iter().map(|(_, misfit)| misfit).collect();
        assert_eq!(
            found,
            [Misfit::Entity("Account"), Misfit::Fields("a".into())]
        );
        // Each schema is looked at once, where there is anything to look for.
        let only_entities = self::forms(&[(&["account"], &[])]);
        let id = SchemaId::new("s");
        only_entities.look_at(&schema, &id, whole.decoded.header.as_deref());
        let looked_at = only_entities.looked_at.unwrap().into_inner().unwrap();
        assert!(looked_at.contains(&id));
        assert!(self::forms(&[(&[], &[])]).looked_at.is_none());
    }

    #[test]
    fn handlers_are_asked_by_their_number() {
        let forms = forms(&[(&["Lead"], &[]), (&[], &[]), (&["Contact"], &[])]);
        let whole = account(&forms);
        let header = whole.decoded.header.as_deref();
        assert_eq!(forms.unwanted(header), 0b101);
        assert!(!forms.wants(0, header) && forms.wants(1, header));
        assert_eq!(forms.unwanted(None), 0);
    }

    #[test]
    fn data_that_cannot_be_shown_in_part_is_not_given_at_all() {
        let forms = forms(&[(&[], &["A"])]);
        let mut whole = account(&forms);
        let inner = Arc::make_mut(&mut whole);
        inner.decoded.data = bytes::Bytes::from_static(b"A");
        inner.shown = forms.of(&inner.decoded);
        assert_eq!(forms.given(0, &whole).err(), Some(NotShaped));
    }
}
