//! The `[web]` section: where the status page is served, and what opens it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::WebConfig;
use super::error::Place;
use super::section::{Section, Var};

/// Shortest token, in characters: it stands alone between the internet and the buttons of the status page.
const TOKEN_LENGTH: usize = 16;

/// Where Heroku, and many platforms beside it, tell a process to listen.
const PORT: &str = "PORT";

/// Set on Heroku alone, whose router is the only way in.
const DYNO: &str = "DYNO";

/// Who reads the section.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// `orgstream web`, which needs all of it.
    ToServe,
    /// Another command, which does without: what is wrong with a value is a warning there, because on a
    /// platform all processes have the same variables, and the daemon goes on where the status page cannot.
    InPassing,
}

/// Reads the section; `None` where something in it is no good, and then it has been noted.
pub(super) fn read(section: Section<'_>, reading: Reading) -> Option<WebConfig> {
    let note = |place: Place, message: &str| match reading {
        Reading::ToServe => section.reader().problem(place, message),
        Reading::InPassing => section.reader().warn(place, message),
    };
    let addr = match section.text("addr", Var::Named("ORGSTREAM_WEB_ADDR")) {
        None => by_default(&section, note),
        Some(given) => {
            let addr = given.text.parse().ok();
            if addr.is_none() {
                note(
                    given.place,
                    "expected an IP address and a port, for example 127.0.0.1:8080 or 0.0.0.0:8080",
                );
            }
            addr
        }
    };
    let variable = Var::Named("ORGSTREAM_WEB_TOKEN");
    let token = match reading {
        Reading::InPassing => section.text("token", variable),
        Reading::ToServe => section.needed(
            "token",
            variable,
            "`orgstream web` shows nothing to anybody without it; make one with `openssl rand -hex 32`",
        ),
    };
    if let Some(token) = &token
        && token.text.chars().count() < TOKEN_LENGTH
    {
        note(
            token.place.clone(),
            "is shorter than 16 characters; make one with `openssl rand -hex 32`",
        );
    }
    let behind_proxy = match section.text("behind_proxy", Var::Named("ORGSTREAM_WEB_BEHIND_PROXY"))
    {
        None => section.reader().env.var(DYNO).is_some(),
        Some(given) => {
            if !matches!(given.text.as_str(), "true" | "false") {
                note(given.place, "expected true or false");
            }
            given.text == "true"
        }
    };
    section.finish();
    match reading {
        Reading::ToServe => Some(WebConfig {
            addr: addr?,
            token: Some(token?.text.into()),
            behind_proxy,
        }),
        Reading::InPassing => Some(WebConfig {
            addr: addr.unwrap_or(WebConfig::ADDR),
            token: token.map(|token| token.text.into()),
            behind_proxy,
        }),
    }
}

/// Where it is served if nothing is said: where the platform says, for everyone, by IPv4 and IPv6, because routers
/// speak the one or the other; else for this machine alone.
fn by_default(section: &Section<'_>, note: impl Fn(Place, &str)) -> Option<SocketAddr> {
    let Some(port) = section.reader().env.var(PORT) else {
        return Some(WebConfig::ADDR);
    };
    let addr = port
        .parse()
        .map(|port| SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port));
    if addr.is_err() {
        note(Place::variable(PORT), "expected the number of a port");
    }
    addr.ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use secrecy::ExposeSecret as _;

    use crate::config::{ConfigError, WebConfig, load_web};

    /// As the environment alone has it.
    fn read(pairs: &[(&str, &str)]) -> Result<WebConfig, ConfigError> {
        // The text that `ORGSTREAM_CONFIG` holds keeps a file in the current directory out of this.
        let text = ("ORGSTREAM_CONFIG", "schemas_dir = \"x\"\n");
        let env: BTreeMap<String, String> = pairs
            .iter()
            .chain([&text])
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        load_web(None, &env)
    }

    const TOKEN: (&str, &str) = ("ORGSTREAM_WEB_TOKEN", "hunter2-hunter2-");

    #[test]
    fn it_is_served_to_this_machine_alone_unless_the_platform_names_a_port_or_a_person_an_address()
    {
        let addr = |pairs: &[(&str, &str)]| {
            let all: Vec<_> = pairs.iter().copied().chain([TOKEN]).collect();
            read(&all).unwrap().addr.to_string()
        };
        assert_eq!(addr(&[]), "127.0.0.1:8080");
        assert_eq!(addr(&[("PORT", "5006")]), "[::]:5006");
        let named = ("ORGSTREAM_WEB_ADDR", "[::1]:9");
        assert_eq!(addr(&[("PORT", "5006"), named]), "[::1]:9");
    }

    #[test]
    fn a_proxy_in_front_is_a_persons_word_and_on_heroku_a_fact() {
        let behind = |more: &[(&str, &str)]| {
            let all: Vec<_> = more.iter().copied().chain([TOKEN]).collect();
            read(&all).map(|web| web.behind_proxy)
        };
        let said = |word| ("ORGSTREAM_WEB_BEHIND_PROXY", word);
        assert!(!behind(&[]).unwrap());
        assert!(behind(&[("DYNO", "web.1")]).unwrap());
        assert!(behind(&[said("true")]).unwrap());
        assert!(!behind(&[("DYNO", "web.1"), said("false")]).unwrap());
        let error = behind(&[said("yes")]).unwrap_err().to_string();
        assert!(error.contains("true or false"), "{error}");
        let text = "[web]\nbehind_proxy = true\ntoken = \"hunter2-hunter2-\"\n";
        let env = BTreeMap::from([("ORGSTREAM_CONFIG".to_owned(), text.to_owned())]);
        assert!(load_web(None, &env).unwrap().behind_proxy);
    }

    #[test]
    fn without_a_token_that_cannot_be_guessed_it_is_refused_with_the_way_to_make_one() {
        for (pairs, why) in [
            (vec![], "ORGSTREAM_WEB_TOKEN"),
            (vec![("ORGSTREAM_WEB_TOKEN", "hunter2")], "shorter than 16"),
            (vec![TOKEN, ("PORT", "x")], "number of a port"),
            (vec![TOKEN, ("ORGSTREAM_WEB_ADDR", "x")], "127.0.0.1:8080"),
        ] {
            let error = read(&pairs).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
            assert!(
                pairs.len() > 1 || error.contains("openssl rand -hex 32"),
                "{error}"
            );
        }
        let token = read(&[TOKEN]).unwrap().token.unwrap();
        assert_eq!(token.expose_secret(), TOKEN.1);
    }
}
