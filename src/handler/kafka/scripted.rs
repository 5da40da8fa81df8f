//! Against a broker that does what a script says: what goes out again, and as what.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::super::testing::{batch, keyed};
use super::tests::{answers, handler};
use super::wire::{API_VERSIONS, INIT_PRODUCER_ID, METADATA, PRODUCE, Reader, Writer};
use super::*;

/// What the broker does with a batch. At the end of the script it takes each.
#[derive(Debug, Clone, Copy)]
enum Does {
    Answer(i16),
    /// Never answers.
    Hang,
    /// Ends the connection.
    Cut,
}

/// A batch as it came: the producer's ID and epoch, the first sequence number, how many records.
type Came = (i64, i16, i32, i32);

struct Broker {
    port: u16,
    script: Mutex<VecDeque<Does>>,
    came: Mutex<Vec<Came>>,
    /// Producer IDs given so far.
    given: Mutex<i64>,
    /// Who leads the partitions, it being 1 itself.
    leader: Mutex<i32>,
    partitions: i32,
    /// Batches that it waits for before it answers the first.
    waits_for: usize,
}

impl Broker {
    async fn start(script: &[Does]) -> Arc<Self> {
        Self::with(script, 1, 0).await
    }

    async fn with(script: &[Does], partitions: i32, waits_for: usize) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let broker = Arc::new(Self {
            port: listener.local_addr().unwrap().port(),
            script: Mutex::new(script.iter().copied().collect()),
            came: Mutex::default(),
            given: Mutex::default(),
            leader: Mutex::new(1),
            partitions,
            waits_for,
        });
        let listening = broker.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(listening.clone().serve(client));
            }
        });
        broker
    }

    /// Until the client is gone, or the script ends it.
    async fn serve(self: Arc<Self>, mut client: TcpStream) -> Option<()> {
        let mut answers = Vec::new();
        loop {
            let length = client.read_u32().await.ok()?;
            let mut request = vec![0; usize::try_from(length).unwrap()];
            client.read_exact(&mut request).await.ok()?;
            let mut reader = Reader(&request);
            let (api, version, number) =
                (reader.i16().ok()?, reader.i16().ok()?, reader.i32().ok()?);
            let _client = reader.text().ok()?;
            let answer = match api {
                18 => versions(),
                3 => self.metadata(),
                22 => self.producer_id(),
                0 => {
                    assert_eq!(version, PRODUCE.newest);
                    let (partition, came) = stamp_of(reader);
                    self.came.lock().unwrap().push(came);
                    let does = self.script.lock().unwrap().pop_front();
                    match does.unwrap_or(Does::Answer(0)) {
                        Does::Answer(code) => produced(partition, code),
                        Does::Hang => continue,
                        Does::Cut => return None,
                    }
                }
                other => panic!("asked for {other}"),
            };
            let length = u32::try_from(answer.len() + 4).unwrap();
            answers.extend(length.to_be_bytes());
            answers.extend(number.to_be_bytes());
            answers.extend(answer);
            if api != PRODUCE.key || self.came().len() >= self.waits_for {
                client.write_all(&answers).await.ok()?;
                answers.clear();
            }
        }
    }

    fn metadata(&self) -> Vec<u8> {
        let mut answer = Writer::default();
        answer.i32(0).i32(1).i32(1).text("127.0.0.1");
        answer.i32(i32::from(self.port)).no_text();
        answer.no_text().i32(1);
        answer.i32(1).i16(0).text("t").i8(0);
        let leader = *self.leader.lock().unwrap();
        answer.i32(self.partitions);
        for partition in 0..self.partitions {
            answer.i16(0).i32(partition).i32(leader).i32(0);
            answer.i32(0).i32(0).i32(0); // replicas
        }
        answer.i32(i32::MIN).i32(i32::MIN);
        answer.0
    }

    fn producer_id(&self) -> Vec<u8> {
        let mut given = self.given.lock().unwrap();
        *given += 1;
        let mut answer = Writer::default();
        answer.i32(0).i16(0).i64(*given).i16(0);
        answer.0
    }

    fn came(&self) -> Vec<Came> {
        self.came.lock().unwrap().clone()
    }

    fn handler(&self, timeout: &str) -> KafkaHandler {
        let port = self.port;
        handler(&format!(
            "brokers = '127.0.0.1:{port}'\ntopic = 't'\ntimeout = '{timeout}'"
        ))
    }
}

fn versions() -> Vec<u8> {
    let mut answer = Writer::default();
    answer.i16(0).i32(4);
    for api in [PRODUCE, METADATA, API_VERSIONS, INIT_PRODUCER_ID] {
        answer.i16(api.key).i16(api.oldest).i16(api.newest);
    }
    answer.0
}

fn produced(partition: i32, code: i16) -> Vec<u8> {
    let mut answer = Writer::default();
    answer.i32(1).text("t").i32(1).i32(partition).i16(code);
    answer.i64(0).i64(-1).i64(0).i32(0).no_text().i32(0);
    answer.0
}

/// The partition, and the batch for it.
fn stamp_of(mut request: Reader<'_>) -> (i32, Came) {
    assert_eq!(request.nullable_text(), Ok(None));
    assert_eq!(request.i16(), Ok(-1), "acknowledged by all");
    let _patience = request.i32();
    assert_eq!(
        (request.i32(), request.text(), request.i32()),
        (Ok(1), Ok("t"), Ok(1))
    );
    let partition = request.i32().unwrap();
    let mut batch = Reader(&request.bytes().unwrap()[43..]);
    let (id, epoch) = (batch.i64().unwrap(), batch.i16().unwrap());
    let (sequence, count) = (batch.i32().unwrap(), batch.i32().unwrap());
    (partition, (id, epoch, sequence, count))
}

const LATE: Duration = Duration::from_secs(60);

/// Hands so many events over and waits for the answers.
async fn hand_over(handler: &KafkaHandler, count: usize) -> Vec<Answer> {
    let batch = batch(&vec!["{}"; count]);
    let handled = tokio::time::timeout(LATE, handler.handle(&batch));
    answers(handled.await.unwrap())
}

fn all_handled(answers: &[Answer]) -> bool {
    answers.iter().all(|answer| *answer == Answer::Handled)
}

/// Nothing is answered before all of it has come.
#[tokio::test]
async fn a_call_is_under_way_at_all_its_partitions_at_once_with_one_batch_each() {
    let broker = Broker::with(&[], 3, 3).await;
    let handler = broker.handler("30s");
    let keys: Vec<String> = (0..50).map(|n| format!("r{n}")).collect();
    let batch = keyed(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    let handled = tokio::time::timeout(LATE, handler.handle(&batch));
    assert!(all_handled(&answers(handled.await.unwrap())));
    let came = broker.came();
    assert_eq!(came.len(), 3);
    let count: i32 = came.iter().map(|(.., count)| count).sum();
    assert_eq!(count, 50);
}

#[tokio::test]
async fn what_was_not_acknowledged_is_sent_again_as_it_was() {
    let broker = Broker::start(&[
        Does::Answer(0),
        Does::Cut,
        Does::Hang,
        Does::Answer(20),
        Does::Answer(46),
    ])
    .await;
    let handler = broker.handler("3s");
    assert!(all_handled(&hand_over(&handler, 2).await));
    assert!(
        all_handled(&hand_over(&handler, 3).await),
        "long there, it was said"
    );
    assert!(all_handled(&hand_over(&handler, 1).await));
    let again = (1, 0, 2, 3);
    assert_eq!(
        broker.came(),
        [(1, 0, 0, 2), again, again, again, again, (1, 0, 5, 1)]
    );
}

#[tokio::test]
async fn what_was_given_up_cannot_come_in_behind_what_is_sent_later() {
    let broker = Broker::start(&[Does::Hang; 3]).await;
    let handler = broker.handler("600ms");
    let given_up = hand_over(&handler, 2).await;
    assert!(matches!(given_up[0], Answer::Retry(_)), "{given_up:?}");
    let sent = broker.came().len();
    broker.script.lock().unwrap().clear();
    assert!(all_handled(&hand_over(&handler, 2).await));
    assert!(all_handled(&hand_over(&handler, 1).await));
    let came = broker.came();
    assert!(
        came[..sent].iter().all(|one| *one == (1, 0, 0, 2)),
        "{came:?}"
    );
    assert_eq!(
        came[sent..],
        [(1, 1, 0, 2), (1, 1, 2, 1)],
        "under a higher epoch"
    );
}

#[tokio::test]
async fn a_dropped_call_is_one_that_was_given_up() {
    let broker = Broker::start(&[Does::Hang]).await;
    let handler = broker.handler("30s");
    let batch = batch(&["{}"]);
    tokio::select! {
        _ = handler.handle(&batch) => panic!("nothing was answered"),
        () = async {
            while broker.came().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        } => {}
    }
    assert!(all_handled(&hand_over(&handler, 1).await));
    assert_eq!(broker.came(), [(1, 0, 0, 1), (1, 1, 0, 1)]);
}

#[tokio::test]
async fn a_number_that_was_used_before_is_no_acknowledgement_of_a_new_batch() {
    let broker = Broker::start(&[Does::Answer(46), Does::Answer(45), Does::Answer(47)]).await;
    let handler = broker.handler("30s");
    assert!(all_handled(&hand_over(&handler, 1).await));
    assert_eq!(
        broker.came(),
        [(1, 0, 0, 1), (2, 0, 0, 1), (3, 0, 0, 1), (4, 0, 0, 1)]
    );
}

#[tokio::test]
async fn a_number_that_was_used_before_under_two_identities_acknowledges_nothing() {
    let broker = Broker::start(&[Does::Answer(46), Does::Answer(46)]).await;
    let handler = broker.handler("30s");
    assert!(all_handled(&hand_over(&handler, 1).await));
    assert_eq!(
        broker.came(),
        [(1, 0, 0, 1), (2, 0, 0, 1), (3, 0, 0, 1)],
        "it is there under the third"
    );
}

#[tokio::test]
async fn a_size_that_was_refused_is_not_tried_again() {
    let too_large = Does::Answer(10);
    let broker = Broker::start(&[too_large, too_large]).await;
    let handler = broker.handler("30s");
    assert!(all_handled(&hand_over(&handler, 4).await));
    assert!(all_handled(&hand_over(&handler, 4).await));
    let counts: Vec<i32> = broker.came().iter().map(|came| came.3).collect();
    assert_eq!(counts, [4, 2, 1, 1, 2, 1, 1, 1, 1]);
}

#[tokio::test]
async fn a_partition_without_a_leader_does_not_keep_a_call_for_long() {
    let broker = Broker::start(&[]).await;
    *broker.leader.lock().unwrap() = -1;
    let handler = broker.handler("30s");
    let begun = Instant::now();
    let answers = hand_over(&handler, 1).await;
    assert!(begun.elapsed() < Duration::from_secs(10));
    let Answer::Retry(retry) = &answers[0] else {
        panic!("{answers:?}");
    };
    assert!(
        retry.reason.contains("has no leader just now"),
        "{}",
        retry.reason
    );
    assert_eq!(broker.came(), []);
}

#[tokio::test]
async fn a_batch_that_is_not_acknowledged_does_not_keep_calls_behind_it_for_long() {
    let broker = Broker::start(&[Does::Hang]).await;
    let handler = broker.handler("30s");
    let (sick, batch) = (batch(&["{}"]), batch(&["{}"]));
    let begun = Instant::now();
    tokio::select! {
        biased;
        _ = handler.handle(&sick) => panic!("nothing was answered"),
        answer = async {
            while broker.came().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            handler.handle(&batch).await
        } => assert!(matches!(answers(answer)[..], [Answer::Retry(_)])),
    }
    // A single request may take 10 s.
    assert!(begun.elapsed() < Duration::from_secs(9));
    assert_eq!(broker.came().len(), 1);
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_halved_until_the_one_is_found() {
    let too_large = Does::Answer(10);
    let script = [too_large, Does::Answer(0), too_large, too_large];
    let broker = Broker::start(&script).await;
    let answers = hand_over(&broker.handler("30s"), 4).await;
    assert_eq!(answers[..2], [Answer::Handled, Answer::Handled]);
    let Answer::Reject { reason } = &answers[2] else {
        panic!("{answers:?}");
    };
    assert!(reason.contains("max.message.bytes"), "{reason}");
    let behind = Retry::because(BEHIND).uncounted();
    assert_eq!(answers[3], Answer::Retry(behind), "never attempted");
    let counts: Vec<i32> = broker.came().iter().map(|came| came.3).collect();
    assert_eq!(counts, [4, 2, 2, 1], "nothing is sent behind it");
}
