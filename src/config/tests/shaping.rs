//! What handlers are given: `entity`, `change`, `changed` and `fields`.

use super::*;
use crate::event::ChangeType;

const KEY: &str = "a-key-of-at-least-thirty-two-characters";

fn with_keys() -> BTreeMap<String, String> {
    signed_in(&[
        ("ORGSTREAM_ENCRYPTION_KEY", KEY),
        ("ORGSTREAM_HASH_KEY", SECRET),
    ])
}

fn text(topic: &str, subscription: &str, handler: &str) -> String {
    format!(
        "[[subscription]]\nname = \"a\"\ntopic = \"{topic}\"\n{subscription}\n\
         [[subscription.handler]]\ntype = \"log\"\n{handler}\n"
    )
}

fn handler(loaded: &Loaded) -> &HandlerConfig {
    &loaded.config.subscriptions[0].handlers[0]
}

fn problems(text: &str, env: &dyn Env) -> String {
    let error = load_text(text, env).unwrap_err().to_string();
    assert!(!error.contains(SECRET), "{error}");
    error
}

#[test]
fn they_are_read_as_lists_or_as_texts_with_commas() {
    let given = "entity = [\"Account\", \"Contact\"]\nchange = \"create, gap_update\"\n\
                 changed = [\"Phone\", \"BillingAddress.City\"]\n\
                 fields = { only = [\"Name\", \"Phone\", \"Email\"], mask = \"Phone\", hash = [\"Email\"] }";
    let loaded = load_text(&text("/data/ChangeEvents", "", given), &with_keys()).unwrap();
    let one = handler(&loaded);
    assert_eq!(one.filter.entity, ["Account", "Contact"]);
    assert_eq!(
        one.filter.change,
        [ChangeType::Create, ChangeType::GapUpdate]
    );
    assert_eq!(one.filter.changed, ["Phone", "BillingAddress.City"]);
    let fields = &one.fields;
    assert_eq!(fields.only.as_deref().unwrap(), ["Name", "Phone", "Email"]);
    assert_eq!(
        (&fields.mask[..], &fields.hash[..]),
        (&["Phone".to_owned()][..], &["Email".to_owned()][..])
    );
    assert_eq!(fields.hash_key.as_ref().unwrap().expose_secret(), SECRET);
    assert!(loaded.config.subscriptions[0].hides());
    // Shown, it is the same configuration again, without its secrets.
    let shown = show(&loaded.config);
    assert!(!shown.contains(SECRET) && !format!("{one:?}").contains(SECRET));
    for line in [
        "entity = [\"Account\", \"Contact\"]",
        "change = [\"create\", \"gap_update\"]",
        "changed = [\"Phone\", \"BillingAddress.City\"]",
        "hash_key = \"***\"",
    ] {
        assert!(shown.contains(line), "{line} in {shown}");
    }
}

#[test]
fn what_cannot_be_known_to_be_a_mistake_is_taken() {
    for (topic, subscription, given) in [
        ("Account", "", "entity = [\"Account\", \"Contact\"]"),
        ("Employee__c", "", "entity = [\"Employee__c\"]"),
        ("Employee__c", "", "entity = [\"Employee__x\"]"),
        ("/data/ChangeEvents", "", "entity = [\"account\"]"),
        ("/data/Sales__chn", "", "entity = [\"account\"]"),
        ("Account", "", "fields = { only = [] }"),
        (
            "Order__e",
            "key = \"Number__c\"",
            "fields = { only = [\"Number__c\"] }",
        ),
    ] {
        let loaded = load_text(&text(topic, subscription, given), &with_keys());
        assert!(loaded.is_ok(), "{given}: {:?}", loaded.err());
    }
}

#[test]
fn without_them_a_handler_is_given_everything() {
    let loaded = load_text(&text("Account", "", "fields = {}"), &signed_in(&[])).unwrap();
    assert_eq!(handler(&loaded).filter, FilterConfig::default());
    assert!(!handler(&loaded).fields.hides());
    assert!(!show(&loaded.config).contains("fields"));
}

#[test]
fn what_hides_fields_needs_the_key_under_which_parked_events_are_kept() {
    for hiding in ["only = [\"A\"]", "without = [\"A\"]", "mask = [\"A\"]"] {
        let given = text("Account", "", &format!("fields = {{ {hiding} }}"));
        let error = problems(&given, &signed_in(&[]));
        assert!(error.contains("store.encryption_key"), "{error}");
        assert!(error.contains("ORGSTREAM_ENCRYPTION_KEY"), "{error}");
        assert!(
            error.contains("`a`") && error.contains("openssl rand"),
            "{error}"
        );
        assert!(load_text(&given, &with_keys()).is_ok());
    }
}

#[test]
fn each_mistake_is_named_with_its_reason() {
    let account = |given: &str| text("Account", "", given);
    let order = |given: &str| text("Order__e", "key = \"Number__c\"", given);
    for (given, parts) in [
        (
            order("entity = [\"Order\"]"),
            &["entity", "is for change events"][..],
        ),
        (
            order("change = [\"create\"]"),
            &["change", "is for change events"],
        ),
        (
            order("changed = [\"A\"]"),
            &["changed", "is for change events"],
        ),
        (
            account("change = [\"updated\"]"),
            &["change", "`updated`", "did you mean update?"],
        ),
        (
            account("change = [\"GAP_CREATE\"]"),
            &["did you mean gap_create?"],
        ),
        (account("entity = []"), &["entity", "names nothing"]),
        (
            account("changed = [\"Billing Address\", \"a..b\"]"),
            &["changed", "`a..b`", "API name"],
        ),
        (
            account("changed = [1.5]"),
            &["changed", "expected a string"],
        ),
        (
            account("fields = { masks = [\"A\"] }"),
            &["fields.masks", "did you mean mask?"],
        ),
        (account("fields = \"A\""), &["fields", "expected a table"]),
        (
            account("fields = { only = [\"A\"], without = [\"B\"] }"),
            &["fields.without", "take one of the two away"],
        ),
        (
            account("fields = { mask = [\"A.B\"], hash = [\"A\"] }"),
            &["fields.mask", "`A.B` meets `A` in `hash`"],
        ),
        (
            account("fields = { only = [\"A\"], mask = [\"B\"] }"),
            &["fields.mask", "`B` is left out by `only`"],
        ),
        (
            account("fields = { without = [\"ChangeEventHeader.commitUser\"] }"),
            &["fields.without", "always given"],
        ),
        (
            order("fields = { mask = [\"Number__c\"] }"),
            &["fields.mask", "hides `Number__c`, which is the `key`"],
        ),
        (
            order("fields = { only = [\"Total__c\"] }"),
            &["fields.only", "leaves `Number__c` out, which is the `key`"],
        ),
        (
            account("fields = { mask = \"${HIDDEN:-}\" }"),
            &["fields.mask", "nothing would be hidden"],
        ),
        (
            account("fields = { hash = [] }"),
            &["fields.hash", "nothing would be hidden"],
        ),
        (
            account("fields = { without = [] }"),
            &["fields.without", "nothing would be hidden"],
        ),
        (
            account("entity = [\"account\"]"),
            &["entity", "changes of Account alone", "write Account"],
        ),
        (
            text("Employee__c", "", "entity = \"Employee, Contact\""),
            &["entity", "write Employee__c"],
        ),
    ] {
        let error = problems(&given, &with_keys());
        for part in parts {
            assert!(error.contains(part), "{part} in {error}");
        }
    }
    let hash = account("fields = { hash = [\"A\"] }");
    let encrypted = [("ORGSTREAM_ENCRYPTION_KEY", KEY)];
    let error = problems(&hash, &signed_in(&encrypted));
    assert!(error.contains("ORGSTREAM_HASH_KEY"), "{error}");
    let short = account("fields = { hash = [\"A\"], hash_key = \"short\" }");
    let error = problems(&short, &with_keys());
    assert!(error.contains("shorter than 32"), "{error}");
}
