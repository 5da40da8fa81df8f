//! Access and refresh tokens that the org has issued. Pure.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

/// What became of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenState {
    /// Accepted.
    Live,
    /// Its session timed out: refused at new calls; streams that it opened live on.
    Expired,
    /// Taken back by a user or an administrator.
    Revoked,
    /// Never issued here.
    Unknown,
}

#[derive(Debug, Clone)]
struct AccessToken {
    /// The last call that it was accepted at, or its issue.
    used_at: SystemTime,
    state: TokenState,
    /// Ties together what came from one consent: a refresh token, its successors, their access tokens.
    family: u64,
    username: String,
}

#[derive(Debug, Clone)]
struct RefreshToken {
    family: u64,
    client_id: String,
    username: String,
    state: TokenState,
}

/// A refresh token was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RefreshRefused;

/// What a refresh gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refreshed {
    pub(super) access_token: String,
    pub(super) username: String,
    /// Where refresh tokens rotate.
    pub(super) refresh_token: Option<String>,
}

/// All tokens of the org.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    access: HashMap<String, AccessToken>,
    refresh: HashMap<String, RefreshToken>,
    families: u64,
}

impl Tokens {
    /// A family of its own, for a sign-in without a refresh token.
    pub(super) fn new_family(&mut self) -> u64 {
        self.families += 1;
        self.families
    }

    /// Keeps a token as live.
    pub(super) fn admit(&mut self, token: &str, username: &str, family: u64, now: SystemTime) {
        self.access.insert(
            token.to_owned(),
            AccessToken {
                used_at: now,
                state: TokenState::Live,
                family,
                username: username.to_owned(),
            },
        );
    }

    /// Keeps a refresh token as live, in a family of its own.
    pub(super) fn admit_refresh(&mut self, token: &str, client_id: &str, username: &str) {
        let family = self.new_family();
        self.refresh.insert(
            token.to_owned(),
            RefreshToken {
                family,
                client_id: client_id.to_owned(),
                username: username.to_owned(),
                state: TokenState::Live,
            },
        );
    }

    /// How an access token stands as a call arrives with it. Being accepted extends its life, which is
    /// a time without use (facts 8.4).
    pub(super) fn take(
        &mut self,
        token: &str,
        lifetime: Option<Duration>,
        now: SystemTime,
    ) -> TokenState {
        let state = self.state(token, lifetime, now);
        if state == TokenState::Live
            && let Some(access) = self.access.get_mut(token)
        {
            access.used_at = access.used_at.max(now);
        }
        state
    }

    /// How an access token stands.
    pub(super) fn state(
        &self,
        token: &str,
        lifetime: Option<Duration>,
        now: SystemTime,
    ) -> TokenState {
        let Some(access) = self.access.get(token) else {
            return TokenState::Unknown;
        };
        let unused = now.duration_since(access.used_at).unwrap_or_default();
        if access.state == TokenState::Live && lifetime.is_some_and(|lifetime| unused > lifetime) {
            return TokenState::Expired;
        }
        access.state
    }

    /// The user a live token belongs to.
    pub(super) fn username(&self, token: &str) -> Option<&str> {
        self.access
            .get(token)
            .map(|access| access.username.as_str())
    }

    /// Lets every live access token expire.
    pub(super) fn expire_all(&mut self) {
        self.retire_all(TokenState::Expired);
    }

    /// Revokes every access token.
    pub(super) fn revoke_all(&mut self) {
        self.retire_all(TokenState::Revoked);
    }

    fn retire_all(&mut self, state: TokenState) {
        for access in self.access.values_mut() {
            if access.state == TokenState::Live {
                access.state = state;
            }
        }
    }

    /// Revokes an access token, or a refresh token with all that came from it; true where it was known.
    pub(super) fn revoke(&mut self, token: &str) -> bool {
        if let Some(access) = self.access.get_mut(token) {
            access.state = TokenState::Revoked;
            return true;
        }
        match self.refresh.get(token).map(|refresh| refresh.family) {
            Some(family) => {
                self.revoke_family(family);
                true
            }
            None => false,
        }
    }

    fn revoke_family(&mut self, family: u64) {
        for access in self.access.values_mut() {
            if access.family == family {
                access.state = TokenState::Revoked;
            }
        }
        for refresh in self.refresh.values_mut() {
            if refresh.family == family {
                refresh.state = TokenState::Revoked;
            }
        }
    }

    /// Uses a refresh token. Where tokens rotate the used one dies, and using a dead one again revokes
    /// what took its place (facts 8.3). `fresh` makes the new tokens' texts.
    pub(super) fn refresh(
        &mut self,
        token: &str,
        client_id: &str,
        rotate: bool,
        now: SystemTime,
        mut fresh: impl FnMut() -> String,
    ) -> Result<Refreshed, RefreshRefused> {
        let known = self.refresh.get(token).cloned().ok_or(RefreshRefused)?;
        if known.client_id != client_id || known.state == TokenState::Revoked {
            return Err(RefreshRefused);
        }
        if known.state != TokenState::Live {
            self.revoke_family(known.family);
            return Err(RefreshRefused);
        }
        let access_token = fresh();
        self.admit(&access_token, &known.username, known.family, now);
        let refresh_token = rotate.then(|| {
            if let Some(used) = self.refresh.get_mut(token) {
                used.state = TokenState::Expired;
            }
            let next = fresh();
            self.refresh.insert(next.clone(), known.clone());
            next
        });
        Ok(Refreshed {
            access_token,
            username: known.username,
            refresh_token,
        })
    }

    /// How many access tokens are not expired or revoked by hand.
    pub(super) fn live(&self) -> usize {
        self.access
            .values()
            .filter(|access| access.state == TokenState::Live)
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter() -> impl FnMut() -> String {
        let mut n = 0;
        move || {
            n += 1;
            format!("t{n}")
        }
    }

    #[test]
    fn a_token_lives_until_its_lifetime_expiry_or_revocation() {
        let now = SystemTime::now();
        let mut tokens = Tokens::default();
        let family = tokens.new_family();
        tokens.admit("a", "u", family, now);
        let hour = Some(Duration::from_secs(3600));
        assert_eq!(tokens.state("a", hour, now), TokenState::Live);
        let later = now + Duration::from_secs(4000);
        assert_eq!(tokens.state("a", hour, later), TokenState::Expired);
        assert_eq!(tokens.state("a", None, later), TokenState::Live);
        tokens.expire_all();
        assert_eq!(tokens.state("a", None, now), TokenState::Expired);
        assert!(tokens.revoke("a"));
        assert_eq!(tokens.state("a", None, now), TokenState::Revoked);
        assert_eq!(tokens.state("b", None, now), TokenState::Unknown);
    }

    #[test]
    fn only_use_extends_a_tokens_life() {
        let now = SystemTime::now();
        let minutes = |minutes: u64| now + Duration::from_secs(60 * minutes);
        let mut tokens = Tokens::default();
        tokens.admit("a", "u", 1, now);
        let hour = Some(Duration::from_secs(3600));
        assert_eq!(tokens.take("a", hour, minutes(50)), TokenState::Live);
        assert_eq!(tokens.state("a", hour, minutes(100)), TokenState::Live);
        // Looking at it is no use.
        assert_eq!(tokens.state("a", hour, minutes(111)), TokenState::Expired);
        assert_eq!(tokens.take("a", hour, minutes(111)), TokenState::Expired);
        assert_eq!(tokens.take("a", hour, minutes(112)), TokenState::Expired);
    }

    #[test]
    fn reuse_of_a_rotated_refresh_token_revokes_its_successors() {
        let now = SystemTime::now();
        let mut tokens = Tokens::default();
        tokens.admit_refresh("r", "app", "u");
        let mut fresh = counter();
        let first = tokens.refresh("r", "app", true, now, &mut fresh).unwrap();
        let next = first.refresh_token.unwrap();
        assert_eq!(
            tokens.state(&first.access_token, None, now),
            TokenState::Live
        );
        assert!(tokens.refresh("r", "app", true, now, &mut fresh).is_err());
        assert_eq!(
            tokens.state(&first.access_token, None, now),
            TokenState::Revoked
        );
        assert!(tokens.refresh(&next, "app", true, now, &mut fresh).is_err());
    }

    #[test]
    fn without_rotation_a_refresh_token_serves_again_and_only_its_own_app() {
        let now = SystemTime::now();
        let mut tokens = Tokens::default();
        tokens.admit_refresh("r", "app", "u");
        let mut fresh = counter();
        for _ in 0..3 {
            let got = tokens.refresh("r", "app", false, now, &mut fresh).unwrap();
            assert_eq!(got.refresh_token, None);
        }
        assert!(tokens.refresh("r", "other", false, now, fresh).is_err());
    }
}
