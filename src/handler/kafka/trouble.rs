//! What can be wrong between us and the brokers, and the cure.

use crate::text::one_line;

/// The longest text of another's in a reason, in characters.
const LONGEST: usize = 200;

/// Why events are not there, or not known to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) kind: Kind,
    /// For a person: which broker, what, and the cure.
    pub(super) reason: String,
}

/// What to do about a trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The connection: worth another attempt where a batch may have been written to it.
    Connection,
    /// Passes by itself, as a partition whose leader changes: worth another attempt within the call.
    Passing,
    /// The brokers do not know our batches any more: go on under a new identity.
    Identity,
    /// Somebody has to mend it, or it takes its time.
    Lasting,
    /// The batch is larger than the topic takes.
    TooLarge,
    /// A record of the batch is not wanted.
    Refused,
}

impl Trouble {
    pub(super) fn new(kind: Kind, reason: impl Into<String>) -> Self {
        Self {
            kind,
            reason: reason.into(),
        }
    }

    pub(super) fn lasting(reason: impl Into<String>) -> Self {
        Self::new(Kind::Lasting, reason)
    }

    /// The connection to the broker at `at` could not be made, or broke.
    pub(super) fn connection(at: &str, why: &str) -> Self {
        let (why, cure) = (plain(why), of_connection(why));
        Self::new(
            Kind::Connection,
            format!("no connection to Kafka at {at}: {why}{cure}"),
        )
    }

    /// What answers is not Kafka, or not one that we can speak with.
    pub(super) fn not_understood(at: &str) -> Self {
        Self::lasting(format!(
            "what answers at {at} is not Kafka as it is known here, 0.11 or newer: look at `brokers`; where the \
             listener wants TLS, write kafka+ssl://HOST:PORT"
        ))
    }

    /// An error code that the broker at `at` answers.
    pub(super) fn code(at: &str, code: i16, topic: Option<&str>, said: Option<&str>) -> Self {
        let known = known(code);
        let name = match known {
            Some(known) => known.name.to_owned(),
            None => format!("error {code}"),
        };
        let of = topic.map(|t| format!(" for topic {t}")).unwrap_or_default();
        let said = said.map(|s| format!(" ({})", plain(s))).unwrap_or_default();
        let cure = match known {
            Some(Known { cure: "", .. }) | None => String::new(),
            Some(Known { cure, .. }) => {
                format!(": {}", cure.replace("TOPIC", topic.unwrap_or("it")))
            }
        };
        Self::new(
            known.map_or(Kind::Lasting, |known| known.kind),
            format!("Kafka at {at} answers {name}{of}{said}{cure}"),
        )
    }
}

struct Known {
    code: i16,
    name: &'static str,
    kind: Kind,
    /// `TOPIC` stands for the topic.
    cure: &'static str,
}

fn known(code: i16) -> Option<&'static Known> {
    CODES.iter().find(|known| known.code == code)
}

const fn code(code: i16, name: &'static str, kind: Kind, cure: &'static str) -> Known {
    Known {
        code,
        name,
        kind,
        cure,
    }
}

pub(super) const DUPLICATE_SEQUENCE: i16 = 46;
pub(super) const UNKNOWN_TOPIC: i16 = 3;

const MISSING: &str = "there is no such topic, and this handler creates none: create it (kafka-topics.sh --create --topic TOPIC, \
     or heroku kafka:topics:create), or set `topic` to one that is there";

/// The codes of Kafka's protocol guide that a producer may meet.
const CODES: &[Known] = {
    use Kind::{Identity, Lasting, Passing, Refused, TooLarge};
    &[
        code(2, "CORRUPT_MESSAGE", Passing, ""),
        code(
            UNKNOWN_TOPIC,
            "UNKNOWN_TOPIC_OR_PARTITION",
            Lasting,
            MISSING,
        ),
        code(
            5,
            "LEADER_NOT_AVAILABLE",
            Passing,
            "the partition has no leader just now: look at the brokers",
        ),
        code(6, "NOT_LEADER_OR_FOLLOWER", Passing, ""),
        code(
            7,
            "REQUEST_TIMED_OUT",
            Passing,
            "replicas do not follow in time: look at the brokers",
        ),
        code(8, "BROKER_NOT_AVAILABLE", Passing, ""),
        code(9, "REPLICA_NOT_AVAILABLE", Passing, ""),
        code(
            10,
            "MESSAGE_TOO_LARGE",
            TooLarge,
            "it is larger than the topic takes: raise max.message.bytes of TOPIC",
        ),
        code(13, "NETWORK_EXCEPTION", Passing, ""),
        code(14, "COORDINATOR_LOAD_IN_PROGRESS", Passing, ""),
        code(15, "COORDINATOR_NOT_AVAILABLE", Passing, ""),
        code(16, "NOT_COORDINATOR", Passing, ""),
        code(
            17,
            "INVALID_TOPIC_EXCEPTION",
            Lasting,
            "no topic may have this name: look at `topic` and `prefix`",
        ),
        code(
            18,
            "RECORD_LIST_TOO_LARGE",
            TooLarge,
            "it is larger than a segment of TOPIC: raise segment.bytes",
        ),
        code(
            19,
            "NOT_ENOUGH_REPLICAS",
            Lasting,
            "fewer replicas are in sync than min.insync.replicas asks for: look at the brokers",
        ),
        code(
            20,
            "NOT_ENOUGH_REPLICAS_AFTER_APPEND",
            Passing,
            "fewer replicas are in sync than min.insync.replicas asks for: look at the brokers",
        ),
        code(
            29,
            "TOPIC_AUTHORIZATION_FAILED",
            Lasting,
            "the user may not write to it: kafka-acls.sh --add --operation Write --operation Describe --topic TOPIC; on Heroku, topics of a shared plan begin with KAFKA_PREFIX",
        ),
        code(
            31,
            "CLUSTER_AUTHORIZATION_FAILED",
            Lasting,
            "brokers before 3.0 want the right IdempotentWrite on the cluster: kafka-acls.sh --add --operation IdempotentWrite --cluster, or set `idempotent = false`",
        ),
        code(
            32,
            "INVALID_TIMESTAMP",
            Lasting,
            "the clock here and the broker's differ by more than the topic allows",
        ),
        code(
            33,
            "UNSUPPORTED_SASL_MECHANISM",
            Lasting,
            "set `sasl` to a way to sign in that it knows",
        ),
        code(
            34,
            "ILLEGAL_SASL_STATE",
            Lasting,
            "it does not want SASL on this port: look at `sasl` and the port in `brokers`",
        ),
        code(35, "UNSUPPORTED_VERSION", Lasting, ""),
        code(
            44,
            "POLICY_VIOLATION",
            Lasting,
            "a policy of the cluster refuses it",
        ),
        code(45, "OUT_OF_ORDER_SEQUENCE_NUMBER", Identity, ""),
        code(
            DUPLICATE_SEQUENCE,
            "DUPLICATE_SEQUENCE_NUMBER",
            Identity,
            "",
        ),
        code(47, "INVALID_PRODUCER_EPOCH", Identity, ""),
        code(
            56,
            "KAFKA_STORAGE_ERROR",
            Passing,
            "its disk is full or broken: make room there, and look at its log",
        ),
        code(
            58,
            "SASL_AUTHENTICATION_FAILED",
            Lasting,
            "it refuses the login: look at `user` and `password`",
        ),
        code(59, "UNKNOWN_PRODUCER_ID", Identity, ""),
        code(74, "FENCED_LEADER_EPOCH", Passing, ""),
        code(75, "UNKNOWN_LEADER_EPOCH", Passing, ""),
        code(87, "INVALID_RECORD", Refused, "the topic does not take it"),
        code(89, "THROTTLING_QUOTA_EXCEEDED", Passing, ""),
    ]
};

/// The cure for a connection that fails, where what it says points to one.
fn of_connection(why: &str) -> &'static str {
    let why = why.to_ascii_lowercase();
    if why.contains("certificaterequired") || why.contains("handshakefailure") {
        " (it wants a certificate of ours: `client_cert` and `client_key`)"
    } else if why.contains("notvalidforname") || why.contains("not valid for name") {
        " (the certificate is for another host: look at `brokers`; where the provider's certificates name none, set \
         `tls_verify_host = false` beside `ca`)"
    } else if why.contains("unknownissuer") {
        " (name its CA in `ca` or `ca_file`)"
    } else if why.contains("certificate") || why.contains("alert") {
        " (look at `ca`, `client_cert` and `client_key`)"
    } else if why.contains("invalidcontenttype") || why.contains("corrupt message") {
        " (it does not speak TLS on this port: write kafka://HOST:PORT)"
    } else if why.contains("refused") || why.contains("lookup") || why.contains("within") {
        " (look at host and port of `brokers`)"
    } else if why.contains("closed") {
        " (where this happens at once: the listener may want TLS, kafka+ssl:// in `brokers`, or a login, `sasl`)"
    } else {
        ""
    }
}

/// One line of bounded length.
pub(super) fn plain(text: &str) -> String {
    one_line(text, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_has_its_name_and_its_cure() {
        let said = |code| Trouble::code("h:1", code, Some("orders"), None).reason;
        for (code, parts) in [
            (3, ["UNKNOWN_TOPIC_OR_PARTITION", "--create --topic orders"]),
            (29, ["TOPIC_AUTHORIZATION_FAILED", "--topic orders"]),
            (31, ["CLUSTER_AUTHORIZATION_FAILED", "`idempotent = false`"]),
            (56, ["KAFKA_STORAGE_ERROR", "disk is full"]),
            (58, ["SASL_AUTHENTICATION_FAILED", "`password`"]),
            (999, ["error 999", "for topic orders"]),
        ] {
            for part in parts {
                assert!(said(code).contains(part), "{part} in {}", said(code));
            }
        }
        let refused = Trouble::code("h:1", 87, Some("orders"), Some("no\nkey"));
        assert!(refused.reason.contains("(no key)"), "{}", refused.reason);
    }

    #[test]
    fn only_what_is_too_large_or_refused_may_be_the_events_own_fault() {
        let own: Vec<&str> = CODES
            .iter()
            .filter(|known| matches!(known.kind, Kind::TooLarge | Kind::Refused))
            .map(|known| known.name)
            .collect();
        assert_eq!(
            own,
            [
                "MESSAGE_TOO_LARGE",
                "RECORD_LIST_TOO_LARGE",
                "INVALID_RECORD"
            ]
        );
    }

    #[test]
    fn what_points_to_a_cure_has_it() {
        for (why, cure) in [
            ("received fatal alert: CertificateRequired", "`client_cert`"),
            (
                "invalid peer certificate: NotValidForName",
                "`tls_verify_host = false`",
            ),
            ("invalid peer certificate: UnknownIssuer", "`ca_file`"),
            (
                "received corrupt message of type InvalidContentType",
                "kafka://",
            ),
            ("Connection refused (os error 111)", "`brokers`"),
            ("the broker closed it", "`sasl`"),
        ] {
            let trouble = Trouble::connection("h:1", why);
            assert!(trouble.reason.contains(cure), "{}", trouble.reason);
        }
    }
}
