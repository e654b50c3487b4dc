//! Token pairs, codes and logins: rows as Kong's oauth2 plugin keeps them (K). Pure: `now` is an argument.

use std::time::Duration;

use jiff::Timestamp;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{clock, settings::Settings};

/// A login is refused if this many were made within [`LOGIN_WINDOW`] (C, one field report).
const LOGINS: usize = 3;
const LOGIN_WINDOW: Duration = Duration::from_mins(30);
/// How long an authorization code may be used (K).
const CODE_LIFE: Duration = Duration::from_mins(5);
/// Central's tokens are this many alphanumerics.
const TOKEN_LENGTH: usize = 32;

/// Every row and every secret that was issued.
#[derive(Debug)]
pub(crate) struct Tokens {
    rows: Vec<Row>,
    codes: Vec<(String, Timestamp)>,
    sessions: Vec<Session>,
    logins: Vec<Timestamp>,
    generation: u64,
    random: StdRng,
    prefix: String,
}

/// One pair. The halves live separately only so that tests can kill one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// Counts the pairs of this stand-in from 1.
    pub(crate) generation: u64,
    pub(crate) access: String,
    pub(crate) refresh: String,
    access_dies_at: Timestamp,
    refresh_dies_at: Timestamp,
}

/// What a login gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) csrf: String,
    pub(crate) session: String,
}

impl Tokens {
    /// One pair, its refresh token given by the settings.
    pub(crate) fn new(settings: &Settings, now: Timestamp) -> Self {
        let random = match settings.random_seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => rand::make_rng(),
        };
        let mut tokens = Self {
            rows: Vec::new(),
            codes: Vec::new(),
            sessions: Vec::new(),
            logins: Vec::new(),
            generation: 0,
            random,
            prefix: settings.token_prefix.clone(),
        };
        tokens.issue(settings, now);
        if let Some(row) = tokens.rows.first_mut() {
            row.refresh.clone_from(&settings.refresh_token);
        }
        tokens
    }

    /// The pair whose access token this is, if it lives.
    pub(crate) fn by_access(&self, access: &str, now: Timestamp) -> Option<&Row> {
        self.rows.iter().find(|row| row.access == access && now < row.access_dies_at)
    }

    /// The pair whose refresh token this is, if it lives.
    pub(crate) fn by_refresh(&self, refresh: &str, now: Timestamp) -> Option<&Row> {
        self.rows.iter().find(|row| row.refresh == refresh && now < row.refresh_dies_at)
    }

    /// A new pair; then the old one dies, both halves.
    pub(crate) fn rotate(&mut self, old_generation: u64, settings: &Settings, now: Timestamp) -> Row {
        let new = self.issue(settings, now);
        let lingers_until = clock::later_by_ms(now, settings.old_access_token_lingers_ms);
        for row in self.rows.iter_mut().filter(|row| row.generation == old_generation) {
            row.refresh_dies_at = row.refresh_dies_at.min(now);
            row.access_dies_at = row.access_dies_at.min(lingers_until);
        }
        self.rows.retain(|row| now < row.access_dies_at || now < row.refresh_dies_at);
        new
    }

    /// A new pair beside the others.
    pub(crate) fn issue(&mut self, settings: &Settings, now: Timestamp) -> Row {
        self.generation += 1;
        let row = Row {
            generation: self.generation,
            access: self.secret(),
            refresh: self.secret(),
            access_dies_at: clock::later(now, Duration::from_secs(settings.access_token_life_s)),
            refresh_dies_at: clock::later(now, Duration::from_secs(settings.refresh_token_life_s)),
        };
        self.rows.push(row.clone());
        row
    }

    /// The newest pair whose refresh token lives.
    pub(crate) fn newest(&self, now: Timestamp) -> Option<&Row> {
        self.rows.iter().rfind(|row| now < row.refresh_dies_at)
    }

    /// How many refresh tokens live.
    pub(crate) fn live_chains(&self, now: Timestamp) -> usize {
        self.rows.iter().filter(|row| now < row.refresh_dies_at).count()
    }

    /// Every access token dies; the refresh tokens live on.
    pub(crate) fn kill_access(&mut self, now: Timestamp) {
        for row in &mut self.rows {
            row.access_dies_at = row.access_dies_at.min(now);
        }
    }

    /// Every pair dies.
    pub(crate) fn kill_all(&mut self) {
        self.rows.clear();
    }

    /// The pair with this access token dies; whether there was one.
    pub(crate) fn revoke(&mut self, access: &str) -> bool {
        let before = self.rows.len();
        self.rows.retain(|row| row.access != access);
        self.rows.len() < before
    }

    /// Counts a login, or says for how long none is allowed.
    pub(crate) fn throttle_login(&mut self, now: Timestamp) -> Result<(), Duration> {
        self.logins.retain(|login| now < clock::later(*login, LOGIN_WINDOW));
        match self.logins.first() {
            Some(first) if self.logins.len() >= LOGINS => {
                let wait = clock::later(*first, LOGIN_WINDOW).duration_since(now);
                Err(Duration::try_from(wait).unwrap_or_default())
            }
            _ => {
                self.logins.push(now);
                Ok(())
            }
        }
    }

    /// A session for the login flow.
    pub(crate) fn open_session(&mut self) -> Session {
        let session = Session { csrf: self.secret(), session: self.secret() };
        self.sessions.push(session.clone());
        session
    }

    /// Whether these two belong together.
    pub(crate) fn has_session(&self, session: &str, csrf: &str) -> bool {
        self.sessions.iter().any(|known| known.session == session && known.csrf == csrf)
    }

    /// An authorization code.
    pub(crate) fn issue_code(&mut self, now: Timestamp) -> String {
        let code = self.secret();
        self.codes.push((code.clone(), clock::later(now, CODE_LIFE)));
        code
    }

    /// Uses a code up; whether it was good.
    pub(crate) fn redeem_code(&mut self, code: &str, now: Timestamp) -> bool {
        match self.codes.iter().position(|(known, _)| known == code) {
            Some(position) => now < self.codes.remove(position).1,
            None => false,
        }
    }

    /// The prefix, then random alphanumerics: 32 in all, but never fewer than 16 random ones.
    pub(crate) fn secret(&mut self) -> String {
        const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
        let random = TOKEN_LENGTH.saturating_sub(self.prefix.len()).max(16);
        let mut secret = self.prefix.clone();
        secret.extend((0..random).map(|_| char::from(ALPHABET[self.random.random_range(0..ALPHABET.len())])));
        secret
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).expect("a small number")
    }

    #[test]
    fn a_refresh_kills_both_halves_of_the_old_pair() {
        let settings = Settings::default();
        let mut tokens = Tokens::new(&settings, at(0));
        let old = tokens.newest(at(0)).expect("the seed").clone();
        assert_eq!(old.refresh, settings.refresh_token);
        let new = tokens.rotate(old.generation, &settings, at(10));
        assert!(tokens.by_access(&old.access, at(10)).is_none());
        assert!(tokens.by_refresh(&old.refresh, at(10)).is_none());
        assert_eq!(tokens.by_access(&new.access, at(10)).map(|row| row.generation), Some(2));
        assert!(tokens.by_refresh(&new.refresh, at(10)).is_some());
    }

    #[test]
    fn a_replaced_access_token_may_linger() {
        let settings = Settings { old_access_token_lingers_ms: 5_000, ..Settings::default() };
        let mut tokens = Tokens::new(&settings, at(0));
        let old = tokens.newest(at(0)).expect("the seed").clone();
        tokens.rotate(old.generation, &settings, at(10));
        assert!(tokens.by_access(&old.access, at(14)).is_some());
        assert!(tokens.by_access(&old.access, at(15)).is_none());
        assert!(tokens.by_refresh(&old.refresh, at(10)).is_none());
    }

    #[test]
    fn lives_end_on_time() {
        let settings = Settings::default();
        let tokens = Tokens::new(&settings, at(0));
        let row = tokens.newest(at(0)).expect("the seed").clone();
        assert!(tokens.by_access(&row.access, at(7_199)).is_some());
        assert!(tokens.by_access(&row.access, at(7_200)).is_none());
        assert!(tokens.by_refresh(&row.refresh, at(15 * 86_400 - 1)).is_some());
        assert!(tokens.by_refresh(&row.refresh, at(15 * 86_400)).is_none());
    }

    #[test]
    fn the_fourth_login_waits_for_the_first_to_be_half_an_hour_old() {
        let mut tokens = Tokens::new(&Settings::default(), at(0));
        for second in [0, 1, 2] {
            assert_eq!(tokens.throttle_login(at(second)), Ok(()));
        }
        assert_eq!(tokens.throttle_login(at(60)), Err(Duration::from_mins(29)));
        assert_eq!(tokens.throttle_login(at(1_800)), Ok(()));
    }

    #[test]
    fn a_code_works_once_and_for_five_minutes() {
        let mut tokens = Tokens::new(&Settings::default(), at(0));
        let (first, second) = (tokens.issue_code(at(0)), tokens.issue_code(at(0)));
        assert!(tokens.redeem_code(&first, at(299)));
        assert!(!tokens.redeem_code(&first, at(299)));
        assert!(!tokens.redeem_code(&second, at(300)));
    }

    #[test]
    fn secrets_carry_the_prefix_and_repeat_with_the_seed() {
        let settings = Settings { token_prefix: "CANARY".into(), random_seed: Some(7), ..Settings::default() };
        let mut tokens = Tokens::new(&settings, at(0));
        let secret = tokens.secret();
        assert!(secret.starts_with("CANARY") && secret.len() == 32, "{secret}");
        assert_eq!(Tokens::new(&settings, at(0)).secret(), secret);
    }
}
