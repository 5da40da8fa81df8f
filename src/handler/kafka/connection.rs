//! One connection to one broker, on which any number of requests may be under way.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::login::{Login, Talk, Turn};
use super::trouble::Trouble;
use super::wire::{
    API_VERSIONS, Api, Malformed, Reader, SASL_AUTHENTICATE, SASL_HANDSHAKE, Versions, Writer,
    read_sasl_authenticate, read_sasl_handshake, sasl_authenticate, sasl_handshake,
};

/// How we are called in the brokers' logs and quotas.
const CLIENT: &str = "orgstream";

/// Longest answer that is read. Those of a cluster with thousands of partitions have a tenth of it.
const LONGEST_ANSWER: usize = 16 << 20;

/// A connection that rested for longer is not used again: brokers and load balancers close idle ones, often after
/// minutes and sometimes without a word.
const LONGEST_REST: Duration = Duration::from_secs(60);

/// Requests that wait for the network to take them.
const QUEUE: usize = 64;

/// Where a broker listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// How to connect.
pub(super) struct Dial {
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) login: Option<Login>,
    pub(super) connect_timeout: Duration,
    /// How long one request may take.
    pub(super) request_timeout: Duration,
}

impl Dial {
    /// A connection that is signed in.
    pub(super) async fn connect(&self, address: &Address) -> Result<Connection, Trouble> {
        let at = address.to_string();
        tokio::time::timeout(self.connect_timeout, self.reach(address, &at))
            .await
            .unwrap_or_else(|_| {
                let why = format!("none within {:?}", self.connect_timeout);
                Err(Trouble::connection(&at, &why))
            })
    }

    async fn reach(&self, address: &Address, at: &str) -> Result<Connection, Trouble> {
        let failed = |error: std::io::Error| Trouble::connection(at, &error.to_string());
        let stream = TcpStream::connect((address.host.as_str(), address.port))
            .await
            .map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let mut connection = match &self.tls {
            None => Connection::over(stream, at, self.request_timeout),
            Some(tls) => {
                let name = ServerName::try_from(address.host.clone())
                    .map_err(|_| Trouble::connection(at, "no TLS for such a host name"))?;
                let stream = TlsConnector::from(tls.clone())
                    .connect(name, stream)
                    .await
                    .map_err(failed)?;
                Connection::over(stream, at, self.request_timeout)
            }
        };
        let answer = connection.ask(API_VERSIONS, 0, &[]).await?;
        connection.versions = connection.read(Versions::read(Reader(&answer)))?;
        if let Some(login) = &self.login {
            connection.sign_in(login).await?;
        }
        Ok(connection)
    }
}

/// Requests whose answers are awaited, by their number.
enum Waiting {
    Open(HashMap<i32, oneshot::Sender<Vec<u8>>>),
    /// Why there will be no more.
    Over(String),
}

type SharedWaiting = Arc<Mutex<Waiting>>;

fn end(waiting: &SharedWaiting, why: &str) {
    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(*waiting, Waiting::Open(_)) {
        *waiting = Waiting::Over(why.to_owned());
    }
}

pub(super) struct Connection {
    at: String,
    versions: Versions,
    request_timeout: Duration,
    frames: mpsc::Sender<Vec<u8>>,
    waiting: SharedWaiting,
    number: AtomicI32,
    used: Mutex<Instant>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl Connection {
    fn over<S>(stream: S, at: &str, request_timeout: Duration) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (from, to) = tokio::io::split(stream);
        let (frames, queue) = mpsc::channel(QUEUE);
        let waiting: SharedWaiting = Arc::new(Mutex::new(Waiting::Open(HashMap::new())));
        let tasks = [
            tokio::spawn(write_all(to, queue, waiting.clone())),
            tokio::spawn(read_all(from, waiting.clone())),
        ];
        Self {
            at: at.to_owned(),
            versions: Versions::default(),
            request_timeout,
            frames,
            waiting,
            number: AtomicI32::new(0),
            used: Mutex::new(Instant::now()),
            _tasks: tasks.map(AbortOnDropHandle::new),
        }
    }

    /// Host and port.
    pub(super) fn at(&self) -> &str {
        &self.at
    }

    /// Whether a request may be sent on it.
    pub(super) fn is_fresh(&self) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        match &*waiting {
            Waiting::Over(_) => false,
            // An asker that is gone waits for nothing.
            Waiting::Open(askers) => {
                used.elapsed() < LONGEST_REST || askers.values().any(|asker| !asker.is_closed())
            }
        }
    }

    /// The version in which to speak of something.
    pub(super) fn version(&self, api: Api) -> Result<i16, Trouble> {
        self.versions.of(api).ok_or_else(|| {
            Trouble::lasting(format!(
                "Kafka at {} does not speak {} in a version known here ({} to {})",
                self.at, api.name, api.oldest, api.newest
            ))
        })
    }

    /// What was read, or that it cannot be.
    pub(super) fn read<T>(&self, read: Result<T, Malformed>) -> Result<T, Trouble> {
        read.map_err(|Malformed| Trouble::not_understood(&self.at))
    }

    /// Sends a request and waits for its answer. Where that fails, what became of the request is not known.
    ///
    /// Dropping the call leaves the connection sound.
    pub(super) async fn ask(
        &self,
        api: Api,
        version: i16,
        body: &[u8],
    ) -> Result<Vec<u8>, Trouble> {
        let asking = async {
            let answer = self.send(api, version, body).await?;
            answer.await.ok()
        };
        let answer = match tokio::time::timeout(self.request_timeout, asking).await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(Trouble::connection(&self.at, &self.why_over())),
            Err(_) => {
                // A broker answers in order: what comes later waits for this one too.
                let why = format!("no answer within {:?}", self.request_timeout);
                end(&self.waiting, &why);
                return Err(Trouble::connection(&self.at, &why));
            }
        };
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Ok(answer)
    }

    /// `None` where the connection is over.
    async fn send(
        &self,
        api: Api,
        version: i16,
        body: &[u8],
    ) -> Option<oneshot::Receiver<Vec<u8>>> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let mut frame = Writer(Vec::with_capacity(body.len() + CLIENT.len() + 14));
        frame
            .i32(0)
            .i16(api.key)
            .i16(version)
            .i32(number)
            .text(CLIENT);
        frame.0.extend(body);
        let length = i32::try_from(frame.0.len() - 4).unwrap_or(i32::MAX);
        frame.0[..4].copy_from_slice(&length.to_be_bytes());
        let (answer, answered) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let Waiting::Open(requests) = &mut *waiting else {
                return None;
            };
            requests.insert(number, answer);
        }
        self.frames.send(frame.0).await.ok()?;
        Some(answered)
    }

    fn why_over(&self) -> String {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match &*waiting {
            Waiting::Over(why) => why.clone(),
            Waiting::Open(_) => "it ended".to_owned(),
        }
    }

    async fn sign_in(&self, login: &Login) -> Result<(), Trouble> {
        let name = login.mechanism.name();
        let request = sasl_handshake(name);
        let answer = self
            .ask(SASL_HANDSHAKE, self.version(SASL_HANDSHAKE)?, &request)
            .await?;
        let (code, known) = self.read(read_sasl_handshake(Reader(&answer)))?;
        if code != 0 {
            let known = format!("it knows {}", known.join(", "));
            return Err(Trouble::code(&self.at, code, None, Some(&known)));
        }
        let wrong = |why| Trouble::lasting(format!("Kafka at {}: {name}: {why}", self.at));
        let (mut talk, mut say) = Talk::begin(login).map_err(wrong)?;
        loop {
            let request = sasl_authenticate(&say);
            let version = self.version(SASL_AUTHENTICATE)?;
            let answer = self.ask(SASL_AUTHENTICATE, version, &request).await?;
            let (code, said) = self.read(read_sasl_authenticate(Reader(&answer)))?;
            if code != 0 {
                return Err(Trouble::code(&self.at, code, None, None));
            }
            match talk.next(&said).map_err(wrong)? {
                (_, Turn::Done) => return Ok(()),
                (next, Turn::Say(next_say)) => (talk, say) = (next, next_say),
            }
        }
    }
}

async fn write_all(
    mut to: impl AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<Vec<u8>>,
    waiting: SharedWaiting,
) {
    while let Some(frame) = frames.recv().await {
        let written = async {
            to.write_all(&frame).await?;
            to.flush().await
        };
        if let Err(error) = written.await {
            end(&waiting, &error.to_string());
            return;
        }
    }
}

async fn read_all(mut from: impl AsyncRead + Unpin, waiting: SharedWaiting) {
    let why = loop {
        match read_answer(&mut from).await {
            Ok((number, answer)) => {
                let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if let Waiting::Open(requests) = &mut *waiting
                    && let Some(asker) = requests.remove(&number)
                {
                    // Nobody waits any more where the call was dropped.
                    let _ = asker.send(answer);
                }
            }
            Err(why) => break why,
        }
    };
    end(&waiting, &why);
}

async fn read_answer(from: &mut (impl AsyncRead + Unpin)) -> Result<(i32, Vec<u8>), String> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "the broker closed it".to_owned(),
        _ => error.to_string(),
    };
    let length = from.read_u32().await.map_err(failed)?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if !(4..=LONGEST_ANSWER).contains(&length) {
        // As of a listener that wants TLS.
        return Err("closed, what came is not Kafka's protocol".to_owned());
    }
    let number = from.read_i32().await.map_err(failed)?;
    let mut answer = vec![0; length - 4];
    from.read_exact(&mut answer).await.map_err(failed)?;
    Ok((number, answer))
}
