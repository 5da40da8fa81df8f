use super::*;
use crate::status::tests::{overview, status};

#[test]
fn a_subscription_is_one_line_and_so_is_a_worker() {
    let mut row = status();
    row.holder = Some("0".into());
    let text = text(&overview(&[row], 100, &[&["new"]]));
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| {
            line.split("  ")
                .map(str::trim)
                .filter(|cell| !cell.is_empty())
                .collect()
        })
        .collect();
    assert_eq!(
        lines[1],
        [
            "orders",
            "/event/Order__e",
            "live",
            "worker.1",
            "5 s",
            "00000000001204450000",
            "10 s",
            "16 min",
            "12",
            "11",
            "0",
            "0"
        ]
    );
    let none = ["-"; 9];
    assert_eq!(lines[2][..3], ["new", "/event/Order__e", "refused"]);
    assert_eq!(lines[2][3..], none);
    assert_eq!(lines[5], ["worker.0", "0", "60 s", "orders"]);
    assert_eq!(lines.len(), 6);
}
