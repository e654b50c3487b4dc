//! The operations of the last 24 hours in memory, and the decisions about them. Pure, with `now` as an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use uuid::Uuid;

use super::record::{OperationEnd, OperationRecord, Owner, RequestDigest};
use crate::audit::record::{AuditRecord, Event};

/// How long an operation is remembered from the moment of sending, in milliseconds.
pub(crate) const REMEMBERED_MS: u64 = 24 * 60 * 60 * 1_000;

/// How much is remembered at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Operations. 100,000 a day have their place, and take some 60 MB.
    pub(super) operations: usize,
    /// Bytes of customers' ids, altogether.
    pub(super) name_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { operations: 150_000, name_bytes: 32 * 1024 * 1024 }
    }
}

/// The operations.
#[derive(Debug, Default)]
pub(super) struct Index {
    limits: Limits,
    /// By id: ids of version 7 sort by time.
    operations: BTreeMap<Uuid, OperationRecord>,
    /// The last operation of each id that a caller has chosen.
    requests: HashMap<(Owner, Uuid), Uuid>,
    owners: BTreeSet<(Owner, Uuid)>,
    /// Operations that have ended and whose ids are nobody's choice, or free: forgetting them lets nothing run twice.
    expendable: BTreeSet<Uuid>,
    name_bytes: usize,
    /// Operations before this one are cut.
    cut_up_to: Uuid,
}

/// What a request finds under its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing, or an operation that did nothing: it may run, and its place is taken.
    Taken,
    /// The same request runs.
    Running(Uuid),
    /// The same request has ended, and may have done something.
    Done(Uuid),
    /// Another request had the id.
    Reused,
    /// There is no place for one more.
    Full,
}

impl Index {
    #[cfg(test)]
    pub(super) fn with_limits(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Takes the id of a request for this operation, if it may run.
    pub(super) fn claim(&mut self, record: OperationRecord, now: u64) -> Found {
        self.forget(now);
        if let Some(found) = self.held(record.owner, record.request_id, record.digest) {
            return found;
        }
        if self.operations.len() >= self.limits.operations {
            let Some(oldest) = self.expendable.first().copied() else { return Found::Full };
            self.remove(oldest);
        }
        self.insert(record);
        Found::Taken
    }

    /// What stands in the way of a request of this id.
    fn held(&self, owner: Owner, request_id: Uuid, digest: Option<RequestDigest>) -> Option<Found> {
        let record = self.find_request(owner, request_id).filter(|record| !record.is_free())?;
        Some(match (record.digest, &record.end) {
            (None, _) => Found::Reused,
            (known, _) if known != digest => Found::Reused,
            (_, None) => Found::Running(record.operation_id),
            (_, Some(_)) => Found::Done(record.operation_id),
        })
    }

    /// It may be sent from now on.
    pub(super) fn sent(&mut self, operation_id: Uuid, now: u64) {
        if let Some(record) = self.operations.get_mut(&operation_id) {
            record.sent_at.get_or_insert(now);
        }
    }

    /// It is not sent after all: another operation holds its id.
    pub(super) fn unsent(&mut self, operation_id: Uuid) {
        if let Some(record) = self.operations.get_mut(&operation_id) {
            record.sent_at = None;
        }
    }

    /// Nothing runs any more: the process that ran it has ended.
    pub(super) fn end_open(&mut self, now: u64) {
        let open = self.operations.values().filter(|record| record.end.is_none()).map(|record| record.operation_id);
        for id in open.collect::<Vec<_>>() {
            self.end(id, OperationEnd::crashed(now), None);
        }
    }

    /// It ended. One that was never about to be sent is not remembered.
    pub(super) fn end(&mut self, operation_id: Uuid, end: OperationEnd, resolved: Option<u32>) {
        let Some(record) = self.operations.get_mut(&operation_id) else { return };
        let before = record.name_bytes();
        record.end = Some(Box::new(end));
        record.resolved = resolved.or(record.resolved);
        if operation_id < self.cut_up_to {
            record.cut();
        }
        self.name_bytes = self.name_bytes + record.name_bytes() - before;
        let is_forgotten = record.sent_at.is_none() && record.is_free();
        if record.is_free() || record.has_own_id() {
            self.expendable.insert(operation_id);
        }
        if is_forgotten {
            self.remove(operation_id);
        }
        self.cut_down();
    }

    /// Nothing was sent for it, and nobody is to be told of it.
    pub(super) fn remove(&mut self, operation_id: Uuid) {
        let Some(record) = self.operations.remove(&operation_id) else { return };
        self.name_bytes -= record.name_bytes();
        self.owners.remove(&(record.owner, operation_id));
        self.expendable.remove(&operation_id);
        let key = (record.owner, record.request_id);
        if self.requests.get(&key) == Some(&operation_id) {
            self.requests.remove(&key);
        }
    }

    /// This caller's operation of this id.
    pub(super) fn find(&self, owner: Owner, operation_id: Uuid) -> Option<&OperationRecord> {
        self.operations.get(&operation_id).filter(|record| record.owner == owner)
    }

    /// This caller's last operation with this id of a request.
    pub(super) fn find_request(&self, owner: Owner, request_id: Uuid) -> Option<&OperationRecord> {
        let operation_id = self.requests.get(&(owner, request_id)).copied();
        let own = || self.find(owner, request_id).filter(|record| record.has_own_id());
        operation_id.and_then(|id| self.find(owner, id)).or_else(own)
    }

    /// The operation of this id, whoever asks.
    pub(super) fn get(&self, operation_id: Uuid) -> Option<&OperationRecord> {
        self.operations.get(&operation_id)
    }

    /// This caller's operations before this one, newest first.
    pub(super) fn list(&self, owner: Owner, before: Option<Uuid>, most: usize) -> Vec<OperationRecord> {
        let range = (owner, Uuid::nil())..(owner, before.unwrap_or(Uuid::max()));
        let ids = self.owners.range(range).rev().take(most);
        ids.filter_map(|(_, id)| self.operations.get(id)).cloned().collect()
    }

    /// Drops what ended its time. What was accepted earlier goes first, so one may stay as long as a request may wait.
    pub(super) fn forget(&mut self, now: u64) {
        while let Some((id, record)) = self.operations.first_key_value() {
            let since = record.sent_at.unwrap_or_else(|| record.created_at());
            if record.end.is_none() || since.saturating_add(REMEMBERED_MS) > now {
                return;
            }
            let id = *id;
            self.remove(id);
        }
    }

    /// Takes in a record of the audit trail: those of a trail come in their order.
    pub(super) fn replay(&mut self, record: &AuditRecord) {
        let at = u64::try_from(record.at.as_millisecond()).unwrap_or_default();
        match &record.event {
            Event::Opened(_) => {}
            Event::Intent(intent) => {
                if !self.operations.contains_key(&intent.operation_id) {
                    while self.operations.len() >= self.limits.operations {
                        // Where nothing is expendable, the oldest goes all the same: there is no more memory for it.
                        let oldest = self.expendable.first().or_else(|| self.operations.keys().next()).copied();
                        let Some(oldest) = oldest else { break };
                        self.remove(oldest);
                    }
                    self.insert(OperationRecord::of_intent(intent, at));
                }
                let resolved = intent.resolved_customers.and_then(|count| u32::try_from(count).ok());
                if let (Some(record), Some(_)) = (self.operations.get_mut(&intent.operation_id), resolved) {
                    record.resolved = resolved;
                }
            }
            Event::Outcome(ended) => {
                self.end(ended.operation_id, OperationEnd::of_ended(ended, at), None);
            }
        }
    }

    /// Operations that a crash cut short.
    pub(super) fn crashed(&self) -> impl Iterator<Item = &OperationRecord> {
        self.operations.values().filter(|record| record.is_crashed())
    }

    /// Those that ended last, by their own word.
    pub(super) fn last_ended(&self, most: usize) -> Vec<&OperationRecord> {
        let is_told = |record: &&OperationRecord| record.end.is_some() && !record.is_crashed();
        let mut ended: Vec<_> = self.operations.values().filter(is_told).collect();
        ended.sort_unstable_by_key(|record| std::cmp::Reverse(record.end.as_ref().map(|end| end.at)));
        ended.truncate(most);
        ended
    }

    fn insert(&mut self, record: OperationRecord) {
        let id = record.operation_id;
        self.name_bytes += record.name_bytes();
        self.owners.insert((record.owner, id));
        if !record.has_own_id() {
            self.requests.insert((record.owner, record.request_id), id);
        }
        self.operations.insert(id, record);
        self.cut_down();
    }

    /// Drops the ids of customers of the oldest operations while they take too much.
    fn cut_down(&mut self) {
        while self.name_bytes > self.limits.name_bytes {
            let Some((id, record)) = self.operations.range_mut(self.cut_up_to..).next() else { return };
            self.name_bytes -= record.name_bytes();
            record.cut();
            self.cut_up_to = Uuid::from_u128(id.as_u128().saturating_add(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::size_of;

    use super::{
        super::record::{Names, RecordedOutcome},
        *,
    };
    use crate::audit::record::RecordedScope;

    fn owner(name: &str) -> Owner {
        Owner::new("token", name)
    }

    /// An id of an operation that was accepted at this moment.
    fn id(ms: u64, n: u16) -> Uuid {
        uuid::Builder::from_unix_timestamp_millis(
            ms,
            &[[0; 8], u64::from(n).to_be_bytes()].concat()[6..].try_into().unwrap(),
        )
        .into_uuid()
    }

    fn digest(text: &str) -> RequestDigest {
        RequestDigest::parse(&text.repeat(32)).unwrap()
    }

    fn record(owner: Owner, operation_id: Uuid, request_id: Uuid) -> OperationRecord {
        OperationRecord {
            operation_id,
            request_id,
            owner,
            digest: Some(digest("a")),
            scope: RecordedScope::IncludeCustomers,
            customers: Names::new(&vec!["c".repeat(32); 10]),
            customer_count: 10,
            is_cut: false,
            services: Names::new(&["advanced_ap"]),
            reason: "".into(),
            sent_at: None,
            resolved: None,
            end: None,
            lease_ends: None,
        }
    }

    fn end(outcome: RecordedOutcome) -> OperationEnd {
        OperationEnd { outcome, failure: None, ..OperationEnd::crashed(1) }
    }

    #[test]
    fn what_a_repeat_finds() {
        use RecordedOutcome::{Applied, NotApplied, Partial, Unknown};
        // Whether it was about to be sent, and how it ended.
        let first = id(1_000, 1);
        let table = [
            ("runs", false, None, Found::Running(first)),
            ("is being sent", true, None, Found::Running(first)),
            ("was never sent", false, Some(NotApplied), Found::Taken),
            ("was refused by Central", true, Some(NotApplied), Found::Taken),
            ("was applied", true, Some(Applied), Found::Done(first)),
            ("was applied in part", true, Some(Partial), Found::Done(first)),
            ("is unknown", true, Some(Unknown), Found::Done(first)),
        ];
        for (name, is_sent, outcome, expected) in table {
            for request_id in [Uuid::from_u128(7), first] {
                let mut index = Index::default();
                assert_eq!(index.claim(record(owner("a"), first, request_id), 1_000), Found::Taken);
                if is_sent {
                    index.sent(first, 1_001);
                }
                if let Some(outcome) = outcome {
                    index.end(first, end(outcome), None);
                }
                let repeat = record(owner("a"), id(2_000, 2), request_id);
                assert_eq!(index.claim(repeat.clone(), 2_000), expected, "the first one {name}");
                // Another caller's id is another id.
                assert_eq!(index.claim(record(owner("b"), id(2_000, 3), request_id), 2_000), Found::Taken, "{name}");
                // Another request under the id of one that did something, or may do.
                let other = OperationRecord { digest: Some(digest("b")), operation_id: id(2_000, 4), ..repeat };
                let mut index_of_other = Index::default();
                index_of_other.claim(record(owner("a"), first, request_id), 1_000);
                index_of_other.sent(first, 1_001);
                if let Some(outcome) = outcome {
                    index_of_other.end(first, end(outcome), None);
                }
                let expected = if expected == Found::Taken { Found::Taken } else { Found::Reused };
                assert_eq!(index_of_other.claim(other, 2_000), expected, "{name}");
            }
        }
    }

    #[test]
    fn an_operation_is_remembered_for_a_day_from_the_moment_of_sending() {
        let (a, day) = (owner("a"), REMEMBERED_MS);
        let mut index = Index::default();
        let first = id(1_000, 1);
        index.claim(record(a, first, Uuid::from_u128(7)), 1_000);
        index.sent(first, 5_000);
        index.sent(first, 9_000); // a later call of it does not count anew
        index.end(first, end(RecordedOutcome::Applied), None);
        let repeat = record(a, id(2_000, 2), Uuid::from_u128(7));
        assert_eq!(index.claim(repeat.clone(), 5_000 + day - 1), Found::Done(first));
        // A clock that goes back forgets nothing.
        assert_eq!(index.claim(repeat.clone(), 0), Found::Done(first));
        assert_eq!(index.claim(repeat, 5_000 + day), Found::Taken);
        assert_eq!(index.find(a, first), None);
        // What still runs is not forgotten.
        index.forget(u64::MAX);
        assert_eq!(index.operations.len(), 1);
    }

    #[test]
    fn callers_see_their_own_newest_first_page_by_page() {
        let (a, b) = (owner("a"), owner("b"));
        let mut index = Index::default();
        for n in 0..10 {
            index.claim(record(if n % 2 == 0 { a } else { b }, id(1_000 + u64::from(n), n), Uuid::new_v4()), 2_000);
        }
        let first = index.list(a, None, 3);
        let ids = |page: &[OperationRecord]| page.iter().map(OperationRecord::created_at).collect::<Vec<_>>();
        assert_eq!(ids(&first), [1_008, 1_006, 1_004]);
        assert_eq!(ids(&index.list(a, Some(first[2].operation_id), 3)), [1_002, 1_000]);
        assert_eq!(index.find(a, id(1_001, 1)), None, "another caller's");
        assert!(index.find(b, id(1_001, 1)).is_some());
    }

    /// Counts, not seconds: how much is remembered, and how many steps a lookup takes by the kind of the maps.
    #[test]
    fn a_day_of_100_000_operations_has_its_place_and_more_days_take_no_more() {
        let a = owner("a");
        let mut index = Index::default();
        let mut most = (0, 0);
        for n in 0..300_000_u64 {
            let now = n * REMEMBERED_MS / 100_000;
            let operation_id = id(now, (n % 60_000) as u16);
            let request_id = if n % 2 == 0 { Uuid::from_u128(u128::from(n) + 1) } else { operation_id };
            assert_eq!(index.claim(record(a, operation_id, request_id), now), Found::Taken);
            index.sent(operation_id, now);
            index.end(operation_id, end(RecordedOutcome::Applied), None);
            most = (most.0.max(index.operations.len()), most.1.max(index.name_bytes));
        }
        assert_eq!(most.0, 100_000);
        assert!(most.1 <= Limits::default().name_bytes);
        assert_eq!(index.owners.len(), index.operations.len());
        assert!(index.requests.len() + index.expendable.len() <= index.operations.len() + 1);
        // What one takes beside its names.
        assert!(size_of::<OperationRecord>() + size_of::<OperationEnd>() <= 384, "{}", size_of::<OperationRecord>());
    }

    #[test]
    fn without_room_what_guards_nothing_goes_first_and_then_nothing_more_is_taken() {
        let a = owner("a");
        let mut index = Index::with_limits(Limits { operations: 3, name_bytes: usize::MAX });
        let own = |n: u16| id(1_000, n);
        // One that nobody can repeat by an id, one with an id that a caller chose, one that runs.
        index.claim(record(a, own(1), own(1)), 1_000);
        index.claim(record(a, own(2), Uuid::from_u128(7)), 1_000);
        index.claim(record(a, own(3), own(3)), 1_000);
        for n in [1, 2] {
            index.sent(own(n), 1_000);
            index.end(own(n), end(RecordedOutcome::Unknown), None);
        }
        assert_eq!(index.claim(record(a, own(4), Uuid::from_u128(8)), 1_000), Found::Taken);
        assert!(index.find(a, own(1)).is_none(), "it made room");
        assert_eq!(index.claim(record(a, own(5), Uuid::from_u128(9)), 1_000), Found::Full);
        assert_eq!(
            index.claim(record(a, own(6), Uuid::from_u128(7)), 1_000),
            Found::Done(own(2)),
            "found all the same"
        );
    }

    #[test]
    fn ids_of_customers_have_a_bound_of_their_own_and_the_oldest_go_first() {
        let a = owner("a");
        let mut index = Index::with_limits(Limits { operations: 100, name_bytes: 1_000 });
        for n in 0..10 {
            index.claim(record(a, id(1_000, n), id(1_000, n)), 1_000);
        }
        assert!(index.name_bytes <= 1_000, "{}", index.name_bytes);
        let cut: Vec<_> = index.operations.values().map(|record| record.is_cut).collect();
        assert_eq!(cut, [true, true, true, true, true, true, true, false, false, false]);
        assert!(index.operations.values().all(|record| record.customer_count == 10));
    }
}
