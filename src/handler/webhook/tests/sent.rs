//! What is sent, in each mode and signed.

use super::*;

#[tokio::test]
async fn binary_mode_sends_the_data_with_attributes_as_headers() {
    let receiver = Receiver::answering(204, &[]).await;
    let events = batch(&[r#"{"Amount__c":12.5}"#]);
    let handler = receiver.handler("mode = 'binary'");
    assert_eq!(handler.handle(&events).await, BatchAnswer::HANDLED);
    let seen = receiver.seen.lock().unwrap();
    assert_eq!(seen[0].body(), r#"{"Amount__c":12.5}"#);
    let identity = events.events[0].identity();
    for (name, value) in [
        ("content-type", "application/json"),
        ("idempotency-key", &format!("orders:{identity}")),
        ("ce-specversion", "1.0"),
        ("ce-id", identity.as_str()),
        ("ce-type", "com.salesforce.event.Order__e.v1"),
        ("ce-epoch", "1"),
    ] {
        assert_eq!(seen[0].headers()[name], value, "{name}");
    }
}

#[tokio::test]
async fn a_batch_is_as_large_as_configured_and_an_array_even_of_one() {
    let receiver = Receiver::answering(204, &[]).await;
    let handler = receiver.handler("mode = 'batched'\nbatch_events = '25'\nbatch_bytes = '64KiB'");
    let limits = handler.batch_limits();
    assert_eq!((limits.events, limits.bytes), (25, 64 << 10));
    handler.handle(&batch(&["1"])).await;
    let seen = receiver.seen.lock().unwrap();
    let body: Vec<serde_json::Value> = serde_json::from_slice(seen[0].body()).unwrap();
    assert_eq!(body[0]["data"], 1);
    for mode in ["structured", "binary"] {
        let handler = receiver.handler(&format!("mode = '{mode}'"));
        assert_eq!(handler.batch_limits().events, 1);
    }
}

#[tokio::test]
async fn a_signature_covers_the_body_that_was_sent() {
    const SECRETS: [&str; 2] = [
        "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
    ];
    let receiver = Receiver::answering(204, &[]).await;
    for mode in ["structured", "binary", "batched"] {
        let options = format!(
            "mode = '{mode}'\nsigning_secrets = 'whsec_{} whsec_{}'",
            SECRETS[0], SECRETS[1]
        );
        let handler = receiver.handler(&options);
        handler.handle(&batch(&["{}"])).await;
        let seen = receiver.seen.lock().unwrap();
        let request = seen.last().unwrap();
        let text = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
        let mut signed = format!("{}.{}.", text("webhook-id"), text("webhook-timestamp"));
        signed.push_str(std::str::from_utf8(request.body()).unwrap());
        let wanted = SECRETS.map(|secret| {
            use base64::prelude::*;
            let key = BASE64_STANDARD.decode(secret).unwrap();
            let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &key);
            let tag = aws_lc_rs::hmac::sign(&key, signed.as_bytes());
            format!("v1,{}", BASE64_STANDARD.encode(tag))
        });
        assert_eq!(text("webhook-signature"), wanted.join(" "));
    }
}
