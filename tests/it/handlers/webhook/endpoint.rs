//! `tests/receivers/webhook.mjs` as a process.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::support::daemon::project;
use crate::support::eventually;

/// A request that was accepted.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Request {
    pub(super) http: String,
    /// Number of the connection, from 0 since the start.
    pub(super) connection: usize,
    /// Common name of the client's certificate.
    pub(super) client: Option<String>,
    pub(super) headers: Map<String, Value>,
    pub(super) body: String,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(Value::as_str).unwrap_or("")
    }

    /// The body as JSON, as a list where it is not one.
    pub(super) fn events(&self) -> Vec<Value> {
        match serde_json::from_str(&self.body).unwrap() {
            Value::Array(events) => events,
            event => vec![event],
        }
    }
}

/// The receiver; killed when dropped.
pub(super) struct Endpoint {
    child: Option<Child>,
    folder: TempDir,
    pub(super) port: u16,
    settings: Value,
    read: RefCell<(u64, Vec<Request>)>,
}

impl Endpoint {
    /// Starts one with these settings; `None`, with a line that says so, where there is no Node.
    pub(super) fn start(settings: Value) -> Option<Self> {
        if Command::new("node").arg("--version").output().is_err() {
            assert!(
                std::env::var_os("ORGSTREAM_REQUIRE_NODE").is_none(),
                "node is not installed"
            );
            println!("skipped: node is not installed");
            return None;
        }
        let mut endpoint = Self {
            child: None,
            folder: tempfile::tempdir().unwrap(),
            port: 0,
            settings,
            read: RefCell::default(),
        };
        endpoint.up();
        Some(endpoint)
    }

    fn journal(&self) -> PathBuf {
        self.folder.path().join("journal")
    }

    fn up(&mut self) {
        let mut settings = self.settings.clone();
        settings["port"] = json!(self.port);
        if settings["journal"].is_null() {
            settings["journal"] = json!(self.journal());
        }
        let mut child = Command::new("node")
            .arg(project().join("tests/receivers/webhook.mjs"))
            .arg(settings.to_string())
            // Closed with the test's process, whatever its end: then the receiver ends, too.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        self.child = Some(child); // ended whatever happens next
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).expect("the receiver listens");
        self.port = said["port"].as_u64().unwrap().try_into().unwrap();
    }

    /// SIGKILL.
    pub(super) fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGKILL, and a new one at the same port with other settings.
    pub(super) fn restart_with(&mut self, settings: Value) {
        self.settings = settings;
        self.restart();
    }

    /// SIGKILL, and a new one at the same port.
    pub(super) fn restart(&mut self) {
        self.down();
        self.up();
    }

    /// Everything that was accepted, in order.
    pub(super) fn requests(&self) -> Vec<Request> {
        let mut read = self.read.borrow_mut();
        let (offset, requests) = &mut *read;
        let Ok(mut file) = std::fs::File::open(self.journal()) else {
            return Vec::new();
        };
        file.seek(SeekFrom::Start(*offset)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        // What has no end yet is read the next time.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        *offset += whole as u64;
        requests.extend(
            text[..whole]
                .lines()
                .map(|line| serde_json::from_str::<Request>(line).unwrap()),
        );
        requests.clone()
    }

    /// Waits until so many events were accepted, and gives the requests.
    pub(super) async fn accepts(&self, events: usize) -> Vec<Request> {
        eventually(&format!("{events} accepted events"), async || {
            let requests = self.requests();
            let came: usize = requests
                .iter()
                .map(|request| {
                    let batch = request.header("content-type").contains("cloudevents-batch");
                    if batch { request.events().len() } else { 1 }
                })
                .sum();
            (came >= events).then_some(requests)
        })
        .await
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The folder with the published library, where `npm install` was run.
pub(super) fn library() -> Option<PathBuf> {
    let folder = project().join("tests/clients/node");
    if folder.join("node_modules/standardwebhooks").is_dir() {
        return Some(folder);
    }
    assert!(
        std::env::var_os("ORGSTREAM_REQUIRE_NODE").is_none(),
        "run `npm install` in {}",
        folder.display()
    );
    println!("skipped: no standardwebhooks in {}", folder.display());
    None
}

/// A CA, and what it has certified; PEM text.
pub(super) struct Certificates {
    pub(super) ca: String,
    pub(super) server: (String, String),
    pub(super) client: (String, String),
}

impl Certificates {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "a CA of the tests");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self {
            server: certified(&ca, &["127.0.0.1", "localhost"], "receiver"),
            client: certified(&ca, &[], "orgstream of the tests"),
            ca: ca.pem(),
        }
    }

    /// Writes the client's into a folder; gives the lines that use them.
    pub(super) fn as_files(&self, folder: &Path) -> String {
        let mut lines = String::new();
        for (key, text) in [
            ("ca_file", &self.ca),
            ("client_cert_file", &self.client.0),
            ("client_key_file", &self.client.1),
        ] {
            let path = folder.join(key);
            std::fs::write(&path, text).unwrap();
            lines.push_str(&format!("{key} = \"{}\"\n", path.display()));
        }
        lines
    }

    /// Settings of a receiver with TLS; `client` wants a certificate of the client.
    pub(super) fn settings(&self, client: bool) -> Value {
        let mut settings = json!({"cert": self.server.0, "key": self.server.1});
        if client {
            settings["ca"] = json!(self.ca);
        }
        settings
    }
}

fn certified(ca: &Issuer<'_, KeyPair>, names: &[&str], common: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, common);
    params.use_authority_key_identifier_extension = true;
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let certificate = params.signed_by(&key, ca).unwrap();
    (certificate.pem(), key.serialize_pem())
}
