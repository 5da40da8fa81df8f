//! Against real sockets: each obstacle by what really happens on the wire.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// A CA, and what its file would hold.
fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A server with a certificate of this CA for these names, changed as asked; gives its port.
async fn server(
    authority: &CertifiedIssuer<'static, KeyPair>,
    names: &[&str],
    alpn: &[&str],
    change: impl FnOnce(&mut CertificateParams),
) -> u16 {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    change(&mut params);
    let certificate = params.signed_by(&key, authority).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|one| one.as_bytes().to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let _ = acceptor.accept(socket).await;
        }
    });
    port
}

fn trusting(authority: &CertifiedIssuer<'static, KeyPair>) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), authority.pem()).unwrap();
    file
}

async fn reached(origin: &str, ca_file: Option<&Path>) -> Result<String, Obstacle> {
    let origin = Origin::parse(origin).unwrap();
    Target::new(&origin, ca_file, true)
        .unwrap()
        .walk(Duration::from_secs(2))
        .await
}

#[tokio::test]
async fn an_address_that_leads_nowhere_holds_the_others_not_up() {
    let there = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // A queue of one that is full: nothing more is answered, as by a black hole.
    let hole = tokio::net::TcpSocket::new_v4().unwrap();
    hole.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let hole = hole.listen(0).unwrap();
    let nowhere = hole.local_addr().unwrap();
    let _full = TcpStream::connect(nowhere).await.unwrap();
    let alone = timeout(Duration::from_secs(1), first_to_answer(&[nowhere])).await;
    assert!(alone.is_err(), "{alone:?}");
    let addresses = [nowhere, there.local_addr().unwrap()];
    let reached = timeout(Duration::from_secs(5), first_to_answer(&addresses));
    assert_eq!(
        reached.await.unwrap().unwrap().peer_addr().unwrap(),
        addresses[1]
    );
}

#[tokio::test]
async fn a_sound_server_is_reached() {
    let authority = authority();
    let port = server(&authority, &["127.0.0.1"], &["h2", "http/1.1"], |_| {}).await;
    let ca = trusting(&authority);
    let found = reached(&format!("https://127.0.0.1:{port}"), Some(ca.path())).await;
    let text = found.unwrap();
    assert!(
        text.contains("TLS 1.3") && text.contains("one address"),
        "{text}"
    );
}

#[tokio::test]
async fn each_fault_of_a_certificate_is_told_from_the_others() {
    let ours = authority();
    let ca = trusting(&ours);
    let h2 = ["h2"];
    let old = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(2001, 1, 1);
    };
    let young = |params: &mut CertificateParams| params.not_before = date_time_ymd(2400, 1, 1);
    let cases = [
        (
            server(&ours, &["127.0.0.1"], &h2, old).await,
            Distrust::Expired,
        ),
        (
            server(&ours, &["127.0.0.1"], &h2, young).await,
            Distrust::NotYetValid,
        ),
        (
            server(&authority(), &["127.0.0.1"], &h2, |_| {}).await,
            Distrust::UnknownCa,
        ),
        (
            server(&ours, &["elsewhere.example"], &h2, |_| {}).await,
            Distrust::OtherName,
        ),
    ];
    for (port, expected) in cases {
        let found = reached(&format!("https://127.0.0.1:{port}"), Some(ca.path())).await;
        assert_eq!(found, Err(Obstacle::Certificate(expected)));
    }
}

#[tokio::test]
async fn what_is_no_tls_server_is_told_by_what_it_does() {
    let listen = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = |listener: &TcpListener| format!("https://{}", listener.local_addr().unwrap());

    // Accepts, by its queue, and never answers.
    let silent = listen().await;
    let found = reached(&at(&silent), None).await;
    assert_eq!(found, Err(Obstacle::Silence(Duration::from_secs(2))));

    let plain = listen().await;
    let place = at(&plain);
    let speaks = tokio::spawn(async move {
        let (mut socket, _) = plain.accept().await.unwrap();
        socket
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        socket
    });
    assert_eq!(reached(&place, None).await, Err(Obstacle::NotTls));
    speaks.await.unwrap();

    let closing = listen().await;
    let place = at(&closing);
    tokio::spawn(async move { drop(closing.accept().await) });
    assert_eq!(reached(&place, None).await, Err(Obstacle::Closed));

    let gone = listen().await;
    let place = at(&gone);
    drop(gone);
    let found = reached(&place, None).await;
    assert_eq!(
        found,
        Err(Obstacle::Connection("connection refused".to_owned()))
    );

    let found = reached("https://no-such-host.invalid:7443", None).await;
    assert!(matches!(found, Err(Obstacle::Name(_))), "{found:?}");
}

#[tokio::test]
async fn a_server_without_http2_is_told_where_http2_is_needed() {
    let authority = authority();
    let ca = trusting(&authority);
    for alpn in [&["http/1.1"][..], &[]] {
        let port = server(&authority, &["127.0.0.1"], alpn, |_| {}).await;
        let place = format!("https://127.0.0.1:{port}");
        assert_eq!(
            reached(&place, Some(ca.path())).await,
            Err(Obstacle::NoHttp2)
        );
        let origin = Origin::parse(&place).unwrap();
        let login = Target::new(&origin, Some(ca.path()), false).unwrap();
        assert!(login.reach().await.is_ok(), "a login host needs none");
    }
}

#[tokio::test]
async fn the_other_port_is_tried_on_the_same_host() {
    let authority = authority();
    let ca = trusting(&authority);
    let port = server(&authority, &["127.0.0.1"], &["h2"], |_| {}).await;
    let origin = Origin::parse("https://127.0.0.1:7443").unwrap();
    let target = Target::new(&origin, Some(ca.path()), true).unwrap();
    assert_eq!(target.other_port(), Some(443));
    assert!(target.answers_on(port).await);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    assert!(!target.answers_on(silent.local_addr().unwrap().port()).await);
}

#[test]
fn only_the_ports_of_the_pubsub_api_have_another_one() {
    let other = |url: &str| {
        let origin = Origin::parse(url).unwrap();
        Target::new(&origin, None, true).unwrap().other_port()
    };
    assert_eq!(other("https://api.pubsub.salesforce.com:7443"), Some(443));
    assert_eq!(other("https://api.pubsub.salesforce.com"), Some(7443));
    assert_eq!(other("http://127.0.0.1:7011"), None);
}

#[test]
fn every_obstacle_says_where_and_what_to_do() {
    let origin = Origin::parse("https://api.example.com:7443").unwrap();
    let target = Target::new(&origin, None, true).unwrap();
    let all = [
        Obstacle::Name("x".into()),
        Obstacle::Connection("x".into()),
        Obstacle::Silence(PATIENCE),
        Obstacle::NotTls,
        Obstacle::Closed,
        Obstacle::NoHttp2,
        Obstacle::Tls("x".into()),
        Obstacle::Certificate(Distrust::Expired),
        Obstacle::Certificate(Distrust::NotYetValid),
        Obstacle::Certificate(Distrust::UnknownCa),
        Obstacle::Certificate(Distrust::OtherName),
        Obstacle::Certificate(Distrust::Other("x".into())),
    ];
    let mut texts: Vec<String> = all.iter().map(|one| one.why(&target)).collect();
    assert!(
        texts.iter().all(|text| text.contains("api.example.com")),
        "{texts:?}"
    );
    assert!(all.iter().all(|one| !one.cure("the key").is_empty()));
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), all.len());
}
