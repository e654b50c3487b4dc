//! Who travels together: requests that wait for the same slot, with the same services, in one call.
//!
//! Pure but for telling the members what became of them. The queue they wait in is [`super::queue`].

use std::{
    borrow::Cow,
    collections::HashSet,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::{Accepted, Error, Failed, Parts, SendGate};
use crate::{
    audit::{Operation, record::Intent},
    license::{Caller, Customers, MAX_CUSTOMERS, Scope, ServiceName, Services, Unassignment},
    telemetry::{Origin, queue::QueueWait},
};

/// A call with less time than this left would almost surely end as unknown: not even a round trip within a region.
const SHORTEST_CALL: Duration = Duration::from_millis(10);

/// So many requests refused one by one, and none accepted: the refusal is not about one of them. (An unknown customer
/// is: those are asked about to the end.)
const UNIFORM_AFTER: u32 = 4;

/// One request that waits for its call, or is on its way.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) caller: Caller,
    /// What the audit trail says of it.
    pub(super) operation: Arc<Operation>,
    pub(super) gate: Arc<SendGate>,
    pub(super) origin: Origin,
    /// Its wait, until it is on its way for the first time.
    pub(super) waiting: Option<QueueWait>,
    /// When the caller stops waiting.
    pub(super) deadline: Option<Instant>,
    /// When waiting ends, for callers without a deadline too.
    pub(super) give_up: Instant,
    pub(super) answer: oneshot::Sender<Result<Accepted, Failed>>,
    /// How many calls carried it so far.
    pub(super) calls: u32,
}

impl Member {
    fn tell(self, error: &Arc<Error>, parts: Option<Box<Parts>>) {
        // Whoever has gone does not hear it.
        let _ = self.answer.send(Err(Failed { error: Arc::clone(error), calls: self.calls, parts }));
    }
}

/// One scope, and everybody who asks for exactly that. Never empty in a queue.
#[derive(Debug)]
struct Place {
    /// What the first of them asked for.
    wanted: Arc<Operation>,
    members: Vec<Member>,
}

impl Place {
    fn scope(&self) -> &Scope {
        &self.wanted.unassignment.scope
    }
}

/// What goes out as one call.
#[derive(Debug)]
pub(super) struct Batch {
    /// The services, sorted: what requests must have in common.
    key: Vec<ServiceName>,
    /// Never empty in a queue. More than one only if all scopes are `include`.
    places: Vec<Place>,
    /// How many customers there are at most: those whom several places name count several times.
    customer_count: usize,
    /// Whether others may join.
    is_open: bool,
    /// How many customers were in scope when that was last looked up.
    resolved: Option<usize>,
    tally: Arc<Tally>,
}

/// How the parts of a refused batch fared.
#[derive(Debug, Default)]
struct Tally {
    accepted: AtomicU32,
    /// Refusals of a single place.
    refused: AtomicU32,
    /// The refusal that holds for all of them.
    verdict: OnceLock<Arc<Error>>,
}

/// What happens after a batch was refused.
#[derive(Debug)]
pub(super) enum AfterRefusal {
    /// Everybody is told this.
    Tell(Batch, Arc<Error>),
    /// Both halves are sent, to find out whom the refusal is about.
    Halve(Batch, Batch),
    /// The one scope in it is sent in parts.
    Split(Batch, Customers),
}

impl Batch {
    /// A batch of one request.
    pub(super) fn new(member: Member) -> Self {
        let wanted = Arc::clone(&member.operation);
        let unassignment = &wanted.unassignment;
        Self {
            key: key(&unassignment.services),
            is_open: may_share(unassignment),
            customer_count: customer_count(&unassignment.scope),
            resolved: None,
            places: vec![Place { wanted: Arc::clone(&wanted), members: vec![member] }],
            tally: Arc::default(),
        }
    }

    /// Whether a request may join.
    pub(super) fn takes(&self, wanted: &Unassignment, key: &[ServiceName]) -> bool {
        let scope = &wanted.scope;
        self.is_open
            && may_share(wanted)
            && self.key == key
            && (self.customer_count + customer_count(scope) <= MAX_CUSTOMERS
                || self.places.iter().any(|place| is_same(place.scope(), scope)))
    }

    /// Adds a request that it [`takes`](Self::takes). Who asks for the same as somebody else shares their place.
    pub(super) fn add(&mut self, member: Member) {
        let wanted = Arc::clone(&member.operation);
        let scope = &wanted.unassignment.scope;
        let same = self.places.iter_mut().find(|place| is_same(place.scope(), scope));
        if let Some(place) = same {
            place.members.push(member);
        } else {
            self.customer_count += customer_count(scope);
            self.places.push(Place { wanted: Arc::clone(&wanted), members: vec![member] });
        }
    }

    /// Whose turn it uses.
    pub(super) fn caller(&self) -> Option<&Caller> {
        self.places.first()?.members.first().map(|member| &member.caller)
    }

    /// Before sending: whoever has given up, or has too little time left for a call, stays behind.
    pub(super) fn board(&mut self, now: Instant) {
        let late = Arc::new(Error::DeadlineBeforeSending);
        let left = Arc::new(Error::Abandoned);
        self.leave(|member| {
            if member.deadline.is_some_and(|deadline| deadline < now + SHORTEST_CALL) {
                Some(Arc::clone(&late))
            } else if member.gate.pass() {
                None
            } else {
                Some(Arc::clone(&left))
            }
        });
        for member in self.members_mut() {
            member.calls += 1;
            if let Some(waiting) = member.waiting.take() {
                waiting.ended();
            }
        }
    }

    /// What the call that they have boarded is meant to do for each of them.
    pub(super) fn intents(&self, part: Option<&Customers>) -> Vec<Intent> {
        let travelling = self.count();
        self.members().map(|member| member.operation.intent(member.calls, travelling, part, self.resolved)).collect()
    }

    /// The call is not made after all: everybody gets out, and callers may still give up.
    pub(super) fn alight(&mut self) {
        self.members_mut().for_each(|member| member.calls -= 1);
        self.reopen();
    }

    /// Those who cannot wait until `at` are told the error now.
    pub(super) fn leave_before(&mut self, at: Instant, error: &Arc<Error>) {
        self.leave(|member| (member.give_up <= at).then(|| Arc::clone(error)));
    }

    /// Those whose caller has gone leave.
    pub(super) fn leave_if_shut(&mut self) {
        let left = Arc::new(Error::Abandoned);
        self.leave(|member| member.gate.is_shut().then(|| Arc::clone(&left)));
    }

    fn leave(&mut self, mut why: impl FnMut(&Member) -> Option<Arc<Error>>) {
        for place in &mut self.places {
            for member in std::mem::take(&mut place.members) {
                match why(&member) {
                    Some(error) => member.tell(&error, None),
                    None => place.members.push(member),
                }
            }
        }
        self.places.retain(|place| !place.members.is_empty());
    }

    /// Whether nobody is left.
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// How many requests are in it.
    pub(super) fn count(&self) -> usize {
        self.places.iter().map(|place| place.members.len()).sum()
    }

    /// When the last of them stops waiting.
    pub(super) fn give_up(&self) -> Option<Instant> {
        self.members().map(|member| member.give_up).max()
    }

    /// What is sent, for everybody who is left: the union of their customers. None if nobody is.
    pub(super) fn scope(&self) -> Option<Cow<'_, Scope>> {
        let (first, others) = self.places.split_first()?;
        if others.is_empty() {
            return Some(Cow::Borrowed(first.scope()));
        }
        let closed = self.places.iter().filter_map(|place| match place.scope() {
            Scope::Include(customers) => Some(customers),
            Scope::Exclude(_) | Scope::All(_) => None,
        });
        Customers::together(closed).map(|customers| Cow::Owned(Scope::Include(customers)))
    }

    /// The services of all, as the first of them spelled their order. None if nobody is left.
    pub(super) fn services(&self) -> Option<&Services> {
        self.places.first().map(|place| &place.wanted.unassignment.services)
    }

    /// Whether it may be sent only to those whom a preview has shown. An open scope always: it does not get here without
    /// an etag, and if one did, it would match nobody's.
    pub(super) fn is_bound(&self) -> bool {
        self.places.first().is_some_and(|place| place.scope().is_open() || place.wanted.unassignment.etag.is_some())
    }

    /// The one request in it, for what travels alone; none if it has left.
    pub(super) fn sole(&self) -> Option<(Arc<Operation>, Arc<SendGate>, Option<Instant>)> {
        let member = self.members().next()?;
        Some((Arc::clone(&member.operation), Arc::clone(&member.gate), member.deadline))
    }

    /// So many customers are in scope, as previewed. Who waits has time until `give_up` for the call itself.
    pub(super) fn confirmed(&mut self, resolved: usize, give_up: Instant) {
        self.resolved = Some(resolved);
        self.members_mut().for_each(|member| member.give_up = give_up);
    }

    /// Whose work it is.
    pub(super) fn origins(&self) -> Vec<Origin> {
        self.members().map(|member| member.origin.clone()).collect()
    }

    /// What was sent surely did not run: callers may still give up.
    pub(super) fn reopen(&self) {
        self.members().for_each(|member| member.gate.reopen());
    }

    /// A part of the scope was applied.
    pub(super) fn keep(&self) {
        self.members().for_each(|member| member.gate.keep());
    }

    /// Central accepted it, with this status: everybody is told.
    pub(super) fn accepted(self, http_status: u16) {
        self.tally.accepted.fetch_add(1, Relaxed);
        let resolved = self.resolved;
        for member in self.places.into_iter().flat_map(|place| place.members) {
            let _ = member.answer.send(Ok(Accepted { calls: member.calls, http_status, resolved }));
        }
    }

    /// It failed: everybody is told.
    pub(super) fn failed(self, error: impl Into<Arc<Error>>, parts: Option<&Parts>) {
        let error = error.into();
        for member in self.places.into_iter().flat_map(|place| place.members) {
            member.tell(&error, parts.cloned().map(Box::new));
        }
    }

    /// What its siblings have shown to hold for it too: it need not be sent.
    pub(super) fn verdict(&self) -> Option<Arc<Error>> {
        self.tally.verdict.get().cloned()
    }

    /// What to do about a refusal: who is it about?
    pub(super) fn after(self, error: Error) -> AfterRefusal {
        let error = Arc::new(error);
        let may_be_one_members = match *error {
            Error::CustomerNotFound | Error::TooLarge { .. } => true,
            Error::ArgumentRejected { .. } | Error::PermissionDenied | Error::Conflict => !self.is_uniform(&error),
            _ => false,
        };
        if !may_be_one_members {
            return AfterRefusal::Tell(self, error);
        }
        if self.places.len() > 1 {
            let (left, right) = self.halves();
            return AfterRefusal::Halve(left, right);
        }
        match (&*error, self.scope().map(Cow::into_owned)) {
            (Error::TooLarge { .. }, Some(Scope::Include(customers))) if customers.count() > 1 => {
                AfterRefusal::Split(self, customers)
            }
            _ => AfterRefusal::Tell(self, error),
        }
    }

    /// Whether a refusal plainly holds for all who were refused together.
    fn is_uniform(&self, error: &Arc<Error>) -> bool {
        let single = u32::from(self.places.len() == 1);
        let refused = self.tally.refused.fetch_add(single, Relaxed) + single;
        let is_uniform = refused >= UNIFORM_AFTER && self.tally.accepted.load(Relaxed) == 0;
        if is_uniform {
            let _ = self.tally.verdict.set(Arc::clone(error));
        }
        is_uniform
    }

    /// Nobody joins a half: it is to find out whom of its members a refusal is about.
    fn halves(mut self) -> (Self, Self) {
        let right = self.places.split_off(self.places.len() / 2);
        let right = Self {
            key: self.key.clone(),
            places: right,
            customer_count: 0, // nobody asks
            is_open: false,
            resolved: None, // halves are of batches that nobody's preview binds
            tally: Arc::clone(&self.tally),
        };
        (Self { is_open: false, ..self }, right)
    }

    fn members(&self) -> impl Iterator<Item = &Member> {
        self.places.iter().flat_map(|place| &place.members)
    }

    fn members_mut(&mut self) -> impl Iterator<Item = &mut Member> {
        self.places.iter_mut().flat_map(|place| &mut place.members)
    }
}

/// Whether a request may travel with others. An open scope travels alone: a call has room for one of them, and a mistake
/// in it must not be another caller's. So does what is bound to a preview: its last look is its own.
fn may_share(wanted: &Unassignment) -> bool {
    matches!(wanted.scope, Scope::Include(_)) && wanted.etag.is_none()
}

/// What requests must have in common to travel together.
pub(super) fn key(services: &Services) -> Vec<ServiceName> {
    let mut names = services.names().to_vec();
    names.sort();
    names
}

fn customer_count(scope: &Scope) -> usize {
    match scope {
        Scope::Include(customers) => customers.count(),
        Scope::Exclude(_) | Scope::All(_) => 0,
    }
}

/// Whether both name the same customers, in any order.
fn is_same(one: &Scope, other: &Scope) -> bool {
    let (Scope::Include(one), Scope::Include(other)) = (one, other) else { return false };
    if one.count() != other.count() {
        return false;
    }
    let first = &one.ids()[0];
    if one.count() == 1 || one.ids() == other.ids() {
        return one.ids() == other.ids();
    }
    if !other.ids().contains(first) {
        return false; // the usual case, told without a set
    }
    let one: HashSet<_> = one.ids().iter().collect();
    other.ids().iter().all(|id| one.contains(id))
}
