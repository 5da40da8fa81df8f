//! Screens as a person sees them, drawn on a terminal of cells.

use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::*;
use crate::cli::top::picture::{Detail, Figures};
use crate::cli::top::view::Then;
use crate::status::tests::{overview, status};
use crate::store::{StateChange, SubscriptionStatus};

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// `orders` is well, `accounts` is blocked with something parked, `cases` waits for a worker.
fn picture() -> Picture {
    let named = |name: &str| {
        let mut one = status();
        one.key.name = name.to_owned();
        one
    };
    let orders = SubscriptionStatus {
        holder: Some("0".into()),
        ..named("orders")
    };
    let accounts = SubscriptionStatus {
        state: "blocked".into(),
        detail: Some("handler `fulfilment` is down".into()),
        parked: 17,
        caught_up_at: Some(at(0)),
        ..named("accounts")
    };
    let cases = SubscriptionStatus {
        held: false,
        caught_up_at: None,
        ..named("cases")
    };
    let overview = overview(&[accounts, cases, orders], 100, &[&[]]);
    let figures = |rate, lag| Figures {
        rate: Some(rate),
        lags: vec![Some(lag); 60],
    };
    Picture {
        overview,
        figures: [
            ("orders".to_owned(), figures(12.34, 1.0)),
            ("accounts".to_owned(), figures(0.0, 100.0)),
        ]
        .into(),
        detail: None,
    }
}

fn seen(picture: Picture) -> Seen {
    Seen {
        picture: Some(picture),
        trouble: None,
    }
}

/// The screen's lines, without spaces at their ends.
fn drawn(width: u16, height: u16, seen: &Seen, view: &mut View) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| draw(frame, seen, view, at(100)))
        .unwrap();
    let buffer = terminal.backend().buffer();
    let line = |row: u16| -> String {
        (0..width)
            .map(|column| buffer[(column, row)].symbol())
            .collect()
    };
    (0..height)
        .map(|row| line(row).trim_end().to_owned())
        .collect()
}

fn press(view: &mut View, code: KeyCode, picture: &Picture) -> Then {
    view.press(KeyEvent::new(code, KeyModifiers::NONE), Some(picture))
}

#[test]
fn eighty_columns_show_what_matters() {
    let seen = seen(picture());
    let lines = drawn(80, 24, &seen, &mut View::new(true));
    let text = lines.join("\n");
    println!("{text}");
    assert!(
        lines[0].starts_with("orgstream  3 subscriptions  1 worker"),
        "{text}"
    );
    let words =
        |line: &str| -> Vec<String> { line.split_whitespace().map(str::to_owned).collect() };
    assert_eq!(
        words(&lines[1]),
        [
            "NAME", "STATE", "LAG", "LAST", "HOUR", "EV/S", "PARKED", "HOLES", "KEPT"
        ]
    );
    assert_eq!(
        words(&lines[2]),
        [
            "accounts",
            "blocked",
            "100s",
            "██████████",
            "0",
            "17",
            "0",
            "16m"
        ]
    );
    assert!(lines[3].contains("waiting for a worker"), "{text}");
    assert_eq!(words(&lines[4])[..3], ["orders", "live", "5s"]);
    assert!(lines[4].contains("12"), "{text}");
    assert!(
        text.contains("worker.0  0, for 60 s, runs orders"),
        "{text}"
    );
    assert!(
        text.contains("accounts is blocked: handler `fulfilment` is down"),
        "{text}"
    );
    assert!(text.contains("`orgstream dead-letters list"), "{text}");
    assert!(lines[23].starts_with("q end"), "{text}");
}

#[test]
fn a_wide_screen_shows_more_and_a_narrow_one_less_and_a_tiny_one_asks_for_room() {
    let seen = seen(picture());
    let wide = drawn(160, 30, &seen, &mut View::new(true)).join("\n");
    for heading in ["TOPIC", "FLIGHT", "OWNER", "/event/Order__e", "worker.1"] {
        assert!(wide.contains(heading), "{heading} in\n{wide}");
    }
    let narrow = drawn(45, 12, &seen, &mut View::new(true)).join("\n");
    assert!(
        narrow.contains("STATE") && !narrow.contains("KEPT"),
        "{narrow}"
    );
    let tiny = drawn(30, 5, &seen, &mut View::new(true)).join("\n");
    assert!(tiny.contains("at least 40 x 8"), "{tiny}");
    // Whatever the size, it draws.
    for width in (1..=200).step_by(7) {
        for height in (1..=60).step_by(3) {
            let mut view = View::new(true);
            drawn(width, height, &seen, &mut view);
            press(&mut view, KeyCode::Enter, seen.picture.as_ref().unwrap());
            drawn(width, height, &seen, &mut view);
            view.help = true;
            drawn(width, height, &seen, &mut view);
        }
    }
}

#[test]
fn without_colour_nothing_is_coloured() {
    let seen = seen(picture());
    let coloured = |colour| {
        let mut terminal = Terminal::new(TestBackend::new(120, 30)).unwrap();
        let mut view = View::new(colour);
        terminal
            .draw(|frame| draw(frame, &seen, &mut view, at(100)))
            .unwrap();
        let cells = &terminal.backend().buffer().content;
        cells
            .iter()
            .any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
    };
    assert!(coloured(true) && !coloured(false));
}

#[test]
fn a_database_that_is_away_is_told_above_what_was_seen_last() {
    let mut seen = seen(picture());
    seen.take(Err("store unavailable: gone".to_owned()), at(88));
    seen.take(Err("store unavailable: still gone".to_owned()), at(99));
    let lines = drawn(80, 24, &seen, &mut View::new(true));
    assert_eq!(
        lines[1],
        "no answer from the store for 12 s: store unavailable: still gone"
    );
    assert!(lines[3].starts_with("accounts"), "{lines:?}");
    seen.take(Ok(picture()), at(100));
    assert_eq!(seen.trouble, None);

    let mut never = Seen::default();
    let lines = drawn(80, 24, &never, &mut View::new(true));
    assert_eq!(lines[1], "reading the store");
    never.take(Err("gone".to_owned()), at(100));
    let lines = drawn(80, 24, &never, &mut View::new(true));
    assert_eq!(lines[1], "no answer from the store for 0 s: gone");
}

#[test]
fn an_empty_store_says_how_it_is_filled_and_a_fleet_that_is_dead_is_told() {
    let empty = Picture {
        overview: overview(&[], 100, &[]),
        figures: Default::default(),
        detail: None,
    };
    let text = drawn(80, 24, &seen(empty), &mut View::new(true)).join("\n");
    assert!(text.contains("`orgstream run` makes them"), "{text}");
    let dead = Picture {
        overview: overview(&[status()], 100, &[]),
        figures: Default::default(),
        detail: None,
    };
    let text = drawn(80, 24, &seen(dead), &mut View::new(true)).join("\n");
    assert!(text.contains("no worker lives"), "{text}");
}

#[test]
fn the_chosen_one_stays_chosen_in_any_order() {
    let picture = picture();
    let mut view = View::new(true);
    let names = |view: &View| -> Vec<String> {
        view.ordered(&picture)
            .iter()
            .map(|one| one.name.clone())
            .collect()
    };
    assert_eq!(names(&view), ["accounts", "cases", "orders"]);
    for _ in 0..5 {
        press(&mut view, KeyCode::Down, &picture);
    }
    assert_eq!(view.chosen(&view.ordered(&picture)), 2);
    let mut orders = Vec::new();
    for _ in 0..4 {
        press(&mut view, KeyCode::Char('s'), &picture);
        let ordered = view.ordered(&picture);
        assert_eq!(ordered[view.chosen(&ordered)].name, "orders");
        orders.push((view.order.word(), names(&view).remove(0)));
    }
    assert_eq!(
        orders,
        [
            ("need", "accounts".to_owned()),
            ("lag", "accounts".to_owned()),
            ("rate", "orders".to_owned()),
            ("parked", "accounts".to_owned())
        ]
    );
    press(&mut view, KeyCode::Char('s'), &picture);
    press(&mut view, KeyCode::Home, &picture);
    assert_eq!(view.chosen(&view.ordered(&picture)), 0);
}

#[test]
fn details_show_the_last_changes_with_their_rpc_ids_and_scroll() {
    let mut picture = picture();
    let mut view = View::new(true);
    assert_eq!(press(&mut view, KeyCode::Enter, &picture), Then::Read);
    assert_eq!(view.detail(), Some("accounts"));
    let text = drawn(80, 24, &seen(picture.clone()), &mut view).join("\n");
    assert!(text.contains("reading the store"), "{text}");
    let change = |seconds| StateChange {
        subscription: "accounts".into(),
        at: at(seconds),
        state: "reconnecting".into(),
        detail: Some("lost the\nconnection".into()),
        rpc_id: Some(format!("1fc4-{seconds}")),
        replay_id: None,
        worker: Some("worker.1".into()),
        epoch: 3,
    };
    picture.detail = Some(Detail {
        name: "accounts".into(),
        changes: (0..40).rev().map(change).collect(),
        ..Detail::default()
    });
    let shown = seen(picture.clone());
    let text = drawn(80, 40, &shown, &mut view).join("\n");
    println!("{text}");
    for part in [
        "accounts  /event/Order__e",
        "blocked",
        "handler `fulfilment` is down",
        "61 s ago  reconnecting  worker.1  rpc_id 1fc4-39  lost the connection",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert!(!text.contains("1fc4-0 "), "{text}");
    press(&mut view, KeyCode::End, &picture);
    let text = drawn(80, 40, &shown, &mut view).join("\n");
    assert!(text.contains("1fc4-0 "), "{text}");
    assert!(
        view.scrolled < 60,
        "kept within what there is: {}",
        view.scrolled
    );
    assert_eq!(press(&mut view, KeyCode::Char('q'), &picture), Then::Draw);
    assert_eq!(view.detail(), None);
    assert_eq!(press(&mut view, KeyCode::Char('q'), &picture), Then::End);
}

#[test]
fn keys_pause_help_and_end() {
    let picture = picture();
    let mut view = View::new(false);
    press(&mut view, KeyCode::Char('p'), &picture);
    assert!(view.is_paused());
    let shown = seen(picture.clone());
    assert!(drawn(80, 24, &shown, &mut view)[23].starts_with("paused  q end"));
    assert_eq!(press(&mut view, KeyCode::Char('p'), &picture), Then::Read);
    press(&mut view, KeyCode::Char('?'), &picture);
    let text = drawn(80, 24, &shown, &mut view).join("\n");
    assert!(text.contains("details of the chosen one"), "{text}");
    // Any key closes the help, and does nothing else.
    assert_eq!(press(&mut view, KeyCode::Char('q'), &picture), Then::Draw);
    assert!(!view.help);
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(view.press(control_c, None), Then::End);
}
