//! Where requests wait for a slot. The queue is the batch: whoever waits for the same slot with the same services
//! travels together.
//!
//! Every caller has a lane, and slots go round the lanes in turn, so that one caller's flood does not starve another.
//! Pure: the loop that empties it is [`super::dispatch`].

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Error,
    batch::{self, Batch, Member},
};
use crate::license::{Caller, Unassignment};

/// The requests that wait.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// In the order of their turns.
    lanes: VecDeque<Lane>,
}

/// What one caller waits for. Never empty.
#[derive(Debug)]
struct Lane {
    caller: Caller,
    batches: VecDeque<Batch>,
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
    pub(super) turns_ahead: usize,
    /// Whether the batch comes sooner in the joining caller's own lane.
    moves: bool,
}

impl Queue {
    /// Where a request would go, and how many calls go out before it.
    pub(super) fn prospect(&self, caller: &Caller, wanted: &Unassignment) -> Prospect {
        let own = match self.lanes.iter().position(|lane| lane.caller == *caller) {
            Some(lane) => Spot { lane, position: self.lanes[lane].batches.len() },
            None => Spot { lane: self.lanes.len(), position: 0 },
        };
        let own_turns = self.turns_ahead(own);
        let key = batch::key(&wanted.services);
        let joins = self.lanes.iter().enumerate().find_map(|(lane, waiting)| {
            let position = waiting.batches.iter().position(|batch| batch.takes(wanted, &key))?;
            Some(Spot { lane, position })
        });
        let its_turns = joins.map_or(own_turns, |spot| self.turns_ahead(spot));
        Prospect { joins, turns_ahead: own_turns.min(its_turns), moves: own_turns < its_turns }
    }

    /// Takes a request in, where `prospect` says.
    pub(super) fn join(&mut self, prospect: Prospect, member: Member) {
        let caller = member.caller.clone();
        let Some(spot) = prospect.joins else {
            return self.lane(&caller).push_back(Batch::new(member));
        };
        if !prospect.moves {
            return self.lanes[spot.lane].batches[spot.position].add(member);
        }
        if let Some(mut batch) = self.lanes[spot.lane].batches.remove(spot.position) {
            batch.add(member);
            self.lane(&caller).push_back(batch);
            self.lanes.retain(|lane| !lane.batches.is_empty());
        }
    }

    /// What is to be sent next. Those whose callers have gone, who have waited too long after all, or whose answer is
    /// known, are not in it.
    pub(super) fn next(&mut self, now: Instant) -> Option<Batch> {
        loop {
            let mut lane = self.lanes.pop_front()?;
            let batch = lane.batches.pop_front();
            if !lane.batches.is_empty() {
                self.lanes.push_back(lane);
            }
            let Some(mut batch) = batch else { continue };
            batch.leave_if_shut();
            batch.leave_before(now, &Arc::new(Error::Overloaded { retry_after: Duration::from_secs(1) }));
            match batch.verdict() {
                _ if batch.is_empty() => {}
                Some(error) => batch.failed(error, None),
                None => return Some(batch),
            }
        }
    }

    /// Halves of a batch come next in their caller's lane.
    pub(super) fn put_back(&mut self, batches: [Batch; 2]) {
        for batch in batches.into_iter().rev() {
            if let Some(caller) = batch.caller().cloned() {
                self.lane(&caller).push_front(batch);
            }
        }
    }

    /// Those who cannot wait until `at` are told the error now.
    pub(super) fn leave_before(&mut self, at: Instant, error: &Arc<Error>) {
        for lane in &mut self.lanes {
            for batch in &mut lane.batches {
                batch.leave_before(at, error);
            }
            lane.batches.retain(|batch| !batch.is_empty());
        }
        self.lanes.retain(|lane| !lane.batches.is_empty());
    }

    /// Everybody leaves.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Batch> + use<> {
        std::mem::take(&mut self.lanes).into_iter().flat_map(|lane| lane.batches)
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// How many requests wait.
    pub(super) fn count(&self) -> usize {
        self.lanes.iter().flat_map(|lane| &lane.batches).map(Batch::count).sum()
    }

    fn lane(&mut self, caller: &Caller) -> &mut VecDeque<Batch> {
        let index = self.lanes.iter().position(|lane| lane.caller == *caller).unwrap_or_else(|| {
            self.lanes.push_back(Lane { caller: caller.clone(), batches: VecDeque::new() });
            self.lanes.len() - 1
        });
        &mut self.lanes[index].batches
    }

    /// How many calls go out before the one at this spot, if every caller who waits now keeps their lane full: whoever
    /// is taken in must be served in time, whatever the others do meanwhile.
    fn turns_ahead(&self, spot: Spot) -> usize {
        let own_lane_is_new = usize::from(spot.lane == self.lanes.len());
        (self.lanes.len() + own_lane_is_new) * spot.position + spot.lane
    }
}

/// How long the last of `turns` calls waits, at a rate of `per_second`.
pub(super) fn expected_wait(turns: usize, per_second: f64) -> Duration {
    #[allow(clippy::cast_precision_loss)] // nobody waits behind 2^52 calls
    let seconds = turns as f64 / per_second;
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that cannot go on fails
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::{
        audit::Operation,
        central::{Accepted, Failed, SendGate, batch::AfterRefusal},
        license::{CustomerId, Customers, MAX_CUSTOMERS, OperationId, Outcome, Reason, Scope, ServiceName, Services},
        telemetry::Origin,
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

    fn operation(caller: &str, unassignment: Unassignment) -> Arc<Operation> {
        let (id, caller) = (OperationId::new(), Caller::new(caller));
        Arc::new(Operation { id, caller, identified_by: "connection", from: None, unassignment, trace_id: None })
    }

    fn member(caller: &str, wanted: Unassignment, deadline: Option<Instant>) -> (Member, Answer, Arc<SendGate>) {
        let (answer, answered) = oneshot::channel();
        let gate = Arc::new(SendGate::new());
        let give_up = deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(10));
        let member = Member {
            caller: Caller::new(caller),
            operation: operation(caller, wanted),
            gate: Arc::clone(&gate),
            origin: Origin::none(),
            waiting: None,
            deadline,
            give_up,
            answer,
            calls: 0,
        };
        (member, answered, gate)
    }

    /// Joins, and says how many calls go out before its own.
    fn join(queue: &mut Queue, caller: &str, scope: &Scope, names: &[&str]) -> (usize, Answer) {
        let wanted = wanted(scope.clone(), names);
        let prospect = queue.prospect(&Caller::new(caller), &wanted);
        let (member, answered, _) = member(caller, wanted, None);
        queue.join(prospect, member);
        (prospect.turns_ahead, answered)
    }

    fn ids(batch: &Batch) -> Vec<String> {
        match batch.scope().as_deref() {
            Some(Scope::Include(customers)) => customers.ids().iter().map(|id| id.as_str().to_owned()).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// What goes out, in order: the first service and how many requests share the call.
    fn order(queue: &mut Queue) -> Vec<(String, usize)> {
        std::iter::from_fn(|| queue.next(Instant::now()))
            .map(|batch| (batch.services().unwrap().names()[0].to_string(), batch.count()))
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
        let batch = queue.next(Instant::now()).unwrap();
        assert_eq!(ids(&batch), ["c1", "c2", "c3"], "each customer once");
        assert_eq!(batch.services().unwrap().names().len(), 2);
        assert_eq!(ids(&queue.next(Instant::now()).unwrap()), ["c4"]);
        assert!(queue.is_empty());
    }

    #[test]
    fn open_scopes_travel_alone() {
        let mut queue = Queue::default();
        let _first = join(&mut queue, "a", &Scope::everyone(), &["x"]);
        let _second = join(&mut queue, "a", &Scope::everyone(), &["x"]);
        let _third = join(&mut queue, "a", &Scope::Exclude(customers([1])), &["x"]);
        let _fourth = join(&mut queue, "a", &Scope::Exclude(customers([1])), &["x"]);
        let _fifth = join(&mut queue, "a", &include([1]), &["x"]);
        let scopes: Vec<_> = std::iter::from_fn(|| queue.next(Instant::now()))
            .map(|batch| batch.scope().unwrap().into_owned())
            .collect();
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
        assert_eq!(ids(&queue.next(Instant::now()).unwrap()).len(), MAX_CUSTOMERS);
        assert_eq!(ids(&queue.next(Instant::now()).unwrap()).len(), 1_000, "401 and 599");
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
        let AfterRefusal::Halve(left, right) = queue.next(Instant::now()).unwrap().after(refusal()) else {
            panic!("four places")
        };
        queue.put_back([left, right]);
        let (ahead, _answer) = join(&mut queue, "a", &include([5]), &["x"]);
        assert_eq!(ahead, 3);
        assert_eq!(ids(&queue.next(Instant::now()).unwrap()), ["c0", "c1"]);
        assert_eq!(ids(&queue.next(Instant::now()).unwrap()), ["c2", "c3"]);
        assert_eq!(ids(&queue.next(Instant::now()).unwrap()), ["c9"]);
        assert_eq!(ids(&queue.next(Instant::now()).unwrap()), ["c5"]);
    }

    #[test]
    fn halving_finds_every_customer_that_is_unknown_and_nobody_else() {
        for unknown in [vec![0], vec![999], vec![617], vec![3, 4, 700], (0..1_000).collect()] {
            let mut queue = Queue::default();
            let mut answers: Vec<_> = (0..1_000).map(|id| join(&mut queue, "a", &include([id]), &["x"]).1).collect();
            let mut calls = 0;
            while let Some(batch) = queue.next(Instant::now()) {
                calls += 1;
                let is_refused = ids(&batch).iter().any(|id| unknown.contains(&id[1..].parse::<usize>().unwrap()));
                if !is_refused {
                    batch.accepted(200);
                    continue;
                }
                match batch.after(refusal()) {
                    AfterRefusal::Tell(batch, error) => batch.failed(error, None),
                    AfterRefusal::Halve(left, right) => queue.put_back([left, right]),
                    AfterRefusal::Split(..) => panic!("nothing is too large"),
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
        while let Some(batch) = queue.next(Instant::now()) {
            calls += 1;
            match batch.after(Error::PermissionDenied) {
                AfterRefusal::Tell(batch, error) => batch.failed(error, None),
                AfterRefusal::Halve(left, right) => queue.put_back([left, right]),
                AfterRefusal::Split(..) => panic!("nothing is too large"),
            }
        }
        assert!(calls <= 20, "{calls}");
        assert!(answers.iter_mut().all(|answer| answer.try_recv().unwrap().is_err()));
    }

    #[test]
    fn who_gave_up_stays_behind_and_is_not_sent() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let mut add = |id, deadline| {
            let wanted = wanted(include([id]), &["x"]);
            let prospect = queue.prospect(&Caller::new("a"), &wanted);
            let (member, answered, gate) = member("a", wanted, deadline);
            queue.join(prospect, member);
            (answered, gate)
        };
        let (_stays, gate) = add(1, None);
        let (mut left, shut) = add(2, None);
        let (mut late, _) = add(3, Some(now + Duration::from_millis(5)));
        assert!(shut.shut(), "nothing was sent for it");
        let mut batch = queue.next(Instant::now()).unwrap();
        batch.board(now);
        assert_eq!(ids(&batch), ["c1"]);
        assert!(!gate.shut(), "it is on its way");
        let why = |answer: &mut Answer| answer.try_recv().unwrap().unwrap_err().error;
        assert!(matches!(*why(&mut left), Error::Abandoned));
        assert!(matches!(*why(&mut late), Error::DeadlineBeforeSending));
    }

    #[test]
    fn who_cannot_wait_is_told_and_the_others_stay() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let mut answers: Vec<_> = [1, 3]
            .map(|seconds| {
                let wanted = wanted(include([1]), &["x"]);
                let prospect = queue.prospect(&Caller::new("a"), &wanted);
                let (member, answered, _) = member("a", wanted, Some(now + Duration::from_secs(seconds)));
                queue.join(prospect, member);
                answered
            })
            .into();
        let error = Arc::new(Error::RateLimited { wait: Duration::from_secs(2), is_answer: false });
        queue.leave_before(now + Duration::from_secs(2), &error);
        let failed = answers[0].try_recv().unwrap().unwrap_err();
        assert_eq!((failed.outcome(), failed.calls), (Outcome::NotApplied, 0));
        assert!(answers[1].try_recv().is_err(), "still waiting");
        assert_eq!(queue.count(), 1);
    }

    #[test]
    fn the_wait_is_foreseen() {
        assert_eq!(expected_wait(0, 6.0), Duration::ZERO);
        assert_eq!(expected_wait(60, 6.0), Duration::from_secs(10));
        assert_eq!(expected_wait(1, 0.0), Duration::MAX);
    }
}
