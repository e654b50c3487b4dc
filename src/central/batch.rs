//! Requests that wait for the same slot, with the same services, in one call.
//!
//! Pure but for settling the pieces that it holds. The queue they wait in is [`super::queue`].

use std::{
    borrow::Cow,
    collections::HashSet,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use tokio::time::Instant;
use uuid::Uuid;

use super::{
    Error,
    fate::{Member, Piece, Settlement},
};
use crate::{
    audit::{Operation, record::Intent},
    license::{Caller, Customers, MAX_CUSTOMERS, Scope, ServiceName, Services, Unassignment},
    operations::Held,
    telemetry::{Origin, queue::QueueWait},
};

/// After this many requests refused one by one, and none accepted, the refusal is not about one of them. (An unknown
/// customer is: those are asked about to the end.)
const UNIFORM_AFTER: u32 = 4;

/// A piece in a batch, with its wait for the first call.
#[derive(Debug)]
struct BatchEntry {
    piece: Piece,
    waiting: Option<QueueWait>,
}

/// One set of customers, and every piece that asks for exactly that. Never empty in a queue.
#[derive(Debug)]
struct BatchPlace {
    /// None: an open scope.
    customers: Option<Customers>,
    entries: Vec<BatchEntry>,
}

/// What goes out as one call.
#[derive(Debug)]
pub(super) struct Batch {
    /// The services, sorted: what requests must have in common.
    key: Vec<ServiceName>,
    /// What the first request asked for.
    wanted: Arc<Operation>,
    /// Never empty in a queue. More than one only if all scopes are `include`.
    places: Vec<BatchPlace>,
    /// How many customers there are at most: a customer that several places name counts several times.
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
    uniform: OnceLock<Arc<Error>>,
}

/// What happens after a batch was refused.
#[derive(Debug)]
pub(super) enum AfterRefusal {
    /// All of it failed.
    Fail(Batch, Arc<Error>),
    /// Both halves are sent: to find out which request the refusal is about, or because together they are too large.
    Halve(Batch, Batch),
}

impl Batch {
    /// A batch of one request.
    pub(super) fn new(piece: Piece, waiting: Option<QueueWait>) -> Self {
        let wanted = Arc::clone(&piece.member().operation);
        let unassignment = &wanted.unassignment;
        let customers = unassignment.scope.listed().cloned();
        Self {
            key: key(&unassignment.services),
            is_open: may_share(unassignment),
            customer_count: customers.as_ref().map_or(0, Customers::count),
            resolved: None,
            places: vec![BatchPlace { customers, entries: vec![BatchEntry { piece, waiting }] }],
            tally: Arc::default(),
            wanted,
        }
    }

    /// Whether a request may join.
    pub(super) fn takes(&self, wanted: &Unassignment, key: &[ServiceName]) -> bool {
        let Some(customers) = wanted.scope.listed() else { return false };
        self.is_open
            && may_share(wanted)
            && self.key == key
            && (self.customer_count + customers.count() <= MAX_CUSTOMERS
                || self.places.iter().any(|place| place.is_of(customers)))
    }

    /// Adds a request that it [`takes`](Self::takes). Requests for the same customers share a place.
    pub(super) fn add(&mut self, piece: Piece, waiting: Option<QueueWait>) {
        let customers = piece.member().operation.unassignment.scope.listed().cloned();
        let same = customers.as_ref().and_then(|customers| self.places.iter_mut().find(|place| place.is_of(customers)));
        if let Some(place) = same {
            place.entries.push(BatchEntry { piece, waiting });
        } else {
            self.customer_count += customers.as_ref().map_or(0, Customers::count);
            self.places.push(BatchPlace { customers, entries: vec![BatchEntry { piece, waiting }] });
        }
    }

    /// The caller in whose lane it waits.
    pub(super) fn caller(&self) -> Option<&Caller> {
        self.pieces().next().map(Piece::caller)
    }

    /// The moment of sending: pieces that may not be sent any more stay behind, the others are on their way.
    pub(super) fn depart(&mut self, now: Instant) {
        self.leave(|entry| {
            let departed = entry.piece.depart(now);
            if departed.is_ok()
                && let Some(waiting) = entry.waiting.take()
            {
                waiting.ended();
            }
            departed.err()
        });
    }

    /// Pieces that could not be sent as things stand leave now.
    pub(super) fn leave_if_refused(&mut self, now: Instant) {
        self.leave(|entry| entry.piece.may_depart(now).err());
    }

    /// Pieces that cannot wait until `at` leave with this error.
    pub(super) fn leave_before(&mut self, at: Instant, error: &Arc<Error>) {
        self.leave(|entry| entry.piece.until().is_some_and(|until| until <= at).then(|| Arc::clone(error)));
    }

    /// Pieces leave whose request another replica has taken.
    pub(super) fn leave_held(&mut self, held: &[Held]) {
        self.leave(|entry| {
            let id = entry.piece.member().operation.id.as_uuid();
            let held = held.iter().find(|held| held.operation_id == id)?;
            Some(Arc::new(Error::HeldElsewhere { operation_id: held.by }))
        });
    }

    fn leave(&mut self, mut why: impl FnMut(&mut BatchEntry) -> Option<Arc<Error>>) {
        for place in &mut self.places {
            for mut entry in std::mem::take(&mut place.entries) {
                match why(&mut entry) {
                    Some(error) => entry.piece.settle(&Settlement::Failed(error)),
                    None => place.entries.push(entry),
                }
            }
        }
        self.places.retain(|place| !place.entries.is_empty());
    }

    /// What the call is meant to do for each request in it.
    pub(super) fn intents(&self) -> Vec<Intent> {
        let travelling = self.count();
        let intent = |place: &BatchPlace, entry: &BatchEntry| {
            let piece = &entry.piece;
            piece.member().operation.intent(piece.next_intent(), travelling, place.customers.as_ref(), self.resolved)
        };
        self.places.iter().flat_map(|place| place.entries.iter().map(move |entry| intent(place, entry))).collect()
    }

    /// The operations in it.
    pub(super) fn operation_ids(&self) -> Vec<Uuid> {
        self.pieces().map(|piece| piece.member().operation.id.as_uuid()).collect()
    }

    /// The call surely did not run: callers may give up again.
    pub(super) fn did_not_run(&self) {
        self.pieces().for_each(Piece::did_not_run);
    }

    /// The call was not made after all.
    pub(super) fn was_not_sent(&self) {
        self.pieces().for_each(Piece::was_not_sent);
    }

    /// Whether nobody is left.
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// How many requests are in it.
    pub(super) fn count(&self) -> usize {
        self.pieces().count()
    }

    /// When the last of them stops waiting; none: one of them has no deadline.
    pub(super) fn until(&self) -> Option<Instant> {
        self.pieces().map(Piece::until).max_by_key(|until| (until.is_none(), *until)).flatten()
    }

    /// Whether one of the callers has set how long they wait.
    pub(super) fn has_callers_deadline(&self) -> bool {
        self.pieces().any(|piece| piece.member().has_callers_deadline())
    }

    /// What is sent: the union of all customers. None if nobody is left.
    pub(super) fn scope(&self) -> Option<Cow<'_, Scope>> {
        let (first, others) = self.places.split_first()?;
        let scope = &self.wanted.unassignment.scope;
        match &first.customers {
            Some(customers) if others.is_empty() && scope.listed() == Some(customers) => Some(Cow::Borrowed(scope)),
            Some(_) => {
                let customers = self.places.iter().filter_map(|place| place.customers.as_ref());
                Customers::together(customers).map(|customers| Cow::Owned(Scope::Include(customers)))
            }
            None => Some(Cow::Borrowed(scope)),
        }
    }

    /// The services of all, in the order of the first request.
    pub(super) fn services(&self) -> &Services {
        &self.wanted.unassignment.services
    }

    /// Whether it may be sent only to the customers of a preview. An open scope always: it does not get here without
    /// an etag, and if one did, it would match no preview.
    pub(super) fn is_bound(&self) -> bool {
        !may_share(&self.wanted.unassignment)
    }

    /// The one request in it, for what is never shared; none if it has left.
    pub(super) fn sole(&self) -> Option<&Arc<Member>> {
        self.pieces().next().map(Piece::member)
    }

    /// So many customers are in scope, as previewed. Its wait in the queue is over: a long list takes longer to read than
    /// a request may wait, and from here the deadline alone counts.
    pub(super) fn confirmed(&mut self, resolved: usize) {
        self.resolved = Some(resolved);
        for entry in self.places.iter_mut().flat_map(|place| &mut place.entries) {
            entry.piece.patience = None;
            entry.piece.member().resolved(resolved);
        }
    }

    /// The requests' traces.
    pub(super) fn origins(&self) -> Vec<Origin> {
        self.pieces().map(|piece| piece.member().origin().clone()).collect()
    }

    /// The end of all of it.
    pub(super) fn settle(self, settlement: &Settlement) {
        if let Settlement::Applied { .. } = settlement {
            self.tally.accepted.fetch_add(1, Relaxed);
        }
        for entry in self.places.into_iter().flat_map(|place| place.entries) {
            entry.piece.settle(settlement);
        }
    }

    /// All of it failed.
    pub(super) fn fail(self, error: impl Into<Arc<Error>>) {
        self.settle(&Settlement::Failed(error.into()));
    }

    /// A refusal of its siblings that holds for it too: it need not be sent.
    pub(super) fn uniform_refusal(&self) -> Option<Arc<Error>> {
        self.tally.uniform.get().cloned()
    }

    /// What to do about a refusal: it may be about one of several requests, or about their size.
    pub(super) fn after(self, error: Error) -> AfterRefusal {
        let error = Arc::new(error);
        let may_be_one_requests = match *error {
            Error::CustomerNotFound | Error::TooLarge { .. } => true,
            Error::ArgumentRejected { .. } | Error::PermissionDenied | Error::Conflict => !self.is_uniform(&error),
            _ => false,
        };
        if may_be_one_requests && self.places.len() > 1 {
            return self.halves();
        }
        // A closed scope only: each half of an `exclude` list would reach the customers that the other half spares.
        let halves = match (&*error, self.places.first()) {
            (Error::TooLarge { .. }, Some(place)) => place.customers.as_ref().and_then(Customers::halves),
            _ => None,
        };
        match halves {
            Some((left, right)) => self.split(left, right),
            None => AfterRefusal::Fail(self, error),
        }
    }

    /// Whether a refusal plainly holds for all that were refused together.
    fn is_uniform(&self, error: &Arc<Error>) -> bool {
        let single = u32::from(self.places.len() == 1);
        let refused = self.tally.refused.fetch_add(single, Relaxed) + single;
        let is_uniform = refused >= UNIFORM_AFTER && self.tally.accepted.load(Relaxed) == 0;
        if is_uniform {
            let _ = self.tally.uniform.set(Arc::clone(error));
        }
        is_uniform
    }

    /// Half of the places each.
    fn halves(mut self) -> AfterRefusal {
        let right = self.places.split_off(self.places.len() / 2);
        let left = std::mem::take(&mut self.places);
        AfterRefusal::Halve(self.part(left), self.part(right))
    }

    /// Half of the customers of its only place each.
    fn split(mut self, left: Customers, right: Customers) -> AfterRefusal {
        let entries = self.places.drain(..).flat_map(|place| place.entries);
        let (lefts, rights) = entries
            .map(|BatchEntry { piece, waiting }| {
                let (one, other) = piece.split(&left, &right);
                (BatchEntry { piece: one, waiting }, BatchEntry { piece: other, waiting: None })
            })
            .unzip();
        let left = vec![BatchPlace { customers: Some(left), entries: lefts }];
        let right = vec![BatchPlace { customers: Some(right), entries: rights }];
        AfterRefusal::Halve(self.part(left), self.part(right))
    }

    /// A batch of these places, which nobody joins.
    fn part(&self, places: Vec<BatchPlace>) -> Self {
        Self {
            key: self.key.clone(),
            wanted: places.first().map_or(&self.wanted, |place| &place.entries[0].piece.member().operation).clone(),
            places,
            customer_count: 0, // nobody asks
            is_open: false,
            resolved: self.resolved,
            tally: Arc::clone(&self.tally),
        }
    }

    fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.places.iter().flat_map(|place| place.entries.iter().map(|entry| &entry.piece))
    }
}

impl BatchPlace {
    /// Whether it is for the same customers, in any order.
    fn is_of(&self, customers: &Customers) -> bool {
        let (one, other) = match &self.customers {
            Some(own) => (own.ids(), customers.ids()),
            None => return false,
        };
        if one.len() != other.len() {
            return false;
        }
        if one.len() == 1 || one == other {
            return one == other;
        }
        if !other.contains(&one[0]) {
            return false; // the usual case, without a set
        }
        let one: HashSet<_> = one.iter().collect();
        other.iter().all(|id| one.contains(id))
    }
}

/// Whether a request may share a call. An open scope does not: a call has room for one of them, and a mistake in it must
/// not be another caller's. Nor does what is bound to a preview: its pre-send check is its own.
fn may_share(wanted: &Unassignment) -> bool {
    matches!(wanted.scope, Scope::Include(_)) && wanted.etag.is_none()
}

/// What requests must have in common to share a call.
pub(super) fn key(services: &Services) -> Vec<ServiceName> {
    let mut names = services.names().to_vec();
    names.sort();
    names
}
