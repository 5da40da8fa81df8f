//! Against a server that answers when it has seen all: what goes out without waiting for answers.

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::super::testing::{batch, config};
use super::*;

const LATE: Duration = Duration::from_secs(30);

/// The words of the next command; `None` where there are no more.
async fn command(from: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let mut line = String::new();
    from.read_line(&mut line).await.ok()?;
    let count: usize = line.strip_prefix('*')?.trim_end().parse().ok()?;
    let mut words = Vec::new();
    for _ in 0..count {
        line.clear();
        from.read_line(&mut line).await.ok()?;
        let length: usize = line.strip_prefix('$')?.trim_end().parse().ok()?;
        let mut word = vec![0; length + 2];
        from.read_exact(&mut word).await.ok()?;
        word.truncate(length);
        words.push(String::from_utf8(word).ok()?);
    }
    Some(words)
}

/// Answers what comes before the first entry at once, and the rest when the next `MULTI` has come; gives the entries'
/// numbers and what came behind them.
async fn serve(listener: TcpListener) -> (Vec<String>, Vec<String>) {
    let (client, _) = listener.accept().await.unwrap();
    let mut client = BufReader::new(client);
    let (mut entries, mut behind) = (Vec::new(), Vec::new());
    while behind.len() < 2 {
        let words = command(&mut client).await.expect("a command");
        match words[0].as_str() {
            "XADD" => entries.push(words[4].clone()),
            _ if entries.is_empty() => client.write_all(b"+OK\r\n").await.unwrap(),
            _ => behind.push(words[0].clone()),
        }
    }
    let queued = "+QUEUED\r\n".repeat(entries.len());
    let ids = "$3\r\n1-0\r\n".repeat(entries.len());
    let answer = format!("{queued}*{}\r\n{ids}+OK\r\n", entries.len());
    client.write_all(answer.as_bytes()).await.unwrap();
    (entries, behind)
}

#[tokio::test]
async fn a_batch_and_the_begin_of_the_next_go_out_before_anything_is_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let options = format!("url = 'redis://127.0.0.1:{port}'\ntimeout = '20s'");
    let handler = RedisHandler::from_config(&config("redis", &options)).unwrap();
    let batch = batch(&["{}"; 50]);
    let both = async { tokio::join!(handler.handle(&batch), serve(listener)) };
    let (answer, (entries, behind)) = tokio::time::timeout(LATE, both).await.unwrap();
    assert_eq!(answer, BatchAnswer::HANDLED);
    let expected = batch
        .events
        .iter()
        .map(|event| event.identity().to_string());
    assert_eq!(entries, expected.collect::<Vec<_>>(), "in bus order");
    assert_eq!(behind, ["EXEC", "MULTI"]);
}
