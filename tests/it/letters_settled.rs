//! Dead letters that a person settles while the stream brings their events once more.

use crate::letters::{config, letters, on_both, open, publish};
use crate::replay::replayed;
use crate::support::metrics::METRICS;
use crate::support::{Daemon, Emulator, Hook, Metrics, Store, eventually, names, webhook};

on_both! {
    an_event_whose_letter_is_discarded_while_it_waits_for_its_turn_is_not_handed_over,
}

async fn an_event_whose_letter_is_discarded_while_it_waits_for_its_turn_is_not_handed_over(
    store: Store,
) {
    let org = Emulator::start().await;
    let hook = Hook::start(|event, _| {
        let bad = event["data"]["Name"] == "bad";
        if bad { 422 } else { 200 }.into()
    })
    .await;
    let config = config(&org, &store, "", &webhook(&hook.url(), ""));
    let daemon = Daemon::run_with(&config, &[METRICS]);
    publish(&org, 1, "a").await;
    publish(&org, 1, "bad").await;
    let ids = open(&store, 1).await;
    store
        .until("accounts", "both finished", |s| s.finished == 2)
        .await;
    // The first is with the handler once more, and the other waits behind it.
    hook.close();
    replayed(&config, &["--from", "earliest"]).await;
    eventually("a call that hangs", async || {
        (hook.came().len() == 3).then_some(())
    })
    .await;
    store
        .until("accounts", "both received once more", |s| s.received == 4)
        .await;
    let id = ids[0].to_string();
    let (code, _, err) = letters(&config, &["discard", &id, "--yes"]).await;
    assert_eq!(code, 0, "{err}");
    let labels = [("subscription", "accounts"), ("outcome", "discarded")];
    Metrics::of(&daemon)
        .await
        .until("orgstream_dead_letters_resolved_total", &labels, |n| {
            n == 1.0
        })
        .await;
    hook.open();
    publish(&org, 1, "c").await;
    assert_eq!(names(&hook.accepts(3).await).join(" "), "a a c");
    assert_eq!(names(&hook.came()).join(" "), "a bad a c");
    assert_eq!(store.parked().await[0].state, "discarded");
    assert_eq!(daemon.stop().await.1, 0);
}
