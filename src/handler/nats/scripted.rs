//! Against a server that acknowledges when it is told to: what is under way together.

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::super::testing::{config, keyed};
use super::*;

const LATE: Duration = Duration::from_secs(30);

/// A message as it came: its number within the batch, and where its acknowledgement goes.
struct Came {
    number: usize,
    reply: String,
}

/// A server of one client.
struct Server {
    port: u16,
    came: mpsc::UnboundedReceiver<Came>,
    /// What is sent to the client.
    say: mpsc::UnboundedSender<String>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (come, came) = mpsc::unbounded_channel();
        let (say, mut said) = mpsc::unbounded_channel::<String>();
        let answer = say.clone();
        tokio::spawn(async move {
            let (client, _) = listener.accept().await.unwrap();
            let (from, mut to) = client.into_split();
            let hello =
                r#"{"server_id":"S","version":"2.10.0","headers":true,"max_payload":1048576}"#;
            to.write_all(format!("INFO {hello}\r\n").as_bytes())
                .await
                .unwrap();
            tokio::spawn(async move {
                while let Some(text) = said.recv().await {
                    if to.write_all(text.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
            listen(BufReader::new(from), come, answer).await;
        });
        Self { port, came, say }
    }

    fn handler(&self) -> NatsHandler {
        let options = format!("url = 'nats://127.0.0.1:{}'\ntimeout = '20s'", self.port);
        NatsHandler::from_config(&config("nats", &options)).unwrap()
    }

    /// Waits for so many messages.
    async fn came(&mut self, count: usize) -> Vec<Came> {
        let mut all = Vec::new();
        while all.len() < count {
            let next = tokio::time::timeout(LATE, self.came.recv()).await;
            all.push(next.expect("a message").expect("a connection"));
        }
        all
    }

    fn acknowledge(&self, came: &[Came]) {
        for one in came {
            let text = r#"{"stream":"events","seq":1}"#;
            let (reply, length) = (&one.reply, text.len());
            let message = format!("MSG {reply} {INBOX} {length}\r\n{text}\r\n");
            self.say.send(message).unwrap();
        }
    }
}

/// The number that the client gives the subscription of its inbox, the only one.
const INBOX: &str = "0";

/// Reads what the client sends, until it is gone.
async fn listen(
    mut from: BufReader<impl tokio::io::AsyncRead + Unpin>,
    come: mpsc::UnboundedSender<Came>,
    answer: mpsc::UnboundedSender<String>,
) -> Option<()> {
    let mut line = String::new();
    loop {
        line.clear();
        if from.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["PING"] => answer.send("PONG\r\n".to_owned()).ok()?,
            ["SUB", inbox, id] => assert!(inbox.starts_with("_INBOX.") && id == INBOX, "{line}"),
            ["HPUB", _subject, reply, headers, length] => {
                let mut bytes = vec![0; length.parse::<usize>().unwrap() + 2];
                from.read_exact(&mut bytes).await.ok()?;
                let payload = &bytes[headers.parse::<usize>().unwrap()..];
                let event: Value = serde_json::from_slice(payload.trim_ascii_end()).unwrap();
                // `event-3`, and more behind it.
                let id = event["id"].as_str().unwrap();
                let number = id.split(['-', ':']).nth(1).unwrap().parse().unwrap();
                let reply = reply.to_owned();
                come.send(Came { number, reply }).ok()?;
            }
            _ => {}
        }
    }
}

fn numbers(came: &[Came]) -> Vec<usize> {
    came.iter().map(|one| one.number).collect()
}

#[tokio::test]
async fn a_batch_is_under_way_whole_before_anything_is_acknowledged() {
    let mut server = Server::start().await;
    let handler = server.handler();
    let keys: Vec<String> = (0..50).map(|n| format!("r{n}")).collect();
    let batch = keyed(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    let (answer, ()) = tokio::join!(handler.handle(&batch), async {
        let came = server.came(50).await;
        assert_eq!(numbers(&came), (0..50).collect::<Vec<_>>(), "in bus order");
        server.acknowledge(&came);
    });
    assert_eq!(answer, BatchAnswer::Each(vec![Answer::Handled; 50]));
}

#[tokio::test]
async fn an_event_goes_out_when_the_one_before_it_of_its_record_is_acknowledged() {
    let mut server = Server::start().await;
    let handler = server.handler();
    let batch = keyed(&["a", "b", "a", "b", "a"]);
    let (answer, ()) = tokio::join!(handler.handle(&batch), async {
        for expected in [vec![0, 1], vec![2, 3], vec![4]] {
            let came = server.came(expected.len()).await;
            assert_eq!(numbers(&came), expected);
            // Whatever else was on its way would be here now.
            tokio::task::yield_now().await;
            assert!(server.came.try_recv().is_err());
            server.acknowledge(&came);
        }
    });
    assert_eq!(answer, BatchAnswer::Each(vec![Answer::Handled; 5]));
}

#[tokio::test]
async fn behind_an_event_that_is_refused_nothing_of_its_record_goes_out() {
    let mut server = Server::start().await;
    let handler = server.handler();
    let batch = keyed(&["a", "b", "a"]);
    let (answer, ()) = tokio::join!(handler.handle(&batch), async {
        let came = server.came(2).await;
        let error = r#"{"error":{"code":400,"err_code":10054,"description":"message size exceeds maximum allowed"}}"#;
        let (reply, length) = (&came[0].reply, error.len());
        server
            .say
            .send(format!("MSG {reply} {INBOX} {length}\r\n{error}\r\n"))
            .unwrap();
        server.acknowledge(&came[1..]);
    });
    let BatchAnswer::Each(answers) = answer else {
        panic!("one answer for all");
    };
    assert!(
        matches!(
            &answers[..],
            [Answer::Reject { .. }, Answer::Handled, Answer::Retry(retry)] if !retry.counts
        ),
        "{answers:?}"
    );
    assert!(server.came.try_recv().is_err());
}
