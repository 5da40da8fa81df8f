//! Options: what is refused, and what the documentation says of them.

use super::*;

#[test]
fn options_that_cannot_be_used_are_refused_without_showing_them() {
    for (options, part) in [
        ("", "`url` is missing"),
        ("url = 'hidden'", "is not an address"),
        (
            "url = 'ftp://hidden/'",
            "must begin with http:// or https://",
        ),
        (
            "url = 'https://hidden:hidden@example.com/'",
            "must not hold a user name",
        ),
        (
            "url = 'http://h'\nheaders = { 'a b' = 'hidden' }",
            "`headers.a b` is not the name",
        ),
        (
            "url = 'http://h'\nheaders = { a = \"hidden\\n\" }",
            "`headers.a` must be ASCII",
        ),
        (
            "url = 'http://h'\nheaders = { content-type = 'hidden' }",
            "set by orgstream",
        ),
        (
            "url = 'http://h'\nheaders = { A = 'hidden', a = 'hidden' }",
            "given twice",
        ),
        (
            "url = 'http://h'\ntimeout = '0s'",
            "`timeout` must be above zero",
        ),
        ("url = 'http://h'\nurll = 'hidden'", "did you mean `url`?"),
        (
            "url = 'http://h'\nheaders = { Ce-Id = 'hidden' }",
            "set by orgstream",
        ),
        (
            "url = 'http://h'\nheaders = { Webhook-Signature = 'hidden' }",
            "set by orgstream",
        ),
        ("url = 'http://h'\nmode = 'hidden'", "`mode` must be"),
        (
            "url = 'http://h'\nbatch_events = 5",
            "`batch_events` means something with mode = \"batched\" only",
        ),
        (
            "url = 'http://h'\nmode = 'batched'\nbatch_events = 0",
            "`batch_events` must be from 1 to 1000",
        ),
        (
            "url = 'http://h'\nmode = 'batched'\nbatch_bytes = '1GiB'",
            "`batch_bytes` must be from 1024 to",
        ),
        (
            "url = 'http://h'\nsigning_secrets = ['hidden']",
            "`signing_secrets` must hold secrets that begin with whsec_",
        ),
        (
            "url = 'http://h'\nsigning_secrets = ''",
            "`signing_secrets` is blank",
        ),
        (
            "url = 'http://10.1.2.3/hidden'",
            "`url` cannot be used: 10.1.2.3 is a private address",
        ),
        (
            "url = 'http://[fd00::1]/hidden'",
            "list it in `allow_private",
        ),
        (
            "url = 'http://2852039166/hidden'",
            "169.254.169.254 is a link-local",
        ),
        ("url = 'http://0x7f.1/'\nmode = 'x'", "`mode` must be"), // 127.0.0.1 by itself is fine
        (
            "url = 'http://h'\nallow_private_addresses = ['hidden']",
            "`allow_private_addresses` must be true, false",
        ),
        ("url = 'http://h'\nca = 'hidden'", "use `ca_file`"),
    ] {
        let error = WebhookHandler::from_config(&config("webhook", options)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(part), "{text}");
        assert!(!text.contains("hidden"), "{text}");
    }
}

#[test]
fn nothing_secret_is_in_the_debug_form() {
    let config = config(
        "webhook",
        "url = 'http://h/hidden?hidden'\nheaders = { Authorization = 'hidden' }",
    );
    let handler = WebhookHandler::from_config(&config).unwrap();
    assert!(!format!("{handler:?}").contains("hidden"));
}

/// The rows of the webhook's table in the documentation: keys and default.
fn documented() -> Vec<(Vec<String>, String)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/CONFIGURATION.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, section) = text.split_once("\n`webhook` posts events").unwrap();
    let (_, table) = section.split_once("| --- | --- | --- |\n").unwrap();
    let rows = table.lines().take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let keys = cells[1].split(", ").map(|key| key.replace('`', ""));
        (keys.collect(), cells[2].to_owned())
    })
    .collect()
}

#[test]
fn the_documentation_names_every_key() {
    let config = config("webhook", "zzz = 1");
    let Err(HandlerConfigError::Options { problems, .. }) = WebhookHandler::from_config(&config)
    else {
        panic!("zzz is known");
    };
    let mut known = problems
        .into_iter()
        .find_map(|problem| match problem {
            crate::handler::OptionProblem::Unknown { known, .. } => Some(known),
            _ => None,
        })
        .unwrap();
    let mut named: Vec<String> = documented()
        .into_iter()
        .flat_map(|(keys, _)| keys)
        .collect();
    known.sort_unstable();
    named.sort_unstable();
    assert_eq!(named, known);
}

#[test]
fn the_documentation_gives_the_defaults() {
    let defaults: Vec<String> = documented()
        .iter()
        .filter_map(|(keys, default)| {
            let value = default.strip_prefix('`')?.strip_suffix('`')?;
            Some(format!("{} = '{value}'", keys[0]))
        })
        .collect();
    assert_eq!(defaults.len(), 6, "{defaults:?}");
    let read = |options: &str| {
        let settings = Settings::read(&config("webhook", options)).unwrap();
        let (limits, timeouts) = (settings.limits, settings.timeouts);
        format!(
            "{:?} {limits:?} {timeouts:?} {:?}",
            settings.mode, settings.guard
        )
    };
    // Sizes of batches mean something in one mode only.
    let (batch, others): (Vec<_>, Vec<_>) = defaults
        .iter()
        .cloned()
        .partition(|line| line.starts_with("batch_"));
    let url = "url = 'http://h'\n";
    assert_eq!(read(url), read(&format!("{url}{}", others.join("\n"))));
    let batched = format!("{url}mode = 'batched'\n");
    assert_eq!(
        read(&batched),
        read(&format!("{batched}{}", batch.join("\n")))
    );
}
