//! Where it connects to, and where not.

use super::*;

/// A handler for `hook.example`, which leads to where `look_up` says.
fn named(port: u16, options: &str, look_up: LookUp) -> WebhookHandler {
    let options = format!("url = 'http://hook.example:{port}/?code=hidden'\n{options}");
    WebhookHandler::with_look_up(&config("webhook", &options), look_up).unwrap()
}

fn port(receiver: &Receiver) -> u16 {
    receiver.origin.rsplit_once(':').unwrap().1.parse().unwrap()
}

#[tokio::test]
async fn a_name_that_leads_into_the_private_network_gets_no_event_unless_allowed() {
    let receiver = Receiver::answering(204, &[]).await;
    let here: LookUp = |_| Box::pin(async { Ok(vec![([127, 0, 0, 1], 0).into()]) });
    let refused = named(port(&receiver), "", here);
    let reason = retry(answer(&refused).await).reason;
    assert!(
        reason.contains("hook.example leads to 127.0.0.1, a loopback address")
            && reason.contains("`allow_private_addresses`"),
        "{reason}"
    );
    assert!(refused.check().await.unwrap_err().contains("a loopback"));
    assert_eq!(receiver.connections.load(Ordering::Relaxed), 0);

    for allowed in ["true", "'true'", "['127.0.0.0/8', '10.0.0.1']"] {
        let options = format!("allow_private_addresses = {allowed}");
        let handler = named(port(&receiver), &options, here);
        assert_eq!(answer(&handler).await, Answer::Handled, "{allowed}");
    }
}

#[tokio::test]
async fn a_name_that_changes_where_it_leads_is_looked_at_for_every_connection() {
    static LOOK_UPS: AtomicUsize = AtomicUsize::new(0);
    // 127.0.0.1 stands for a public address here, 127.0.0.2 for one within.
    let rebound: LookUp = |_| {
        let first = LOOK_UPS.fetch_add(1, Ordering::Relaxed) == 0;
        let last = if first { 1 } else { 2 };
        Box::pin(async move { Ok(vec![([127, 0, 0, last], 0).into()]) })
    };
    let receiver = Receiver::answering(204, &[("connection", "close")]).await;
    let options = "allow_private_addresses = ['127.0.0.1']";
    let handler = named(port(&receiver), options, rebound);
    assert_eq!(answer(&handler).await, Answer::Handled);
    let reason = retry(answer(&handler).await).reason;
    assert!(reason.contains("leads to 127.0.0.2"), "{reason}");
    assert_eq!(receiver.requests(), 1);
}

#[tokio::test]
async fn localhost_needs_no_permission() {
    let receiver = Receiver::answering(204, &[]).await;
    let url = format!("http://localhost:{}/", port(&receiver));
    assert_eq!(answer(&*handler(&url, "")).await, Answer::Handled);
}
