//! What a person looks at: which subscription, in which order, how closely. Keys change it.

use std::cmp::Ordering;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::picture::Picture;
use crate::status::Subscription;

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// Nothing but to draw anew.
    Draw,
    /// To read now: what is to be shown is not there yet, or is old.
    Read,
    /// The end.
    End,
}

/// The order of subscriptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Name,
    /// What needs a person first.
    Need,
    /// The furthest behind first.
    Lag,
    /// The busiest first.
    Rate,
    /// The most parked first.
    Parked,
}

impl Order {
    /// In the footer.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Need => "need",
            Self::Lag => "lag",
            Self::Rate => "rate",
            Self::Parked => "parked",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Name => Self::Need,
            Self::Need => Self::Lag,
            Self::Lag => Self::Rate,
            Self::Rate => Self::Parked,
            Self::Parked => Self::Name,
        }
    }

    /// Of equals by name.
    fn compare(self, picture: &Picture, a: &Subscription, b: &Subscription) -> Ordering {
        let rate = |one: &Subscription| {
            let figures = picture.figures.get(&one.name);
            figures.and_then(|figures| figures.rate).unwrap_or(-1.0)
        };
        let ordered = match self {
            Self::Name => Ordering::Equal,
            Self::Need => b.needs_a_person.cmp(&a.needs_a_person),
            Self::Lag => b.lag.cmp(&a.lag),
            Self::Rate => rate(b).total_cmp(&rate(a)),
            Self::Parked => b.parked.cmp(&a.parked),
        };
        ordered.then_with(|| a.name.cmp(&b.name))
    }
}

/// What is on the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Page {
    List,
    Detail,
}

/// A person's view.
#[derive(Debug)]
pub(super) struct View {
    /// Colours may be used.
    pub(super) colour: bool,
    pub(super) page: Page,
    pub(super) order: Order,
    /// The help lies over the page.
    pub(super) help: bool,
    /// How many lines of the details are scrolled by; drawing keeps it within what there is.
    pub(super) scrolled: u16,
    paused: bool,
    /// The chosen subscription, by name, so that it stays chosen in any order.
    chosen: Option<String>,
}

impl View {
    pub(super) fn new(colour: bool) -> Self {
        Self {
            colour,
            page: Page::List,
            order: Order::Name,
            help: false,
            scrolled: 0,
            paused: false,
            chosen: None,
        }
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// The subscription that is looked at closely.
    pub(super) fn detail(&self) -> Option<&str> {
        match self.page {
            Page::List => None,
            Page::Detail => self.chosen.as_deref(),
        }
    }

    /// Subscriptions in their order.
    pub(super) fn ordered<'a>(&self, picture: &'a Picture) -> Vec<&'a Subscription> {
        let mut all: Vec<&Subscription> = picture.overview.subscriptions.iter().collect();
        all.sort_by(|a, b| self.order.compare(picture, a, b));
        all
    }

    /// Where the chosen one stands; the first where none is chosen, or it is gone.
    pub(super) fn chosen(&self, ordered: &[&Subscription]) -> usize {
        let chosen = self.chosen.as_deref();
        let place = ordered
            .iter()
            .position(|one| Some(one.name.as_str()) == chosen);
        place.unwrap_or(0)
    }

    /// Takes a key.
    pub(super) fn press(&mut self, key: KeyEvent, picture: Option<&Picture>) -> Then {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && key.code == KeyCode::Char('c') {
            return Then::End;
        }
        if self.help {
            // Any key closes it.
            self.help = false;
            return Then::Draw;
        }
        match key.code {
            KeyCode::Char('?' | 'h') => self.help = true,
            KeyCode::Char('p' | ' ') => {
                self.paused = !self.paused;
                if !self.paused {
                    return Then::Read;
                }
            }
            KeyCode::Char('r') => return Then::Read,
            code => return self.press_on_page(code, picture),
        }
        Then::Draw
    }

    fn press_on_page(&mut self, code: KeyCode, picture: Option<&Picture>) -> Then {
        match (self.page, code) {
            (Page::List, KeyCode::Char('q') | KeyCode::Esc) => return Then::End,
            (Page::List, KeyCode::Char('s')) => self.order = self.order.next(),
            (Page::List, KeyCode::Enter | KeyCode::Right) => {
                self.choose(picture, 0);
                if self.chosen.is_some() {
                    self.page = Page::Detail;
                    self.scrolled = 0;
                    return Then::Read;
                }
            }
            (Page::List, code) => self.choose(picture, steps(code)),
            (Page::Detail, KeyCode::Char('q') | KeyCode::Esc | KeyCode::Enter | KeyCode::Left) => {
                self.page = Page::List;
            }
            (Page::Detail, code) => {
                let steps = steps(code).clamp(-1000, 1000);
                let by = u16::try_from(steps.unsigned_abs()).unwrap_or(u16::MAX);
                self.scrolled = if steps < 0 {
                    self.scrolled.saturating_sub(by)
                } else {
                    self.scrolled.saturating_add(by)
                };
            }
        }
        Then::Draw
    }

    /// Chooses the one so many places below the chosen one.
    fn choose(&mut self, picture: Option<&Picture>, steps: isize) {
        let Some(picture) = picture else { return };
        let ordered = self.ordered(picture);
        let last = ordered.len().saturating_sub(1);
        let place = self.chosen(&ordered).saturating_add_signed(steps).min(last);
        self.chosen = ordered.get(place).map(|one| one.name.clone());
    }
}

/// How far a key moves, downwards.
fn steps(code: KeyCode) -> isize {
    match code {
        KeyCode::Down | KeyCode::Char('j') => 1,
        KeyCode::Up | KeyCode::Char('k') => -1,
        KeyCode::PageDown => 10,
        KeyCode::PageUp => -10,
        KeyCode::End | KeyCode::Char('G') => 1000,
        KeyCode::Home | KeyCode::Char('g') => -1000,
        _ => 0,
    }
}
