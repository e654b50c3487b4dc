//! Where requests wait for a permit to call Central.
//!
//! Every caller has a lane, and permits go round the lanes, so that one caller's flood does not starve another. Changes
//! and reads have lanes apart and take turns where both wait: nobody's change waits longer than one call for all the
//! previews of others. Changes that wait for the same permit with the same services share a call.
//!
//! Pure: the loop that empties it is [`super::dispatch`].

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::Instant};

use super::{
    Error,
    batch::{self, Batch},
    fate::Piece,
};
use crate::{
    license::{Caller, Unassignment},
    quota::{NoPermit, Permit},
    telemetry::queue::QueueWait,
};

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Queue {
    changes: Lanes<Batch>,
    reads: Lanes<PermitSender>,
    /// Whether the last permit went to a read.
    was_read: bool,
}

/// Where the permit for a read goes.
pub(super) type PermitSender = oneshot::Sender<Result<Permit, NoPermit>>;

/// What gets a permit.
#[derive(Debug)]
pub(super) enum Next {
    /// A call that changes something.
    Change(Batch),
    /// A read.
    Read(PermitSender),
}

/// What the callers wait for, in the order of their turns. No lane is empty.
#[derive(Debug)]
struct Lanes<T>(VecDeque<Lane<T>>);

#[derive(Debug)]
struct Lane<T> {
    caller: Caller,
    waiting: VecDeque<T>,
}

/// Where a request stands, or would stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spot {
    lane: usize,
    position: usize,
}

/// Where a request would go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prospect {
    /// The batch it can join.
    joins: Option<Spot>,
    /// How many calls go out before its own.
    pub(super) calls_ahead: usize,
    /// Whether the batch comes sooner in the joining caller's own lane.
    moves: bool,
}

impl Queue {
    /// Where a request would go, and how many calls go out before it.
    pub(super) fn prospect(&self, caller: &Caller, wanted: &Unassignment) -> Prospect {
        let own = match self.changes.position(caller) {
            Some(lane) => Spot { lane, position: self.changes.0[lane].waiting.len() },
            None => Spot { lane: self.changes.0.len(), position: 0 },
        };
        let own_calls = self.calls_ahead(own);
        let key = batch::key(&wanted.services);
        let joins = self.changes.0.iter().enumerate().find_map(|(lane, batches)| {
            let position = batches.waiting.iter().position(|batch| batch.takes(wanted, &key))?;
            Some(Spot { lane, position })
        });
        let its_calls = joins.map_or(own_calls, |spot| self.calls_ahead(spot));
        Prospect { joins, calls_ahead: own_calls.min(its_calls), moves: own_calls < its_calls }
    }

    /// Takes a request in, where `prospect` says.
    pub(super) fn join(&mut self, prospect: Prospect, piece: Piece, waiting: Option<QueueWait>) {
        let caller = piece.caller().clone();
        let Some(spot) = prospect.joins else {
            return self.changes.lane(&caller).push_back(Batch::new(piece, waiting));
        };
        if !prospect.moves {
            return self.changes.0[spot.lane].waiting[spot.position].add(piece, waiting);
        }
        if let Some(mut batch) = self.changes.0[spot.lane].waiting.remove(spot.position) {
            batch.add(piece, waiting);
            self.changes.lane(&caller).push_back(batch);
            self.changes.0.retain(|lane| !lane.waiting.is_empty());
        }
    }

    /// Takes in somebody who wants to read. `is_next`: before everything else in their own lane.
    pub(super) fn join_reads(&mut self, caller: &Caller, reader: PermitSender, is_next: bool) {
        let lane = self.reads.lane(caller);
        if is_next { lane.push_front(reader) } else { lane.push_back(reader) }
    }

    /// What gets the permit that there is now; `may_change`: a change may be sent too. Requests whose callers have gone,
    /// that have waited too long, or whose answer is known, are not in it.
    pub(super) fn next(&mut self, may_change: bool, now: Instant) -> Option<Next> {
        let read_first = !self.was_read || !may_change;
        let next = if read_first {
            self.next_read().or_else(|| self.next_change(may_change, now))
        } else {
            self.next_change(may_change, now).or_else(|| self.next_read())
        };
        self.was_read = matches!(next, Some(Next::Read(_)));
        next
    }

    fn next_read(&mut self) -> Option<Next> {
        std::iter::from_fn(|| self.reads.pop()).find(|reader| !reader.is_closed()).map(Next::Read)
    }

    fn next_change(&mut self, may_change: bool, now: Instant) -> Option<Next> {
        if !may_change {
            return None;
        }
        loop {
            let mut batch = self.changes.pop()?;
            batch.leave_if_refused(now);
            batch.leave_before(now, &Arc::new(Error::Overloaded { retry_after: Duration::from_secs(1) }));
            match batch.uniform_refusal() {
                _ if batch.is_empty() => {}
                Some(error) => batch.fail(error),
                None => return Some(Next::Change(batch)),
            }
        }
    }

    /// Halves of a batch come next in their caller's lane.
    pub(super) fn put_back<const N: usize>(&mut self, batches: [Batch; N]) {
        for batch in batches.into_iter().rev() {
            if let Some(caller) = batch.caller().cloned() {
                self.changes.lane(&caller).push_front(batch);
            }
        }
    }

    /// Requests that cannot wait until `at` are told the error now.
    pub(super) fn leave_before(&mut self, at: Instant, error: &Arc<Error>) {
        for lane in &mut self.changes.0 {
            lane.waiting.iter_mut().for_each(|batch| batch.leave_before(at, error));
            lane.waiting.retain(|batch| !batch.is_empty());
        }
        self.changes.0.retain(|lane| !lane.waiting.is_empty());
    }

    /// No permit comes for anybody.
    pub(super) fn refuse_all(&mut self, why: NoPermit) {
        while let Some(batch) = self.changes.pop() {
            batch.fail(Error::from(why));
        }
        while let Some(reader) = self.reads.pop() {
            let _ = reader.send(Err(why)); // the reader may have left
        }
    }

    /// Whether a change waits.
    pub(super) fn has_changes(&self) -> bool {
        !self.changes.0.is_empty()
    }

    /// Whether a read waits.
    pub(super) fn has_reads(&self) -> bool {
        !self.reads.0.is_empty()
    }

    /// How many changes wait.
    pub(super) fn count(&self) -> usize {
        self.changes.0.iter().flat_map(|lane| &lane.waiting).map(Batch::count).sum()
    }

    /// How many calls go out before the one at this spot, if every caller who waits now keeps their lane full: whoever
    /// is admitted must be served in time, whatever the others do meanwhile. Where reads wait, each change has one
    /// before it.
    fn calls_ahead(&self, spot: Spot) -> usize {
        let own_lane_is_new = usize::from(spot.lane == self.changes.0.len());
        let changes = (self.changes.0.len() + own_lane_is_new) * spot.position + spot.lane;
        if self.has_reads() { changes * 2 + 1 } else { changes }
    }
}

impl<T> Lanes<T> {
    fn position(&self, caller: &Caller) -> Option<usize> {
        self.0.iter().position(|lane| lane.caller == *caller)
    }

    /// The caller's lane; a new one comes after all others.
    fn lane(&mut self, caller: &Caller) -> &mut VecDeque<T> {
        let index = self.position(caller).unwrap_or_else(|| {
            self.0.push_back(Lane { caller: caller.clone(), waiting: VecDeque::new() });
            self.0.len() - 1
        });
        &mut self.0[index].waiting
    }

    /// The first of the caller whose turn it is.
    fn pop(&mut self) -> Option<T> {
        let mut lane = self.0.pop_front()?;
        let first = lane.waiting.pop_front();
        if !lane.waiting.is_empty() {
            self.0.push_back(lane);
        }
        first
    }
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

/// How long the last of `calls` waits, at a rate of `per_second`.
pub(super) fn expected_wait(calls: usize, per_second: f64) -> Duration {
    #[allow(clippy::cast_precision_loss)] // nobody waits behind 2^52 calls
    let seconds = calls as f64 / per_second;
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that cannot go on fails
mod tests {
    use super::*;
    use crate::{
        audit::Operation,
        central::{Accepted, Failed, Member, Rights, SentMark, batch::AfterRefusal, fate::Settlement},
        license::{CustomerId, Customers, MAX_CUSTOMERS, Outcome, Reason, Scope, ServiceName, Services},
    };

    type Answer = oneshot::Receiver<Result<Accepted, Failed>>;

    fn services(names: &[&str]) -> Services {
        Services::new(names.iter().map(|name| ServiceName::new((*name).to_owned()).unwrap()).collect()).unwrap()
    }

    fn customers(ids: impl IntoIterator<Item = usize>) -> Customers {
        let ids = ids.into_iter().map(|id| CustomerId::new(format!("c{id}")).unwrap());
        Customers::new(ids.collect()).unwrap()
    }

    fn include(ids: impl IntoIterator<Item = usize>) -> Scope {
        Scope::Include(customers(ids))
    }

    fn wanted(scope: Scope, names: &[&str]) -> Unassignment {
        Unassignment { scope, services: services(names), reason: Reason::default(), etag: None }
    }

    fn piece(caller: &str, wanted: Unassignment, deadline: Option<Instant>) -> (Arc<Member>, Piece, Answer) {
        let (member, mut piece, answered) =
            Member::new(Arc::new(Operation::of_test(caller, wanted)), deadline, Rights::default(), SentMark::default());
        piece.patience = Some(Instant::now() + Duration::from_secs(10));
        (member, piece, answered)
    }

    fn next(queue: &mut Queue) -> Option<Batch> {
        match queue.next(true, Instant::now())? {
            Next::Change(batch) => Some(batch),
            Next::Read(_) => panic!("nobody reads"),
        }
    }

    /// Joins, and says how many calls go out before its own.
    fn join(queue: &mut Queue, caller: &str, scope: &Scope, names: &[&str]) -> (usize, Answer) {
        let wanted = wanted(scope.clone(), names);
        let prospect = queue.prospect(&Caller::new(caller), &wanted);
        let (_, piece, answered) = piece(caller, wanted, None);
        queue.join(prospect, piece, None);
        (prospect.calls_ahead, answered)
    }

    fn ids(batch: &Batch) -> Vec<String> {
        match batch.scope().as_deref() {
            Some(Scope::Include(customers)) => customers.ids().iter().map(|id| id.as_str().to_owned()).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// What goes out, in order: the first service and how many requests share the call.
    fn order(queue: &mut Queue) -> Vec<(String, usize)> {
        std::iter::from_fn(|| next(queue))
            .map(|batch| (batch.services().names()[0].to_string(), batch.count()))
            .collect()
    }

    fn refusal() -> Error {
        Error::CustomerNotFound
    }

    #[test]
    fn the_same_services_in_any_order_travel_together() {
        let mut queue = Queue::default();
        let (_, _first) = join(&mut queue, "a", &include([1, 2]), &["x", "y"]);
        let (_, _second) = join(&mut queue, "b", &include([2, 3]), &["y", "x"]);
        let (_, _third) = join(&mut queue, "a", &include([4]), &["x"]);
        assert_eq!(queue.count(), 3);
        let batch = next(&mut queue).unwrap();
        assert_eq!(ids(&batch), ["c1", "c2", "c3"], "each customer once");
        assert_eq!(batch.services().names().len(), 2);
        assert_eq!(ids(&next(&mut queue).unwrap()), ["c4"]);
        assert!(!queue.has_changes());
    }

    #[test]
    fn open_scopes_travel_alone() {
        let mut queue = Queue::default();
        let _first = join(&mut queue, "a", &Scope::everyone(), &["x"]);
        let _second = join(&mut queue, "a", &Scope::everyone(), &["x"]);
        let _third = join(&mut queue, "a", &Scope::Exclude(customers([1])), &["x"]);
        let _fourth = join(&mut queue, "a", &Scope::Exclude(customers([1])), &["x"]);
        let _fifth = join(&mut queue, "a", &include([1]), &["x"]);
        let scopes: Vec<_> =
            std::iter::from_fn(|| next(&mut queue)).map(|batch| batch.scope().unwrap().into_owned()).collect();
        let alone = [
            Scope::everyone(),
            Scope::everyone(),
            Scope::Exclude(customers([1])),
            Scope::Exclude(customers([1])),
            include([1]),
        ];
        assert_eq!(scopes, alone);
    }

    #[test]
    fn a_call_names_a_thousand_customers_at_most() {
        let mut queue = Queue::default();
        let _first = join(&mut queue, "a", &include(0..600), &["x"]);
        let (ahead, _second) = join(&mut queue, "a", &include(600..1_001), &["x"]);
        assert_eq!(ahead, 1, "there is no room for 401 more");
        let (ahead, _third) = join(&mut queue, "a", &include(2_000..2_400), &["x"]);
        assert_eq!(ahead, 0, "there is for 400");
        let (ahead, _fourth) = join(&mut queue, "a", &include((0..600).rev()), &["x"]);
        assert_eq!(ahead, 0, "the same customers share a place");
        let (ahead, _fifth) = join(&mut queue, "a", &include(0..599), &["x"]);
        assert_eq!(ahead, 1, "who is named twice is counted twice");
        assert_eq!(ids(&next(&mut queue).unwrap()).len(), MAX_CUSTOMERS);
        assert_eq!(ids(&next(&mut queue).unwrap()).len(), 1_000, "401 and 599");
    }

    #[test]
    fn callers_take_turns() {
        let mut queue = Queue::default();
        let mut answers = Vec::new();
        for index in 0..50 {
            let (ahead, answer) = join(&mut queue, "flood", &include([0]), &[&format!("f{index}")]);
            assert_eq!(ahead, index);
            answers.push(answer);
        }
        let (ahead, second) = join(&mut queue, "second", &include([1]), &["s"]);
        assert_eq!(ahead, 1, "one call of the flood goes first");
        let (ahead, third) = join(&mut queue, "third", &include([1]), &["t"]);
        assert_eq!(ahead, 2);
        let (ahead, later) = join(&mut queue, "second", &include([1]), &["s2"]);
        assert_eq!(ahead, 4, "f0, s, t, f1");
        let sent = order(&mut queue);
        let names: Vec<&str> = sent[..6].iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["f0", "s", "t", "f1", "s2", "f2"]);
        drop((second, third, later));
    }

    #[test]
    fn who_joins_a_flood_does_not_wait_for_it() {
        let mut queue = Queue::default();
        let mut answers = Vec::new();
        for index in 0..50 {
            answers.push(join(&mut queue, "flood", &include([0]), &[&format!("f{index}")]).1);
        }
        let (ahead, _answer) = join(&mut queue, "other", &include([1]), &["f40"]);
        assert_eq!(ahead, 1, "the shared call moves to the other's lane");
        let (ahead, _answer) = join(&mut queue, "other", &include([2]), &["f0"]);
        assert_eq!(ahead, 0, "and stays where it is sooner");
        let sent = order(&mut queue);
        assert_eq!(sent[..3], [("f0".to_owned(), 2), ("f40".to_owned(), 2), ("f1".to_owned(), 1)]);
        assert_eq!(sent.len(), 50);
    }

    #[test]
    fn halves_come_next_and_nobody_joins_them() {
        let mut queue = Queue::default();
        let mut answers: Vec<_> = (0..4).map(|id| join(&mut queue, "a", &include([id]), &["x"]).1).collect();
        answers.push(join(&mut queue, "a", &include([9]), &["z"]).1);
        let AfterRefusal::Halve(left, right) = next(&mut queue).unwrap().after(refusal()) else {
            panic!("four places")
        };
        queue.put_back([left, right]);
        let (ahead, _answer) = join(&mut queue, "a", &include([5]), &["x"]);
        assert_eq!(ahead, 3);
        assert_eq!(ids(&next(&mut queue).unwrap()), ["c0", "c1"]);
        assert_eq!(ids(&next(&mut queue).unwrap()), ["c2", "c3"]);
        assert_eq!(ids(&next(&mut queue).unwrap()), ["c9"]);
        assert_eq!(ids(&next(&mut queue).unwrap()), ["c5"]);
    }

    #[test]
    fn halving_finds_every_customer_that_is_unknown_and_nobody_else() {
        for unknown in [vec![0], vec![999], vec![617], vec![3, 4, 700], (0..1_000).collect()] {
            let mut queue = Queue::default();
            let mut answers: Vec<_> = (0..1_000).map(|id| join(&mut queue, "a", &include([id]), &["x"]).1).collect();
            let mut calls = 0;
            while let Some(batch) = next(&mut queue) {
                calls += 1;
                let is_refused = ids(&batch).iter().any(|id| unknown.contains(&id[1..].parse::<usize>().unwrap()));
                if !is_refused {
                    batch.settle(&Settlement::Applied { http_status: 200 });
                    continue;
                }
                match batch.after(refusal()) {
                    AfterRefusal::Fail(batch, error) => batch.fail(error),
                    AfterRefusal::Halve(left, right) => queue.put_back([left, right]),
                }
            }
            for (id, answer) in answers.iter_mut().enumerate() {
                let answer = answer.try_recv().expect("everybody is told");
                assert_eq!(answer.is_err(), unknown.contains(&id), "{id}");
            }
            assert!(calls <= 1 + 20 * unknown.len(), "{calls} calls for {} unknown", unknown.len());
        }
    }

    #[test]
    fn a_refusal_of_everybody_is_found_out_from_four() {
        let mut queue = Queue::default();
        let mut answers: Vec<_> = (0..1_000).map(|id| join(&mut queue, "a", &include([id]), &["x"]).1).collect();
        let mut calls = 0;
        while let Some(batch) = next(&mut queue) {
            calls += 1;
            match batch.after(Error::PermissionDenied) {
                AfterRefusal::Fail(batch, error) => batch.fail(error),
                AfterRefusal::Halve(left, right) => queue.put_back([left, right]),
            }
        }
        assert!(calls <= 20, "{calls}");
        assert!(answers.iter_mut().all(|answer| answer.try_recv().unwrap().is_err()));
    }

    #[test]
    fn requests_given_up_stay_behind_and_are_not_sent() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let mut add = |id, deadline| {
            let wanted = wanted(include([id]), &["x"]);
            let prospect = queue.prospect(&Caller::new("a"), &wanted);
            let (member, piece, answered) = piece("a", wanted, deadline);
            queue.join(prospect, piece, None);
            (member, answered)
        };
        let (stays, _answer) = add(1, None);
        let (left, mut left_answer) = add(2, None);
        let (_late, mut late_answer) = add(3, Some(now + Duration::from_millis(5)));
        assert_eq!(left.give_up().unwrap_err().outcome, Outcome::NotApplied, "nothing was sent for it");
        let mut batch = next(&mut queue).unwrap();
        batch.depart(now);
        assert_eq!(ids(&batch), ["c1"]);
        assert_eq!(stays.give_up().unwrap_err().outcome, Outcome::Unknown, "it is on its way");
        let why = |answer: &mut Answer| answer.try_recv().unwrap().unwrap_err().error;
        assert!(matches!(*why(&mut left_answer), Error::Deadline { nothing_was_sent: true }));
        assert!(matches!(*why(&mut late_answer), Error::Deadline { nothing_was_sent: true }));
    }

    #[test]
    fn requests_that_cannot_wait_are_told_and_the_others_stay() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let mut answers: Vec<_> = [1, 3]
            .map(|seconds| {
                let wanted = wanted(include([1]), &["x"]);
                let prospect = queue.prospect(&Caller::new("a"), &wanted);
                let (_, piece, answered) = piece("a", wanted, Some(now + Duration::from_secs(seconds)));
                queue.join(prospect, piece, None);
                answered
            })
            .into();
        let error = Arc::new(Error::RateLimited { wait: Duration::from_secs(2), is_answer: false });
        queue.leave_before(now + Duration::from_secs(2), &error);
        let failed = answers[0].try_recv().unwrap().unwrap_err();
        assert_eq!((failed.outcome, failed.calls), (Outcome::NotApplied, 0));
        assert!(answers[1].try_recv().is_err(), "still waiting");
        assert_eq!(queue.count(), 1);
    }

    #[test]
    fn changes_and_reads_take_turns_and_each_goes_round_the_callers() {
        let mut queue = Queue::default();
        let _answers: Vec<_> =
            (0..3).map(|index| join(&mut queue, "a", &include([0]), &[&format!("s{index}")]).1).collect();
        let mut readers: Vec<_> = ["p", "p", "q", "q"]
            .map(|caller| {
                let (reader, permit) = oneshot::channel();
                queue.join_reads(&Caller::new(caller), reader, false);
                permit
            })
            .into();
        drop(readers.remove(1)); // gone: the second of p
        let mut order = Vec::new();
        while let Some(next) = queue.next(true, Instant::now()) {
            order.push(match next {
                Next::Change(_) => "change",
                Next::Read(reader) => {
                    let _ = reader.send(Err(NoPermit::TooLate { wait: Duration::ZERO }));
                    "read"
                }
            });
        }
        assert_eq!(order, ["read", "change", "read", "change", "read", "change"]);
        let mut queue = Queue::default();
        let _answer = join(&mut queue, "a", &include([0]), &["x"]).1;
        assert!(queue.next(false, Instant::now()).is_none(), "no slot for a change, and nobody reads");
        assert!(queue.has_changes());
    }

    #[test]
    fn the_wait_is_foreseen() {
        assert_eq!(expected_wait(0, 6.0), Duration::ZERO);
        assert_eq!(expected_wait(60, 6.0), Duration::from_secs(10));
        assert_eq!(expected_wait(1, 0.0), Duration::MAX);
    }
}
