//! Ways into what is private and reads what others send, for the targets in `fuzz/`. There only with `--cfg fuzzing`.

use std::time::{Duration, SystemTime};

use super::Answer;

/// Answers of a broker, to begin with.
pub fn kafka_answers() -> Vec<Vec<u8>> {
    super::kafka::answers()
}

/// Reads a broker's answer as one to each question, in each version.
pub fn kafka_answer(bytes: &[u8]) {
    super::kafka::read_in_every_way(bytes);
}

/// Reads what a program of `exec` wrote, which comes in pieces of this many bytes.
pub fn exec_output(output: &[u8], step: usize) {
    let answers = super::exec::answers(output, step);
    assert_eq!(answers, super::exec::answers(output, output.len().max(1)));
    for answer in answers.into_iter().flatten() {
        let (reason, after) = match answer {
            Answer::Handled => continue,
            Answer::Retry(retry) => (retry.reason, retry.after),
            Answer::Reject { reason } => (reason, None),
        };
        assert!(reason.chars().count() <= 500 && !reason.contains(char::is_control));
        assert!(after.is_none_or(|after| after <= Duration::from_secs(3600)));
    }
}

/// Reads the value of `Retry-After`.
pub fn retry_after(value: &str) {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
    let pause = super::retry_after::parse(value, now);
    assert!(pause.is_none_or(|pause| pause <= Duration::from_secs(3600)));
}
