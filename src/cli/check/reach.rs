//! The way to a host: its name, a connection, TLS. Whatever is in the way is told apart, because each is mended by
//! somebody else.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_ok;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig, Error as TlsError};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::salesforce::{Origin, tls};

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long another port may take, which is only tried to give advice.
const SHORT_PATIENCE: Duration = Duration::from_secs(5);

/// How much later than the one before the next address of a host is tried.
const STAGGER: Duration = Duration::from_millis(250);

/// The ports of the Pub/Sub API (facts, section 2): some networks let only one of them through.
const PORTS: [u16; 2] = [7443, 443];

/// Where to, and what to expect there.
pub(super) struct Target<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    /// `None` for a connection in plain text, which is only made to this machine.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// The server has to agree on HTTP/2.
    pub(super) http2: bool,
}

impl<'a> Target<'a> {
    /// Of a login host or the Pub/Sub API.
    ///
    /// # Errors
    ///
    /// What is wrong with the CA file.
    pub(super) fn new(
        origin: &'a Origin,
        ca_file: Option<&Path>,
        http2: bool,
    ) -> Result<Self, String> {
        let tls = match origin.is_tls() {
            false => None,
            true => {
                let roots = tls::roots(ca_file)?;
                let mut config =
                    tls::client_config(roots).map_err(|error| format!("no TLS: {error}"))?;
                if http2 {
                    config.alpn_protocols = vec![b"h2".to_vec()];
                }
                Some(Arc::new(config))
            }
        };
        Ok(Self {
            host: origin.host(),
            port: origin.port(),
            tls,
            http2,
        })
    }

    fn place(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The port of Salesforce's that this is not.
    pub(super) fn other_port(&self) -> Option<u16> {
        let [one, other] = PORTS;
        match self.port {
            port if port == one => Some(other),
            port if port == other => Some(one),
            _ => None,
        }
    }

    /// True where the same host answers on this port, as it should on its own.
    pub(super) async fn answers_on(&self, port: u16) -> bool {
        let other = Target {
            host: self.host,
            port,
            tls: self.tls.clone(),
            http2: self.http2,
        };
        timeout(SHORT_PATIENCE, other.walk(SHORT_PATIENCE))
            .await
            .is_ok_and(|walked| walked.is_ok())
    }

    /// Goes there and back. Sends nothing beyond the handshake.
    pub(super) async fn reach(&self) -> Result<String, Obstacle> {
        self.walk(PATIENCE).await
    }

    async fn walk(&self, patience: Duration) -> Result<String, Obstacle> {
        let place = self.place();
        let host = self.host.trim_matches(['[', ']']);
        let addresses: Vec<SocketAddr> =
            match timeout(patience, lookup_host((host, self.port))).await {
                Ok(Ok(found)) => found.collect(),
                Ok(Err(error)) => return Err(Obstacle::Name(told(&error))),
                Err(_) => return Err(Obstacle::Name(no_answer(patience))),
            };
        if addresses.is_empty() {
            return Err(Obstacle::Name("it has no address".to_owned()));
        }
        let stream = match timeout(patience, first_to_answer(&addresses)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Obstacle::Connection(told(&error))),
            Err(_) => return Err(Obstacle::Connection(no_answer(patience))),
        };
        let Some(config) = &self.tls else {
            return Ok(format!(
                "{place} accepts connections, unencrypted within this machine"
            ));
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            Obstacle::Name("it is not a name that a certificate can have".to_owned())
        })?;
        let connector = TlsConnector::from(config.clone());
        let stream = match timeout(patience, connector.connect(name, stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Obstacle::of_handshake(&error)),
            Err(_) => return Err(Obstacle::Silence(patience)),
        };
        let (_, session) = stream.get_ref();
        if self.http2 && session.alpn_protocol() != Some(b"h2") {
            return Err(Obstacle::NoHttp2);
        }
        let version = match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLS 1.2",
            _ => "TLS",
        };
        let known = match addresses.len() {
            1 => "one address".to_owned(),
            count => format!("{count} addresses"),
        };
        Ok(format!(
            "{place} answers: {known}, {version}, its certificate is trusted"
        ))
    }
}

/// A connection to the first address that takes one, each begun a moment after the one before, as the daemon does: one of a
/// family that leads nowhere from here holds nobody up.
async fn first_to_answer(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let attempts = addresses.iter().zip(0_u32..).map(|(address, number)| {
        Box::pin(async move {
            tokio::time::sleep(STAGGER * number).await;
            TcpStream::connect(address).await
        })
    });
    let (stream, _) = select_ok(attempts).await?;
    Ok(stream)
}

/// What was in the way.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// The name has no address.
    Name(String),
    /// Nothing takes connections, or something keeps them away.
    Connection(String),
    /// A connection was accepted, and then nothing came.
    Silence(Duration),
    /// What answers does not speak TLS.
    NotTls,
    /// The connection was closed in the middle of the handshake.
    Closed,
    /// The certificate is not accepted.
    Certificate(Distrust),
    /// TLS, but not HTTP/2, without which there is no gRPC.
    NoHttp2,
    /// Something else about TLS.
    Tls(String),
}

/// Why a certificate is not accepted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Distrust {
    Expired,
    NotYetValid,
    UnknownCa,
    OtherName,
    Other(String),
}

impl Obstacle {
    fn of_handshake(error: &io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        match inner {
            Some(TlsError::InvalidCertificate(why)) => Self::Certificate(distrust(why)),
            Some(TlsError::InvalidMessage(_)) => Self::NotTls,
            Some(TlsError::NoApplicationProtocol) => Self::NoHttp2,
            Some(TlsError::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)) => {
                Self::NoHttp2
            }
            Some(other) => Self::Tls(other.to_string()),
            None if is_end(error) => Self::Closed,
            None => Self::Tls(told(error)),
        }
    }

    /// Another port of the same host might be without it.
    pub(super) fn is_of_port(&self) -> bool {
        matches!(
            self,
            Self::Connection(_) | Self::Silence(_) | Self::NotTls | Self::Closed
        )
    }

    /// What was found, of a host at a place.
    pub(super) fn why(&self, target: &Target<'_>) -> String {
        let (host, place) = (target.host, target.place());
        match self {
            Self::Name(why) => format!("no address is known of {host}: {why}"),
            Self::Connection(why) => format!("cannot reach {place}: {why}"),
            Self::Silence(patience) => {
                let seconds = patience.as_secs();
                format!(
                    "{place} accepts connections, but answers no TLS handshake within {seconds} s"
                )
            }
            Self::NotTls => format!("what answers at {place} does not speak TLS"),
            Self::Closed => {
                format!("{place} closed the connection in the middle of the TLS handshake")
            }
            Self::NoHttp2 => format!("{place} speaks TLS, but not HTTP/2, which gRPC needs"),
            Self::Tls(why) => format!("no TLS with {place}: {why}"),
            Self::Certificate(Distrust::Expired) => {
                format!("the certificate of {place} has expired, by this machine's clock")
            }
            Self::Certificate(Distrust::NotYetValid) => {
                format!("the certificate of {place} is not valid yet, by this machine's clock")
            }
            Self::Certificate(Distrust::UnknownCa) => {
                format!("the certificate of {place} is signed by a CA that is not trusted here")
            }
            Self::Certificate(Distrust::OtherName) => {
                format!("the certificate of {place} is for another name")
            }
            Self::Certificate(Distrust::Other(why)) => {
                format!("the certificate of {place} is not accepted: {why}")
            }
        }
    }

    /// What to do; `key` is the configuration's name of the address.
    pub(super) fn cure(&self, key: &str) -> String {
        const INTERCEPTED: &str = "A proxy or firewall that opens TLS presents certificates of its own: let the \
                                   connection through untouched, or name its CA in `salesforce.ca_file` \
                                   (SALESFORCE_CA_FILE)";
        match self {
            Self::Name(_) => format!("Correct {key}, or see that this machine's DNS knows it"),
            Self::Connection(_) => {
                format!("Let this machine reach it (firewall, network), or correct {key}")
            }
            Self::Silence(_) | Self::Closed => format!(
                "Something on the way takes the connection and does not let TLS through (firewall, proxy), or {key} \
                 names the wrong port"
            ),
            Self::NotTls => format!("Correct the port in {key}, or the scheme"),
            Self::NoHttp2 => format!(
                "A proxy on the way speaks HTTP/1 only: let the connection through untouched, or correct {key}"
            ),
            Self::Certificate(Distrust::Expired | Distrust::NotYetValid) => format!(
                "See that this machine's clock is right; if it is, what answers is not Salesforce. {INTERCEPTED}"
            ),
            Self::Certificate(Distrust::UnknownCa) => INTERCEPTED.to_owned(),
            Self::Certificate(_) => format!("Correct {key}. {INTERCEPTED}"),
            Self::Tls(_) => format!("See what is on the way (proxy, firewall), and {key}"),
        }
    }
}

fn distrust(error: &CertificateError) -> Distrust {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Distrust::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            Distrust::NotYetValid
        }
        // A CA of the same name as one that is trusted, but with another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Distrust::UnknownCa,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Distrust::OtherName
        }
        other => Distrust::Other(other.to_string()),
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

/// The system's words, without its number.
fn told(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((words, _)) => words.to_lowercase(),
        None => text,
    }
}

fn no_answer(patience: Duration) -> String {
    format!("there was no answer within {} s", patience.as_secs())
}

#[cfg(test)]
mod tests;
