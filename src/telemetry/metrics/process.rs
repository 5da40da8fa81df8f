//! What the operating system says of this process: `/proc/self`, which Linux has (man page proc(5)). Elsewhere
//! these metrics are missing.

use std::fs;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{PROCESS_CPU, PROCESS_FDS, PROCESS_MEMORY, PROCESS_START};
use crate::telemetry::exposition::Exposition;

/// The process as it is now; families of what cannot be known are left out.
pub fn exposition() -> Exposition {
    let mut exposition = Exposition::default();
    let mut record = |metric, value: Option<f64>| {
        if let Some(value) = value {
            exposition.record(metric, &[], value);
        }
    };
    record(&PROCESS_MEMORY, resident_bytes());
    record(&PROCESS_CPU, cpu_seconds());
    record(&PROCESS_START, started_at());
    record(&PROCESS_FDS, open_files());
    exposition
}

/// Memory of this process that is in RAM, in bytes.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
pub fn resident_bytes() -> Option<f64> {
    // Whole pages, which are larger than 4 KiB on some machines.
    let pages = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split_whitespace().nth(1)?.parse().ok()?;
    Some((pages * rustix::param::page_size() as u64) as f64)
}

/// Time that this process had a processor.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn cpu_seconds() -> Option<f64> {
    let stat = Stat::read()?;
    let ticks = stat.number(UTIME)? + stat.number(STIME)?;
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Seconds since 1970. Reckoned once: from two clocks, of which one is exact to a hundredth, it would come out a little
/// different each time, and look like a restart.
fn started_at() -> Option<f64> {
    static STARTED_AT: OnceLock<Option<f64>> = OnceLock::new();
    *STARTED_AT.get_or_init(reckon_start)
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn reckon_start() -> Option<f64> {
    let after_boot = Stat::read()?.number(START)? as f64;
    let up = fs::read_to_string("/proc/uptime").ok()?;
    let up: f64 = up.split_whitespace().next()?.parse().ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let age = up - after_boot / rustix::param::clock_ticks_per_second() as f64;
    Some(now.as_secs_f64() - age)
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn open_files() -> Option<f64> {
    // The one that this is read by is not counted.
    let count = fs::read_dir("/proc/self/fd").ok()?.count();
    Some(count.saturating_sub(1) as f64)
}

/// Fields of `/proc/self/stat` as the man page numbers them.
const UTIME: usize = 14;
const STIME: usize = 15;
const START: usize = 22;

struct Stat(String);

impl Stat {
    fn read() -> Option<Self> {
        fs::read_to_string("/proc/self/stat").ok().map(Self)
    }

    fn number(&self, field: usize) -> Option<u64> {
        // The second field is the program's name, which may hold blanks and brackets: count from its end.
        let (_, rest) = self.0.rsplit_once(')')?;
        rest.split_whitespace().nth(field - 3)?.parse().ok()
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_a_name_with_blanks_and_brackets() {
        let fields: Vec<String> = (3..=22).map(|field| field.to_string()).collect();
        let stat = Stat(format!("7 (a ) (b) {}", fields.join(" ")));
        assert_eq!(stat.number(UTIME), Some(14));
        assert_eq!(stat.number(START), Some(22));
        assert_eq!(Stat("7 (short".to_owned()).number(UTIME), None);
    }

    #[test]
    fn this_process_has_memory_time_files_and_a_beginning() {
        let text = exposition();
        let value = |metric: &crate::telemetry::metrics::Metric| {
            text.family(metric.name).unwrap().samples[0].value
        };
        assert!(value(&PROCESS_MEMORY) > 1e6 && value(&PROCESS_MEMORY) < 1e12);
        assert!(value(&PROCESS_FDS) >= 3.0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let age = now.as_secs_f64() - value(&PROCESS_START);
        assert!((-1.0..3600.0).contains(&age), "{age}");
        let before = value(&PROCESS_CPU);
        let began = std::time::Instant::now();
        let mut rounds = 0_u64;
        while cpu_seconds().unwrap() < before + 0.02 {
            rounds += 1;
            assert!(began.elapsed().as_secs() < 20, "{rounds}");
        }
        // Some hundredths of a second later it was started at the same time.
        let again = exposition();
        let again = again.family(PROCESS_START.name).unwrap().samples[0].value;
        assert_eq!(value(&PROCESS_START).to_bits(), again.to_bits());
    }
}
