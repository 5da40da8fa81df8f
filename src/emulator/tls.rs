//! Certificates for the TLS mode: a certificate authority of its own, made anew at each start.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a client may take for its handshake.
const HANDSHAKE_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

/// The certificate authority's certificate, and a server certificate it signed.
pub(super) struct Certificates {
    /// What clients have to trust, PEM text.
    pub(super) ca_pem: String,
    /// PEM text.
    pub(super) certificate_pem: String,
    /// PEM text.
    pub(super) key_pem: String,
    https: Arc<ServerConfig>,
}

impl Certificates {
    /// New ones for `localhost`, the loopback addresses and `host`.
    pub(super) fn generate(host: IpAddr) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "orgstream emulator CA");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let mut names = vec![
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            "::1".to_owned(),
        ];
        let host = host.to_string();
        if !names.contains(&host) {
            names.push(host);
        }
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        params
            .distinguished_name
            .push(DnType::CommonName, "orgstream emulator");
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &authority)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut https = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )?;
        https.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            ca_pem: authority.pem(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            https: Arc::new(https),
        })
    }

    /// A listener that speaks TLS, for the token endpoint.
    pub(super) fn https(&self, listener: TcpListener) -> HttpsListener {
        HttpsListener {
            listener,
            acceptor: TlsAcceptor::from(Arc::clone(&self.https)),
            handshakes: tokio::task::JoinSet::new(),
        }
    }
}

/// Accepts TLS connections. Handshakes run side by side, so that one slow client holds up no other.
pub(super) struct HttpsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    handshakes: tokio::task::JoinSet<Option<(TlsStream<TcpStream>, SocketAddr)>>,
}

impl axum::serve::Listener for HttpsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            tokio::select! {
                accepted = axum::serve::Listener::accept(&mut self.listener) => {
                    let (stream, address) = accepted;
                    let acceptor = self.acceptor.clone();
                    self.handshakes.spawn(async move {
                        // Best effort: without it small answers wait for a timer.
                        let _ = stream.set_nodelay(true);
                        let handshake = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream));
                        Some((handshake.await.ok()?.ok()?, address))
                    });
                }
                Some(done) = self.handshakes.join_next() => {
                    if let Ok(Some(ready)) = done {
                        return ready;
                    }
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
