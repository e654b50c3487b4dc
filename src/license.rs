//! What we talk about: services, customers, scopes. No I/O, no transport.
//!
//! A value that exists is valid: a [`Scope`] cannot be empty, and cannot be wide by accident.

mod etag;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod resolved;

use std::{collections::HashSet, fmt, sync::Arc};

use uuid::Uuid;

pub use self::{
    etag::{Etag, NoEtag},
    resolved::{Customer, Resolved},
};

/// The most customers that one request may name. Central documents no maximum; this is our own cap.
pub const MAX_CUSTOMERS: usize = 1_000;
/// The most services that one request may name. Our own cap, as above.
pub const MAX_SERVICES: usize = 100;
/// The longest customer id or service name, in characters. Central documents no grammar; ids are usually 32 long.
pub const MAX_NAME_LENGTH: usize = 128;
/// The longest reason, in characters.
pub const MAX_REASON_LENGTH: usize = 512;

/// Who calls. Requests of the same name, proved in the same way, share one lane of the queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Caller {
    name: Arc<str>,
    is_of_token: bool,
}

impl Caller {
    /// The caller of this name.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), is_of_token: false }
    }

    /// The bearer of tokens with this subject: somebody else than the caller of the same name.
    pub fn of_token(subject: &str) -> Self {
        Self { is_of_token: true, ..Self::new(subject) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.name
    }
}

/// One accepted request: whose licences, of which services, why, and bound to which preview.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unassignment {
    /// Whose licences are taken away.
    pub scope: Scope,
    /// Which licences.
    pub services: Services,
    /// Why, in the caller's words; may be empty.
    pub reason: Reason,
    /// The preview that it is bound to: if the set of customers has changed, nothing is sent.
    pub etag: Option<Etag>,
}

/// Whose licences are taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Exactly these customers: a closed set.
    Include(Customers),
    /// Every customer and the MSP's own devices, except these: an open set.
    Exclude(Customers),
    /// Every customer: an open set. Only [`Scope::everyone`] makes it, and nothing else does.
    All(Everyone),
}

/// Proof that somebody asked for everyone in so many words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Everyone(());

impl Scope {
    /// Everyone. For a caller who said so explicitly; never for a list that happened to be empty.
    pub fn everyone() -> Self {
        Self::All(Everyone(()))
    }

    /// Whether the set depends on who is a customer at the moment Central acts.
    pub fn is_open(&self) -> bool {
        match self {
            Self::Include(_) => false,
            Self::Exclude(_) | Self::All(_) => true,
        }
    }

    /// Exactly those who are touched, where that is known.
    pub fn listed(&self) -> Option<&Customers> {
        match self {
            Self::Include(customers) => Some(customers),
            Self::Exclude(_) | Self::All(_) => None,
        }
    }
}

/// One to [`MAX_CUSTOMERS`] different customers, in the caller's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Customers(Vec<CustomerId>);

/// One to [`MAX_SERVICES`] different services, in the caller's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Services(Vec<ServiceName>);

/// Why a list is not a set of the right size. Positions count from 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// The list is empty.
    #[error("must not be empty; an empty list never means everyone")]
    Empty,
    /// The list is longer than allowed.
    #[error("has {length} entries; at most {max} are allowed")]
    TooLong {
        /// How long it is.
        length: usize,
        /// How long it may be.
        max: usize,
    },
    /// An entry stands twice.
    #[error("repeats entry {first}; list every entry once")]
    Duplicate {
        /// Where it stands again.
        position: usize,
        /// Where it stood first.
        first: usize,
    },
}

impl Customers {
    /// A set of customers, or everything that is wrong with the list.
    pub fn new(ids: Vec<CustomerId>) -> Result<Self, Vec<ListError>> {
        check_set(&ids, MAX_CUSTOMERS)?;
        Ok(Self(ids))
    }

    /// The customers, in order.
    pub fn ids(&self) -> &[CustomerId] {
        &self.0
    }

    /// How many there are: at least one.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The union of sets, in the order of first appearance; none if there is no set. Who asks sees to it that there are
    /// not more than [`MAX_CUSTOMERS`].
    pub fn together<'a>(sets: impl IntoIterator<Item = &'a Self>) -> Option<Self> {
        let mut sets = sets.into_iter().peekable();
        sets.peek()?;
        let mut seen = HashSet::new();
        Some(Self(sets.flat_map(|set| &set.0).filter(|id| seen.insert(*id)).cloned().collect()))
    }

    /// Both halves; none if there is nothing to halve.
    pub fn halves(&self) -> Option<(Self, Self)> {
        let (left, right) = self.0.split_at(self.0.len() / 2);
        (!left.is_empty()).then(|| (Self(left.to_vec()), Self(right.to_vec())))
    }
}

impl Services {
    /// A set of services, or everything that is wrong with the list.
    pub fn new(names: Vec<ServiceName>) -> Result<Self, Vec<ListError>> {
        check_set(&names, MAX_SERVICES)?;
        Ok(Self(names))
    }

    /// The services, in order.
    pub fn names(&self) -> &[ServiceName] {
        &self.0
    }
}

/// Every way in which a list is not a set of 1 to `max` entries.
pub fn check_set<T: Eq + std::hash::Hash>(list: &[T], max: usize) -> Result<(), Vec<ListError>> {
    if list.is_empty() {
        return Err(vec![ListError::Empty]);
    }
    if list.len() > max {
        return Err(vec![ListError::TooLong { length: list.len(), max }]);
    }
    let mut seen = HashSet::with_capacity(list.len());
    let duplicates: Vec<_> = list
        .iter()
        .enumerate()
        .filter(|(_, entry)| !seen.insert(*entry))
        .map(|(position, entry)| ListError::Duplicate {
            position,
            first: list.iter().position(|other| other == entry).unwrap_or(position),
        })
        .collect();
    if duplicates.is_empty() { Ok(()) } else { Err(duplicates) }
}

/// Central's id of a customer: opaque, 1 to [`MAX_NAME_LENGTH`] visible ASCII characters, kept as it was given.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CustomerId(String);

/// Central's name of a service, such as `advanced_ap`: 1 to [`MAX_NAME_LENGTH`] visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName(String);

/// What is wrong with an id, a name or a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// It is empty or all blank.
    #[error("must not be blank")]
    Blank,
    /// It is too long.
    #[error("has {length} characters; at most {max} are allowed")]
    TooLong {
        /// How long it is.
        length: usize,
        /// How long it may be.
        max: usize,
    },
    /// It holds a character other than visible ASCII.
    #[error("holds a character at position {position} that is not visible ASCII (blanks are not trimmed)")]
    NotVisibleAscii {
        /// Where, in characters from 0.
        position: usize,
    },
    /// It holds a control character.
    #[error("holds a control character at position {position}")]
    Control {
        /// Where, in characters from 0.
        position: usize,
    },
}

impl CustomerId {
    /// The id as given, neither trimmed nor re-cased.
    pub fn new(id: String) -> Result<Self, TextError> {
        check_name(&id)?;
        Ok(Self(id))
    }

    /// The id, spelled as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ServiceName {
    /// The name as given, neither trimmed nor re-cased.
    pub fn new(name: String) -> Result<Self, TextError> {
        check_name(&name)?;
        Ok(Self(name))
    }

    /// The name, spelled as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CustomerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check_name(text: &str) -> Result<(), TextError> {
    if text.trim().is_empty() {
        return Err(TextError::Blank);
    }
    check_length(text, MAX_NAME_LENGTH)?;
    match text.chars().position(|c| !c.is_ascii_graphic()) {
        Some(position) => Err(TextError::NotVisibleAscii { position }),
        None => Ok(()),
    }
}

fn check_length(text: &str, max: usize) -> Result<(), TextError> {
    match text.chars().count() {
        length if length > max => Err(TextError::TooLong { length, max }),
        _ => Ok(()),
    }
}

/// Why an operation was asked for: at most [`MAX_REASON_LENGTH`] characters, no control characters, may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reason(String);

impl Reason {
    /// The reason as given.
    pub fn new(reason: String) -> Result<Self, TextError> {
        check_length(&reason, MAX_REASON_LENGTH)?;
        match reason.chars().position(char::is_control) {
            Some(position) => Err(TextError::Control { position }),
            None => Ok(Self(reason)),
        }
    }

    /// The reason; may be empty.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Names one request in the answer, the log and the trace. A UUID of version 7: sorts by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OperationId(Uuid);

impl OperationId {
    /// A new one.
    #[allow(clippy::new_without_default)] // two defaults would differ
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The UUID itself.
    pub fn as_uuid(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether anything happened. Machine-readable in every failure as the metadata `outcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Central accepted it.
    Applied,
    /// Surely nothing was changed.
    NotApplied,
    /// Some of it was done.
    Partial,
    /// Central may have acted on it.
    Unknown,
}

impl Outcome {
    /// The word that stands in answers, logs and traces.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::NotApplied => "not_applied",
            Self::Partial => "partial",
            Self::Unknown => "unknown",
        }
    }
}
