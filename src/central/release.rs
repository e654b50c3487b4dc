//! Whether licences are really gone: what was seen so far → what to read next, or the end. Pure; `now` is an argument.
//!
//! Called by [`super::watch`], which makes the reads. Each round begins with a cheap sign, the account's number of used
//! licences: while it stands still, nothing has changed, and the devices are not read. The sign is of the whole account, so
//! it only ever saves a reading and never replaces one: it is passed over after [`MOST_SKIPPED`] rounds, and the end
//! is always told by the devices.
//!
//! Released means: no device in scope holds any of the services, and none does when all are read once more after
//! `settle`. A customer, or a device, that was seen released and holds again has come back.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    mem,
    time::Duration,
};

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::license::{CustomerId, Etag, Scope, Services};

/// The first pause between two rounds; each pause is twice the one before.
const FIRST_ROUND_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause: Central's work takes minutes for large customers.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// How often a round is skipped in a row because the sign stands still: others may assign as much as is released.
const MOST_SKIPPED: u32 = 2;
/// The longest that a watch may take, whatever its deadline.
pub const LONGEST_WATCH: Duration = Duration::from_hours(1);
/// So many customers are read one by one; for more, or an open scope, all devices of the account cost fewer calls.
pub(super) const FEW: usize = 10;
/// A version byte, a fingerprint of what is watched.
const TOKEN_HEAD: usize = 1 + FINGERPRINT;
const FINGERPRINT: usize = 8;
const TOKEN_VERSION: u8 = 1;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Wait until then.
    Wait(Instant),
    /// Read how many licences the account uses.
    Sign,
    /// Read the devices of this customer; none: of the whole account.
    Devices(Option<CustomerId>),
    /// Nothing more.
    End(End),
}

/// How a watch ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// No device held any, twice.
    Released,
    /// Licences that were seen released are held again.
    CameBack,
    /// The calls were used before that.
    CallsUsed,
    /// The time was over before that.
    TimeOver,
}

/// A device that holds any of the services.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeldDevice {
    /// Central's serial.
    pub serial: String,
    /// Whose it is; none: Central does not say.
    pub owner: Option<String>,
}

/// How far a watch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReleaseProgress {
    /// Customers that are watched.
    pub customers: usize,
    /// Customers that held none when they were last read.
    pub released: usize,
    /// Devices that held some when they were last read.
    pub held: usize,
}

/// No token, or one of another watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadToken;

/// Everything that a watch has seen.
#[derive(Debug)]
pub(super) struct WatchProgress {
    scope: Scope,
    customers: Vec<WatchedCustomer>,
    fingerprint: [u8; FINGERPRINT],
    settle: Duration,
    ends_at: Instant,
    phase: Phase,
    reads_account: bool,
    next_pause: Duration,
    sign: Sign,
    /// Devices that held some when they were last read, and whose they are.
    held: BTreeMap<String, Option<String>>,
    /// Devices that held some once, and none when they were last read.
    released: HashSet<String>,
    has_come_back: bool,
}

#[derive(Debug)]
struct WatchedCustomer {
    id: CustomerId,
    state: CustomerState,
    /// Whether it was ever seen to hold none.
    was_released: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CustomerState {
    Unread,
    Held,
    Released,
}

#[derive(Debug)]
enum Phase {
    /// A round begins.
    Begin,
    /// These are to be read; none: the whole account. `is_last`: it is the last look, at all of them.
    Reading { left: VecDeque<Option<CustomerId>>, is_last: bool },
    /// Until the next round.
    Pause { until: Instant, is_last: bool },
}

/// The account's number of used licences.
#[derive(Debug, Default)]
struct Sign {
    /// Central does not tell.
    is_missing: bool,
    /// When the devices were last read.
    at_reading: Option<u64>,
    /// How many rounds in a row were skipped.
    skipped: u32,
}

impl WatchProgress {
    /// Of these customers, those that the scope affects now.
    pub(super) fn new(
        scope: Scope,
        services: &Services,
        mut customers: Vec<CustomerId>,
        settle: Duration,
        (now, deadline): (Instant, Option<Instant>),
    ) -> Self {
        customers.sort();
        let fingerprint = fingerprint(&scope, services, &customers);
        let reads_account = scope.is_open() || customers.len() > FEW;
        let ends_at = now + LONGEST_WATCH;
        let watched = |id| WatchedCustomer { id, state: CustomerState::Unread, was_released: false };
        Self {
            scope,
            customers: customers.into_iter().map(watched).collect(),
            fingerprint,
            settle,
            ends_at: deadline.map_or(ends_at, |deadline| deadline.min(ends_at)),
            phase: Phase::Begin,
            reads_account,
            next_pause: FIRST_ROUND_PAUSE,
            sign: Sign::default(),
            held: BTreeMap::new(),
            released: HashSet::new(),
            has_come_back: false,
        }
    }

    /// Goes on where another watch ended.
    pub(super) fn resume(&mut self, token: &str) -> Result<(), BadToken> {
        let bytes = BASE64URL_NOPAD.decode(token.as_bytes()).map_err(|_| BadToken)?;
        let (head, bits) = bytes.split_at_checked(TOKEN_HEAD).ok_or(BadToken)?;
        if head[0] != TOKEN_VERSION || head[1..] != self.fingerprint || bits.len() != self.customers.len().div_ceil(8) {
            return Err(BadToken);
        }
        for (index, customer) in self.customers.iter_mut().enumerate() {
            if bits[index / 8] & (1 << (index % 8)) != 0 {
                (customer.state, customer.was_released) = (CustomerState::Released, true);
            }
        }
        Ok(())
    }

    /// What a later watch needs to go on: which customers were seen released.
    pub(super) fn token(&self) -> String {
        let mut bytes = vec![TOKEN_VERSION];
        bytes.extend(self.fingerprint);
        bytes.resize(TOKEN_HEAD + self.customers.len().div_ceil(8), 0);
        for (index, _) in self.customers.iter().enumerate().filter(|(_, customer)| customer.was_released) {
            bytes[TOKEN_HEAD + index / 8] |= 1 << (index % 8);
        }
        BASE64URL_NOPAD.encode(&bytes)
    }

    /// How far it is.
    pub(super) fn progress(&self) -> ReleaseProgress {
        let is_released = |customer: &&WatchedCustomer| customer.state == CustomerState::Released;
        ReleaseProgress {
            customers: self.customers.len(),
            released: self.customers.iter().filter(is_released).count(),
            held: self.held.len(),
        }
    }

    /// The first `most` devices that held some when they were last read.
    pub(super) fn held(&self, most: usize) -> Vec<HeldDevice> {
        let device =
            |(serial, owner): (&String, &Option<String>)| HeldDevice { serial: serial.clone(), owner: owner.clone() };
        self.held.iter().take(most).map(device).collect()
    }

    /// What to do now, with so many calls left.
    pub(super) fn next(&mut self, now: Instant, calls_left: u32) -> Step {
        if self.has_come_back {
            return Step::End(End::CameBack);
        }
        loop {
            match &self.phase {
                Phase::Reading { left, is_last } if left.is_empty() => {
                    let is_last = *is_last;
                    if let Some(end) = self.end_round(is_last, now) {
                        return Step::End(end);
                    }
                }
                _ if now >= self.ends_at => return Step::End(End::TimeOver),
                _ if calls_left == 0 => return Step::End(End::CallsUsed),
                // The end comes first: there is nothing to wait for.
                Phase::Pause { until, .. } if *until >= self.ends_at => return Step::End(End::TimeOver),
                Phase::Pause { until, .. } if now < *until => return Step::Wait(*until),
                Phase::Pause { is_last: true, .. } => self.begin_reading(true),
                Phase::Pause { is_last: false, .. } => self.phase = Phase::Begin,
                Phase::Begin if self.sign.is_missing => self.begin_reading(false),
                Phase::Begin => return Step::Sign,
                Phase::Reading { left, .. } => return Step::Devices(left.front().cloned().flatten()),
            }
        }
    }

    /// The account's used licences; none: Central does not tell.
    pub(super) fn saw_sign(&mut self, used: Option<u64>, now: Instant) {
        let stands_still = used.is_some() && used == self.sign.at_reading;
        if stands_still && self.sign.skipped < MOST_SKIPPED {
            self.sign.skipped += 1;
            return self.pause(now);
        }
        self.sign = Sign { is_missing: used.is_none(), at_reading: used, skipped: 0 };
        self.begin_reading(false);
    }

    /// The devices of this customer that hold some.
    pub(super) fn saw_customer(&mut self, id: &CustomerId, serials: Vec<String>) {
        let owner = Some(id.as_str().to_owned());
        let holding = serials.into_iter().map(|serial| (serial, owner.clone())).collect();
        self.take(|whose| whose.as_deref() == Some(id.as_str()), holding);
        self.settle_customers(|customer| customer == id);
    }

    /// The devices of the account that hold some.
    pub(super) fn saw_account(&mut self, devices: Vec<HeldDevice>) {
        let watched: HashSet<&str> = self.customers.iter().map(|customer| customer.id.as_str()).collect();
        let spared = match &self.scope {
            Scope::Exclude(customers) => Some(customers.ids()),
            Scope::Include(_) | Scope::All(_) => None,
        };
        // Owners that are no customers are the MSP: Central's texts agree on its devices for `exclude` alone.
        let is_watched = |device: &HeldDevice| match (&device.owner, spared) {
            (None, _) => true,
            (Some(owner), None) => watched.contains(owner.as_str()),
            (Some(owner), Some(spared)) => !spared.iter().any(|id| id.as_str() == owner),
        };
        let holding = devices.into_iter().filter(is_watched).map(|device| (device.serial, device.owner)).collect();
        self.take(|_| true, holding);
        self.settle_customers(|_| true);
    }

    /// What was to be read could not be: it is read again in the next round.
    pub(super) fn could_not_read(&mut self, now: Instant) {
        // The devices were not read at that sign.
        self.sign.at_reading = None;
        match self.phase {
            Phase::Reading { is_last: true, .. } => self.pause_for(self.next_pause, true, now),
            _ => self.pause(now),
        }
    }

    /// Takes what was read of these owners.
    fn take(&mut self, is_read: impl Fn(&Option<String>) -> bool, holding: BTreeMap<String, Option<String>>) {
        if let Phase::Reading { left, .. } = &mut self.phase {
            left.pop_front();
        }
        self.has_come_back |= holding.keys().any(|serial| self.released.contains(serial));
        let is_gone = |serial: &String, owner: &Option<String>| is_read(owner) && !holding.contains_key(serial);
        let (gone, stay): (BTreeMap<_, _>, BTreeMap<_, _>) =
            mem::take(&mut self.held).into_iter().partition(|(serial, owner)| is_gone(serial, owner));
        self.released.extend(gone.into_keys());
        self.held = stay;
        self.held.extend(holding);
    }

    fn settle_customers(&mut self, is_read: impl Fn(&CustomerId) -> bool) {
        let holders: HashSet<&str> = self.held.values().filter_map(Option::as_deref).collect();
        for customer in self.customers.iter_mut().filter(|customer| is_read(&customer.id)) {
            if holders.contains(customer.id.as_str()) {
                self.has_come_back |= customer.was_released;
                customer.state = CustomerState::Held;
            } else {
                (customer.state, customer.was_released) = (CustomerState::Released, true);
            }
        }
    }

    fn begin_reading(&mut self, is_last: bool) {
        let is_due = |customer: &&WatchedCustomer| is_last || customer.state != CustomerState::Released;
        let left = if self.reads_account {
            VecDeque::from([None])
        } else {
            self.customers.iter().filter(is_due).map(|customer| Some(customer.id.clone())).collect()
        };
        self.phase = Phase::Reading { left, is_last };
    }

    /// Everything of a round was read.
    fn end_round(&mut self, is_last: bool, now: Instant) -> Option<End> {
        let ReleaseProgress { customers, released, held } = self.progress();
        let is_released = held == 0 && released == customers;
        match (is_released, is_last) {
            (true, true) => return Some(End::Released),
            (true, false) => self.pause_for(self.settle, true, now),
            (false, _) => self.pause(now),
        }
        None
    }

    fn pause(&mut self, now: Instant) {
        self.pause_for(self.next_pause, false, now);
    }

    fn pause_for(&mut self, pause: Duration, is_last: bool, now: Instant) {
        self.phase = Phase::Pause { until: now + pause, is_last };
        self.next_pause = (self.next_pause * 2).min(LONGEST_PAUSE);
    }
}

/// The same scope, services and customers have the same one.
fn fingerprint(scope: &Scope, services: &Services, customers: &[CustomerId]) -> [u8; FINGERPRINT] {
    let etag = Etag::of(scope, customers.iter(), services);
    let digest = Sha256::digest(etag.as_str().as_bytes());
    let mut fingerprint = [0; FINGERPRINT];
    fingerprint.copy_from_slice(&digest[..FINGERPRINT]);
    fingerprint
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that cannot go on fails
mod tests {
    use super::*;
    use crate::license::{Customers, ServiceName};

    const SETTLE: Duration = Duration::from_secs(10);

    fn id(name: &str) -> CustomerId {
        CustomerId::new(name.to_owned()).unwrap()
    }

    fn ids(names: &[&str]) -> Vec<CustomerId> {
        names.iter().map(|name| id(name)).collect()
    }

    fn include(names: &[&str]) -> Scope {
        Scope::Include(Customers::new(ids(names)).unwrap())
    }

    fn services() -> Services {
        Services::new(vec![ServiceName::new("pa".to_owned()).unwrap()]).unwrap()
    }

    fn watch(scope: Scope, customers: &[&str], now: Instant, deadline: Option<Instant>) -> WatchProgress {
        WatchProgress::new(scope, &services(), ids(customers), SETTLE, (now, deadline))
    }

    fn held(serial: &str, owner: &str) -> HeldDevice {
        HeldDevice { serial: serial.to_owned(), owner: Some(owner.to_owned()) }
    }

    /// A Central that a watch looks at: what it holds after so many seconds.
    struct Story<'a> {
        scope: Scope,
        customers: &'a [&'a str],
        used: fn(u64) -> Option<u64>,
        holds: fn(u64) -> Vec<HeldDevice>,
        deadline: Option<u64>,
        max_calls: u32,
    }

    impl Default for Story<'_> {
        fn default() -> Self {
            let holds = |_| Vec::new();
            Self { scope: include(&["a"]), customers: &["a"], used: |_| None, holds, deadline: None, max_calls: 200 }
        }
    }

    /// How it ends, after how many seconds, and what was read when: `sign`, a customer, or `account`.
    fn play(story: &Story<'_>) -> (End, u64, Vec<(u64, String)>) {
        let start = Instant::now();
        let (mut now, mut left) = (start, story.max_calls);
        let deadline = story.deadline.map(|seconds| start + Duration::from_secs(seconds));
        let mut watch = watch(story.scope.clone(), story.customers, start, deadline);
        let mut reads = Vec::new();
        loop {
            let seconds = (now - start).as_secs();
            match watch.next(now, left) {
                Step::End(end) => return (end, seconds, reads),
                Step::Wait(until) => now = until,
                Step::Sign => {
                    reads.push((seconds, "sign".to_owned()));
                    left -= 1;
                    watch.saw_sign((story.used)(seconds), now);
                }
                Step::Devices(Some(id)) => {
                    reads.push((seconds, id.to_string()));
                    left -= 1;
                    let devices = (story.holds)(seconds).into_iter();
                    let own = devices.filter(|one| one.owner.as_deref() == Some(id.as_str()));
                    watch.saw_customer(&id, own.map(|one| one.serial).collect());
                }
                Step::Devices(None) => {
                    reads.push((seconds, "account".to_owned()));
                    left -= 1;
                    watch.saw_account((story.holds)(seconds));
                }
            }
        }
    }

    fn at(reads: &[(u64, &str)]) -> Vec<(u64, String)> {
        reads.iter().map(|(seconds, what)| (*seconds, (*what).to_owned())).collect()
    }

    #[test]
    fn what_is_gone_at_once_is_looked_at_twice() {
        let (end, seconds, reads) = play(&Story::default());
        assert_eq!((end, seconds), (End::Released, 10));
        assert_eq!(reads, at(&[(0, "sign"), (0, "a"), (10, "a")]));
    }

    #[test]
    fn only_customers_that_hold_some_are_read_again_and_all_at_the_end() {
        let story = Story {
            scope: include(&["a", "b"]),
            customers: &["a", "b"],
            holds: |seconds| if seconds < 5 { vec![held("1", "b")] } else { Vec::new() },
            ..Story::default()
        };
        let (end, seconds, reads) = play(&story);
        assert_eq!((end, seconds), (End::Released, 15));
        // Central has no sign here: it is asked for once.
        assert_eq!(reads, at(&[(0, "sign"), (0, "a"), (0, "b"), (5, "b"), (15, "a"), (15, "b")]));
    }

    #[test]
    fn a_sign_that_stands_still_saves_readings_but_not_for_ever() {
        let story =
            Story { used: |_| Some(7), holds: |_| vec![held("1", "a")], deadline: Some(200), ..Story::default() };
        let (end, _, reads) = play(&story);
        assert_eq!(end, End::TimeOver);
        let expected = [(0, "sign"), (0, "a"), (5, "sign"), (15, "sign"), (35, "sign"), (35, "a"), (75, "sign")];
        assert_eq!(reads[..7], at(&expected)[..]);
        // A sign that moves is followed by a reading in the same round.
        let story = Story { used: |seconds| Some(10_000 - seconds), ..story };
        let (_, _, reads) = play(&story);
        assert_eq!(reads[..4], at(&[(0, "sign"), (0, "a"), (5, "sign"), (5, "a")])[..]);
    }

    #[test]
    #[allow(clippy::type_complexity)] // a table
    fn licences_that_were_gone_and_are_held_again_came_back() {
        // One device of two is never released: its customer never is either.
        let one_of_two = |seconds| match seconds {
            5 => vec![held("2", "a")],
            _ => vec![held("1", "a"), held("2", "a")],
        };
        let table: [(fn(u64) -> Vec<HeldDevice>, u64); 3] = [
            (|seconds| if seconds < 10 { Vec::new() } else { vec![held("1", "a")] }, 10),
            (|seconds| if (5..15).contains(&seconds) { Vec::new() } else { vec![held("1", "a")] }, 15),
            (one_of_two, 15),
        ];
        for (row, (holds, ended)) in table.into_iter().enumerate() {
            let (end, seconds, _) = play(&Story { holds, ..Story::default() });
            assert_eq!((end, seconds), (End::CameBack, ended), "{row}");
        }
    }

    #[test]
    fn a_watch_ends_with_its_time_or_its_calls() {
        let stuck = || Story { holds: |_| vec![held("1", "a")], ..Story::default() };
        let (end, seconds, _) = play(&Story { deadline: Some(60), ..stuck() });
        assert_eq!((end, seconds), (End::TimeOver, 35), "the next round would be at 75 s");
        let (end, _, reads) = play(&Story { max_calls: 4, ..stuck() });
        assert_eq!((end, reads.len()), (End::CallsUsed, 4));
        let (end, seconds, _) = play(&stuck());
        assert_eq!(end, End::TimeOver);
        assert!((3_500..=3_600).contains(&seconds), "{seconds}");
        // Everything is gone, and there is no call for the second look.
        assert_eq!(play(&Story { max_calls: 2, ..Story::default() }).0, End::CallsUsed);
    }

    #[test]
    fn of_an_open_scope_the_account_is_read_and_the_msps_devices_count_for_exclude_alone() {
        let msp = |_| vec![held("9", "msp"), held("8", "spared")];
        let all = Story { scope: Scope::everyone(), customers: &["a"], holds: msp, ..Story::default() };
        let (end, _, reads) = play(&all);
        assert_eq!((end, reads), (End::Released, at(&[(0, "sign"), (0, "account"), (10, "account")])));
        let exclude = Scope::Exclude(Customers::new(ids(&["spared"])).unwrap());
        let (end, ..) = play(&Story { scope: exclude.clone(), deadline: Some(60), ..all });
        assert_eq!(end, End::TimeOver);
        let spared =
            Story { scope: exclude, customers: &["a"], holds: |_| vec![held("8", "spared")], ..Story::default() };
        assert_eq!(play(&spared).0, End::Released);
        // Nobody knows whose it is: nobody may say that everything is gone.
        let unowned = |_| vec![HeldDevice { serial: "7".to_owned(), owner: None }];
        let unclear = Story { scope: Scope::everyone(), holds: unowned, deadline: Some(60), ..Story::default() };
        assert_eq!(play(&unclear).0, End::TimeOver);
    }

    #[test]
    fn many_customers_are_read_with_the_account() {
        let names: Vec<String> = (0..=FEW).map(|number| format!("c{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (_, _, reads) = play(&Story { scope: include(&names), customers: &names, ..Story::default() });
        assert_eq!(reads[1].1, "account");
    }

    #[test]
    fn a_reading_that_failed_is_made_again_in_the_next_round() {
        let now = Instant::now();
        let mut watch = watch(include(&["a"]), &["a"], now, None);
        watch.saw_sign(Some(3), now);
        watch.could_not_read(now);
        assert_eq!(watch.next(now, 9), Step::Wait(now + FIRST_ROUND_PAUSE));
        assert_eq!(watch.next(now + FIRST_ROUND_PAUSE, 9), Step::Sign);
        watch.saw_sign(Some(3), now + FIRST_ROUND_PAUSE);
        assert_eq!(
            watch.next(now + FIRST_ROUND_PAUSE, 9),
            Step::Devices(Some(id("a"))),
            "nothing was read at that sign"
        );
        // The last look too.
        watch.saw_customer(&id("a"), Vec::new());
        let last = now + FIRST_ROUND_PAUSE + SETTLE;
        assert_eq!(watch.next(now + FIRST_ROUND_PAUSE, 9), Step::Wait(last));
        assert_eq!(watch.next(last, 9), Step::Devices(Some(id("a"))));
        watch.could_not_read(last);
        let Step::Wait(again) = watch.next(last, 9) else { panic!("a pause") };
        assert_eq!(watch.next(again, 9), Step::Devices(Some(id("a"))));
        watch.saw_customer(&id("a"), Vec::new());
        assert_eq!(watch.next(again, 0), Step::End(End::Released), "it is seen, also with the last call");
    }

    #[test]
    fn a_token_goes_on_and_belongs_to_one_watch() {
        let now = Instant::now();
        let mut first = watch(include(&["a", "b"]), &["a", "b"], now, None);
        first.saw_sign(None, now);
        first.saw_customer(&id("a"), Vec::new());
        first.saw_customer(&id("b"), vec!["1".to_owned()]);
        let token = first.token();

        let mut second = watch(include(&["b", "a"]), &["b", "a"], now, None);
        second.resume(&token).unwrap();
        assert_eq!(second.progress(), ReleaseProgress { customers: 2, released: 1, held: 0 });
        second.saw_sign(None, now);
        assert_eq!(second.next(now, 9), Step::Devices(Some(id("b"))), "a was seen");
        second.saw_customer(&id("b"), Vec::new());
        assert_eq!(second.next(now, 9), Step::Wait(now + SETTLE));
        assert_eq!(second.next(now + SETTLE, 9), Step::Devices(Some(id("a"))));
        second.saw_customer(&id("a"), vec!["2".to_owned()]);
        assert_eq!(second.next(now + SETTLE, 9), Step::End(End::CameBack), "released then, held now");

        let mut other = watch(include(&["a", "c"]), &["a", "c"], now, None);
        for bad in [token.as_str(), "", "AQ", "no token!", &token[1..]] {
            assert_eq!(other.resume(bad), Err(BadToken), "{bad}");
        }
        let many: Vec<CustomerId> = (0..10_000).map(|number| id(&format!("{number:032x}"))).collect();
        let large = WatchProgress::new(Scope::everyone(), &services(), many, SETTLE, (now, None));
        assert!(large.token().len() <= 4_096);
    }
}
