//! Listeners before a broker that has less: with TLS, with SASL PLAIN, or plain ones that can be shut.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// A CA, and what it vouches for: a broker whose name is not that of its host, and a client.
pub(super) struct Papers {
    pub(super) ca: String,
    broker: (String, String),
    pub(super) client: (String, String),
}

impl Papers {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = format!("CA {}", fastrand::u64(..));
        params.distinguished_name.push(DnType::CommonName, name);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let signed = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new([name.to_owned()]).unwrap();
            let cert = params.signed_by(&key, &ca).unwrap();
            (cert.pem(), key.serialize_pem())
        };
        Self {
            broker: signed("kafka.example"),
            client: signed("client.example"),
            ca: ca.pem(),
        }
    }

    /// The CA's certificate as a file.
    pub(super) fn ca_file(&self, dir: &Path) -> PathBuf {
        let file = dir.join("ca.pem");
        std::fs::write(&file, &self.ca).unwrap();
        file
    }

    /// Takes connections from clients with a certificate of the CA, or with this login, and carries them to `target`.
    pub(super) async fn listen(&self, target: u16, login: Option<&'static str>) -> u16 {
        let ca = CertificateDer::from_pem_slice(self.ca.as_bytes()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match login {
            Some(_) => builder.with_no_client_auth(),
            None => {
                let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                builder.with_client_cert_verifier(clients.build().unwrap())
            }
        };
        let (cert, key) = &self.broker;
        let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let client = acceptor.accept(client).await.ok()?;
                    carry(client, target, own, login).await
                });
            }
        });
        own
    }
}

/// A plain listener that carries to `target` while it is open; shut, it ends every connection.
pub(super) struct Gate {
    pub(super) port: u16,
    open: watch::Sender<bool>,
}

impl Gate {
    pub(super) async fn before(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (open, seen) = watch::channel(true);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                client.set_nodelay(true).unwrap();
                let mut seen = seen.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = carry(client, target, port, None) => {}
                        _ = seen.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self { port, open }
    }

    pub(super) fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }
}

/// Ends with either side. The broker's own port, which it tells its clients, becomes ours.
async fn carry<S>(client: S, target: u16, own: u16, login: Option<&str>) -> Option<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let server = TcpStream::connect(("127.0.0.1", target)).await.ok()?;
    // Frames are written in two parts, of which the second would wait for an acknowledgement of the first, 40 ms.
    server.set_nodelay(true).ok()?;
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = server.into_split();
    if let Some(login) = login {
        sign_in(
            &mut from_client,
            &mut to_client,
            &mut to_server,
            &mut from_server,
            login,
        )
        .await?;
    }
    let up = tokio::io::copy(&mut from_client, &mut to_server);
    let down = async {
        let address = |port: u16| [b"\x00\x09127.0.0.1\0\0", &port.to_be_bytes()[..]].concat();
        let (theirs, ours) = (address(target), address(own));
        while let Some(mut frame) = read(&mut from_server).await {
            for at in 0..frame.len().saturating_sub(theirs.len()) {
                if frame[at..].starts_with(&theirs) {
                    frame[at..at + ours.len()].copy_from_slice(&ours);
                }
            }
            write(&mut to_client, &frame).await?;
        }
        Some(())
    };
    tokio::select! {
        _ = up => None,
        done = down => done,
    }
}

/// Carries the question for versions, answers SASL, and hangs up on everything else.
async fn sign_in(
    from_client: &mut (impl AsyncRead + Unpin),
    to_client: &mut (impl AsyncWrite + Unpin),
    to_server: &mut (impl AsyncWrite + Unpin),
    from_server: &mut (impl AsyncRead + Unpin),
    login: &str,
) -> Option<()> {
    loop {
        let request = read(from_client).await?;
        let number = &request[4..8];
        let answer = match request[1] {
            18 => {
                write(to_server, &request).await?;
                let mut versions = read(from_server).await?;
                // Two more than the broker speaks.
                let count = u32::from_be_bytes(versions[6..10].try_into().unwrap()) + 2;
                versions[6..10].copy_from_slice(&count.to_be_bytes());
                versions.extend([0, 17, 0, 0, 0, 1, 0, 36, 0, 0, 0, 1]);
                write(to_client, &versions).await?;
                continue;
            }
            17 if request.ends_with(b"\x05PLAIN") => b"\0\0\0\0\0\x01\x00\x05PLAIN".to_vec(),
            17 => b"\0\x21\0\0\0\x01\x00\x05PLAIN".to_vec(),
            36 if request.ends_with(login.as_bytes()) => b"\0\0\xff\xff\0\0\0\0".to_vec(),
            36 => b"\0\x3a\xff\xff\0\0\0\0".to_vec(),
            _ => return None,
        };
        write(to_client, &[number, &answer].concat()).await?;
        if request[1] == 36 {
            return (answer[1] == 0).then_some(());
        }
    }
}

async fn read(from: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let length = from.read_u32().await.ok()?;
    let mut frame = vec![0; usize::try_from(length).unwrap()];
    from.read_exact(&mut frame).await.ok()?;
    Some(frame)
}

async fn write(to: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> Option<()> {
    to.write_u32(u32::try_from(frame.len()).unwrap())
        .await
        .ok()?;
    to.write_all(frame).await.ok()?;
    to.flush().await.ok()
}
