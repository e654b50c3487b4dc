//! What became of a request. Everything that a caller is told about an unassignment, and everything that the audit
//! trail says of its end, is read off here.
//!
//! A [`Member`] is one request on its way. It travels in [`Piece`]s: one at first, more when its scope has to be split.
//! A piece is waiting, sent, or settled, and [`Piece::settle`] is the only way to its end; a piece that is dropped
//! settles itself. When the last piece is settled the caller is answered, from the states of all of them. So nothing
//! can be forgotten, and nobody can say something else.
//!
//! The caller's side ([`Member::give_up`]) and the sending side ([`Piece::depart`]) take the same lock: what the caller
//! was told to be unsent is never sent.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Accepted, Error, Failed, Parts};
use crate::{
    audit::Operation,
    license::{Caller, CustomerId, Customers, Outcome},
    telemetry::Origin,
};

/// A call with less time than this left would almost surely end as unknown: not even a round trip within a region.
const SHORTEST_CALL: Duration = Duration::from_millis(10);

/// What the service knows of a caller and the moment of a call needs: both are asked again then, because the policy may
/// have changed while the request waited.
pub struct Rights {
    /// Whether the policy still allows the request; if not, why.
    pub may_send: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// Whether the caller may cause one more read of Central; if not, after how long. A yes is counted.
    pub may_read: Box<dyn Fn() -> Result<(), Duration> + Send + Sync>,
    /// Whether the deadline is the caller's own, and not the gateway's for whoever sets none.
    pub sets_deadline: bool,
}

/// Whether anything may have been sent for an RPC: for those who must answer it without knowing what it was doing.
#[derive(Debug, Clone, Default)]
pub struct SentMark(Arc<AtomicBool>);

/// One request on its way to Central.
#[derive(Debug)]
pub struct Member {
    /// What is asked for, by which caller, and why.
    pub operation: Arc<Operation>,
    origin: Origin,
    /// When the caller stops waiting.
    pub(super) deadline: Option<Instant>,
    rights: Rights,
    mark: SentMark,
    /// Cancelled when the caller gives up.
    gone: CancellationToken,
    fate: Mutex<Fate>,
}

/// What became of each part of a request.
#[derive(Debug)]
struct Fate {
    parts: Vec<Part>,
    /// The caller was told what to think of it: nothing more is sent.
    is_given_up: bool,
    /// How many intents stand in the audit trail.
    intents: u32,
    /// How many calls were made.
    calls: u32,
    /// Why it was not applied as a whole.
    failure: Option<Arc<Error>>,
    /// The status of the last answer that accepted a part.
    http_status: u16,
    /// How many customers were in scope when that was last looked up.
    resolved: Option<usize>,
    answer: Option<oneshot::Sender<Result<Accepted, Failed>>>,
}

/// A part of a request, and where it is.
#[derive(Debug)]
struct Part {
    /// None: the whole scope.
    customers: Option<Customers>,
    state: PartState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PartState {
    /// Not sent, or surely not run.
    Waiting,
    /// A call with it is on its way.
    Sent,
    Settled(Outcome),
}

/// The part of a request that travels in one call. Dropping it settles it.
#[derive(Debug)]
pub(super) struct Piece {
    member: Arc<Member>,
    index: usize,
    /// Until when it waits for its first call; none after that call or its pre-send check: the deadline alone counts then.
    pub(super) patience: Option<Instant>,
}

/// How a piece ends.
#[derive(Debug, Clone)]
pub(super) enum Settlement {
    /// Central accepted its call.
    Applied {
        /// With this status.
        http_status: u16,
    },
    /// It was not sent or did not succeed; [`Error::outcome`] says what that means for a piece that was sent.
    Failed(Arc<Error>),
}

impl Member {
    /// A request that nothing was done for yet, its one piece, and where its answer comes.
    pub(super) fn new(
        operation: Arc<Operation>,
        deadline: Option<Instant>,
        rights: Rights,
        mark: SentMark,
    ) -> (Arc<Self>, Piece, oneshot::Receiver<Result<Accepted, Failed>>) {
        let (answer, answered) = oneshot::channel();
        let fate = Fate {
            parts: vec![Part { customers: None, state: PartState::Waiting }],
            is_given_up: false,
            intents: 0,
            calls: 0,
            failure: None,
            http_status: 0,
            resolved: None,
            answer: Some(answer),
        };
        let member = Arc::new(Self {
            operation,
            origin: Origin::current(),
            deadline,
            rights,
            mark,
            gone: CancellationToken::new(),
            fate: Mutex::new(fate),
        });
        let piece = Piece { member: Arc::clone(&member), index: 0, patience: None };
        (member, piece, answered)
    }

    /// The caller stops waiting. From now on nothing is sent for them, and this is what they are told.
    pub fn give_up(&self) -> Result<Accepted, Failed> {
        let mut fate = self.fate();
        fate.is_given_up = true;
        self.gone.cancel();
        let failure = if fate.is_over() {
            fate.failure.clone()
        } else {
            let nothing_was_sent = fate.outcome() == Outcome::NotApplied;
            Some(Arc::new(Error::Deadline { nothing_was_sent }))
        };
        fate.told(&self.operation, failure)
    }

    /// The request's trace.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Cancelled when the caller gives up.
    pub(super) fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// Whether the caller has set how long they wait.
    pub(super) fn has_callers_deadline(&self) -> bool {
        self.deadline.is_some() && self.rights.sets_deadline
    }

    /// Whether the caller may cause one more read; a yes is counted.
    pub(super) fn read_right(&self) -> &(dyn Fn() -> Result<(), Duration> + Send + Sync) {
        &*self.rights.may_read
    }

    /// So many customers were in scope just before the call.
    pub(super) fn resolved(&self, customers: usize) {
        self.fate().resolved = Some(customers);
    }

    fn fate(&self) -> MutexGuard<'_, Fate> {
        self.fate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fate {
    fn is_over(&self) -> bool {
        self.parts.iter().all(|part| matches!(part.state, PartState::Settled(_)))
    }

    /// What can be said now, if nothing more is sent.
    fn outcome(&self) -> Outcome {
        let mut outcomes = self.parts.iter().map(Part::outcome);
        let first = outcomes.next().unwrap_or(Outcome::NotApplied);
        if outcomes.all(|outcome| outcome == first) { first } else { Outcome::Partial }
    }

    /// The answer to the caller, and the end in the audit trail.
    fn told(&self, operation: &Operation, failure: Option<Arc<Error>>) -> Result<Accepted, Failed> {
        let outcome = self.outcome();
        if outcome == Outcome::Applied {
            return Ok(Accepted { calls: self.calls, http_status: self.http_status, resolved: self.resolved });
        }
        let error = failure.unwrap_or_else(|| Arc::new(Error::Bug));
        let parts = (outcome == Outcome::Partial).then(|| Box::new(self.account(operation)));
        Err(Failed { error, outcome, calls: self.calls, parts })
    }

    fn account(&self, operation: &Operation) -> Parts {
        let of = |outcome| -> Vec<CustomerId> {
            let parts = self.parts.iter().filter(|part| part.outcome() == outcome);
            let customers = parts.filter_map(|part| part.customers.as_ref().or(operation.unassignment.scope.listed()));
            customers.flat_map(Customers::ids).cloned().collect()
        };
        Parts { applied: of(Outcome::Applied), not_applied: of(Outcome::NotApplied), unknown: of(Outcome::Unknown) }
    }
}

impl Part {
    fn outcome(&self) -> Outcome {
        match self.state {
            PartState::Waiting => Outcome::NotApplied,
            PartState::Sent => Outcome::Unknown,
            PartState::Settled(outcome) => outcome,
        }
    }
}

impl Piece {
    pub(super) fn member(&self) -> &Arc<Member> {
        &self.member
    }

    pub(super) fn caller(&self) -> &Caller {
        &self.member.operation.caller
    }

    /// When it stops waiting for a call.
    pub(super) fn until(&self) -> Option<Instant> {
        self.patience.into_iter().chain(self.member.deadline).min()
    }

    /// Numbers the intent of the next call, from 1.
    pub(super) fn next_intent(&self) -> u32 {
        let mut fate = self.member.fate();
        fate.intents += 1;
        fate.intents
    }

    /// Whether it may be sent as things stand.
    pub(super) fn may_depart(&self, now: Instant) -> Result<(), Arc<Error>> {
        self.check(&self.member.fate(), now)
    }

    /// The moment of sending: from now on the call counts as made.
    pub(super) fn depart(&mut self, now: Instant) -> Result<(), Arc<Error>> {
        let mut fate = self.member.fate();
        self.check(&fate, now)?;
        fate.parts[self.index].state = PartState::Sent;
        fate.calls += 1;
        self.member.mark.set();
        drop(fate);
        self.patience = None;
        Ok(())
    }

    fn check(&self, fate: &Fate, now: Instant) -> Result<(), Arc<Error>> {
        if fate.is_given_up {
            return Err(Arc::new(Error::Deadline { nothing_was_sent: true }));
        }
        // What made one piece fail may make the next one worse.
        if let Some(failure) = &fate.failure {
            return Err(Arc::clone(failure));
        }
        if self.member.deadline.is_some_and(|deadline| deadline < now + SHORTEST_CALL) {
            return Err(Arc::new(Error::Deadline { nothing_was_sent: true }));
        }
        (self.member.rights.may_send)().map_err(|why| Arc::new(Error::NotPermitted { why }))
    }

    /// The call that it was sent with surely did not run: it waits again.
    pub(super) fn did_not_run(&self) {
        let mut fate = self.member.fate();
        if fate.parts[self.index].state == PartState::Sent {
            fate.parts[self.index].state = PartState::Waiting;
        }
    }

    /// The call was not made after all.
    pub(super) fn was_not_sent(&self) {
        self.did_not_run();
        self.member.fate().calls -= 1;
    }

    /// Two pieces in place of one that waits.
    pub(super) fn split(self, left: &Customers, right: &Customers) -> (Self, Self) {
        let mut fate = self.member.fate();
        fate.parts[self.index].customers = Some(left.clone());
        fate.parts.push(Part { customers: Some(right.clone()), state: PartState::Waiting });
        let index = fate.parts.len() - 1;
        drop(fate);
        let right = Self { member: Arc::clone(&self.member), index, patience: self.patience };
        (self, right)
    }

    /// The end of this piece. The last one answers the caller.
    pub(super) fn settle(self, settlement: &Settlement) {
        self.settle_once(settlement);
    }

    fn settle_once(&self, settlement: &Settlement) {
        let mut fate = self.member.fate();
        let was_sent = match fate.parts[self.index].state {
            PartState::Waiting => false,
            PartState::Sent => true,
            PartState::Settled(_) => return,
        };
        let outcome = match settlement {
            Settlement::Applied { http_status } => {
                fate.http_status = *http_status;
                Outcome::Applied
            }
            Settlement::Failed(error) => {
                let outcome = if was_sent { error.outcome() } else { Outcome::NotApplied };
                // What may have happened is worth telling more than what surely did not.
                let is_worse = outcome == Outcome::Unknown
                    && fate.parts.iter().all(|part| part.state != PartState::Settled(Outcome::Unknown));
                if fate.failure.is_none() || is_worse {
                    fate.failure = Some(Arc::clone(error));
                }
                outcome
            }
        };
        fate.parts[self.index].state = PartState::Settled(outcome);
        if fate.is_over()
            && let Some(answer) = fate.answer.take()
        {
            // A caller who has gone does not hear it; the audit trail does.
            let _ = answer.send(fate.told(&self.member.operation, fate.failure.clone()));
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.settle_once(&Settlement::Failed(Arc::new(Error::Bug)));
    }
}

impl SentMark {
    /// From now on something may have been sent.
    pub fn set(&self) {
        self.0.store(true, Relaxed);
    }

    /// Whether anything may have been sent.
    pub fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }
}

impl Default for Rights {
    /// Everything is allowed.
    fn default() -> Self {
        Self { may_send: Box::new(|| Ok(())), may_read: Box::new(|| Ok(())), sets_deadline: true }
    }
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rights").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that cannot go on fails
mod tests {
    use std::thread;

    use super::*;
    use crate::license::{Reason, Scope, ServiceName, Services, Unassignment};

    fn customers(ids: std::ops::Range<usize>) -> Customers {
        Customers::new(ids.map(|id| CustomerId::new(format!("c{id}")).unwrap()).collect()).unwrap()
    }

    fn member(
        rights: Rights,
        deadline: Option<Instant>,
    ) -> (Arc<Member>, Piece, oneshot::Receiver<Result<Accepted, Failed>>) {
        let unassignment = Unassignment {
            scope: Scope::Include(customers(0..4)),
            services: Services::new(vec![ServiceName::new("x".to_owned()).unwrap()]).unwrap(),
            reason: Reason::default(),
            etag: None,
        };
        Member::new(Arc::new(Operation::of_test("a", unassignment)), deadline, rights, SentMark::default())
    }

    fn halves(piece: Piece) -> (Piece, Piece) {
        piece.split(&customers(0..2), &customers(2..4))
    }

    fn failed(error: Error) -> Settlement {
        Settlement::Failed(Arc::new(error))
    }

    const APPLIED: Settlement = Settlement::Applied { http_status: 200 };

    fn ids(list: &[CustomerId]) -> Vec<&str> {
        list.iter().map(CustomerId::as_str).collect()
    }

    #[test]
    fn a_request_given_up_is_never_sent_and_a_sent_one_is_never_called_unsent() {
        for _ in 0..2_000 {
            let (member, mut piece, _answered) = member(Rights::default(), None);
            let sender = thread::spawn(move || (piece.depart(Instant::now()).is_ok(), piece).0);
            let outcome = member.give_up().unwrap_err().outcome;
            let was_sent = sender.join().unwrap();
            assert_eq!(outcome == Outcome::NotApplied, !was_sent, "exactly one side wins");
        }
    }

    #[test]
    fn an_applied_half_is_never_told_as_not_applied() {
        let (member, mut piece, mut answered) = member(Rights::default(), None);
        piece.depart(Instant::now()).unwrap();
        piece.did_not_run(); // 413
        let (mut left, mut right) = halves(piece);
        left.depart(Instant::now()).unwrap();
        let told = member.give_up().unwrap_err();
        assert_eq!(told.outcome, Outcome::Partial, "one half is on its way, the other is not sent any more");
        let parts = told.parts.unwrap();
        assert_eq!((ids(&parts.unknown), ids(&parts.not_applied)), (vec!["c0", "c1"], vec!["c2", "c3"]));
        left.settle(&APPLIED);
        let refused = right.depart(Instant::now()).unwrap_err();
        right.settle(&Settlement::Failed(refused));
        let end = answered.try_recv().unwrap().unwrap_err();
        assert_eq!((end.outcome, end.calls), (Outcome::Partial, 2));
        let parts = end.parts.unwrap();
        assert_eq!((ids(&parts.applied), ids(&parts.not_applied)), (vec!["c0", "c1"], vec!["c2", "c3"]));
    }

    #[test]
    fn after_a_failure_nothing_more_is_sent_and_the_worse_of_two_is_told() {
        let (_member, piece, mut answered) = member(Rights::default(), None);
        let (mut left, mut right) = halves(piece);
        left.depart(Instant::now()).unwrap();
        right.depart(Instant::now()).unwrap();
        left.settle(&failed(Error::CustomerNotFound));
        right.settle(&failed(Error::Unavailable { status: 503 }));
        let end = answered.try_recv().unwrap().unwrap_err();
        assert!(matches!(*end.error, Error::Unavailable { .. }));
        assert_eq!(ids(&end.parts.unwrap().unknown), ["c2", "c3"]);

        let (_member, piece, _answered) = member(Rights::default(), None);
        let (mut left, mut right) = halves(piece);
        left.depart(Instant::now()).unwrap();
        left.settle(&failed(Error::Conflict));
        assert!(matches!(*right.depart(Instant::now()).unwrap_err(), Error::Conflict));
    }

    #[test]
    fn a_dropped_piece_is_settled_by_what_is_known_of_it() {
        for (is_sent, outcome) in [(false, Outcome::NotApplied), (true, Outcome::Unknown)] {
            let (_member, mut piece, mut answered) = member(Rights::default(), None);
            if is_sent {
                piece.depart(Instant::now()).unwrap();
            }
            drop(piece);
            assert_eq!(answered.try_recv().unwrap().unwrap_err().outcome, outcome);
        }
    }

    #[test]
    fn the_moment_of_sending_asks_again() {
        let forbidden = Rights { may_send: Box::new(|| Err("read_only".to_owned())), ..Rights::default() };
        let (_member, mut piece, _answered) = member(forbidden, None);
        assert!(matches!(*piece.depart(Instant::now()).unwrap_err(), Error::NotPermitted { .. }));
        let now = Instant::now();
        let (_member, mut piece, _answered) = member(Rights::default(), Some(now + SHORTEST_CALL / 2));
        assert!(matches!(*piece.depart(now).unwrap_err(), Error::Deadline { nothing_was_sent: true }));
    }

    #[test]
    fn a_call_that_was_not_made_is_not_counted() {
        let (_member, mut piece, mut answered) = member(Rights::default(), None);
        piece.depart(Instant::now()).unwrap();
        piece.was_not_sent();
        piece.settle(&failed(Error::Down { retry_after: Duration::ZERO }));
        let end = answered.try_recv().unwrap().unwrap_err();
        assert_eq!((end.calls, end.outcome), (0, Outcome::NotApplied));
    }
}
