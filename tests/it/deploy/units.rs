//! The units of systemd.

use std::fs;
use std::process::Command;
use std::time::Duration;

use super::{command_of, text, words};
use crate::support::server::find;

const UNITS: [(&str, &str); 2] = [
    ("orgstream.service", "run"),
    ("orgstream-web.service", "web"),
];

/// Values of a key, in order.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    lines
        .filter(|(name, _)| *name == key)
        .map(|(_, value)| value)
        .collect()
}

#[test]
fn each_unit_runs_its_command_and_gives_it_time_to_stop() {
    for (file, command) in UNITS {
        let unit = text(&format!("deploy/{file}"));
        let [start] = values(&unit, "ExecStart")[..] else {
            panic!("one ExecStart in {file}");
        };
        assert_eq!(command_of(&words(&start.into())), command);
        // SQLite's default is a file in the current directory.
        assert_eq!(values(&unit, "WorkingDirectory"), ["/var/lib/orgstream"]);
        assert_eq!(values(&unit, "StateDirectory"), ["orgstream"]);
        // 78 and 2 are mistakes that a restart does not mend.
        assert_eq!(values(&unit, "RestartPreventExitStatus"), ["78 2"]);
        let [stop] = values(&unit, "TimeoutStopSec")[..] else {
            panic!("one TimeoutStopSec in {file}");
        };
        let stop = orgstream::config::parse_duration(stop).unwrap();
        assert!(command != "run" || stop > Duration::from_secs(25), "{file}");
    }
}

#[test]
fn systemd_takes_the_units_and_finds_little_exposed() {
    let Some(analyze) = find("systemd-analyze", "ORGSTREAM_REQUIRE_SYSTEMD") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    for (file, _) in UNITS {
        // It looks whether the program is there.
        let program = env!("CARGO_BIN_EXE_orgstream");
        let unit = text(&format!("deploy/{file}")).replace("/usr/local/bin/orgstream", program);
        let path = folder.path().join(file);
        fs::write(&path, unit).unwrap();
        let verified = Command::new(&analyze)
            .arg("verify")
            .arg(&path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&verified.stderr);
        assert!(
            verified.status.success() && said.is_empty(),
            "{file}: {said}"
        );
        let exposed = Command::new(&analyze)
            .args(["security", "--offline=true", "--threshold=20"])
            .arg(&path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&exposed.stdout);
        assert!(exposed.status.success(), "{file}: {said}");
    }
}
