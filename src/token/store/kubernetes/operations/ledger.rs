//! The operations of a day as one list, and the decisions about them. Pure, with `now` as an argument.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::token::store::operations::StoredOperation;

/// The operations, in the order of their claims.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OperationLedger {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    owner: String,
    request_id: Uuid,
    operation_id: Uuid,
    /// When it was first claimed, in milliseconds.
    at: u64,
    /// Its id may be another's.
    is_free: bool,
    /// It has ended.
    is_over: bool,
    /// Nothing more can be left out.
    is_short: bool,
    text: String,
}

impl OperationLedger {
    /// Drops what ended its time. What runs by then is lost.
    pub(super) fn forget(&mut self, now: u64, remembered_ms: u64) {
        self.entries.retain(|entry| entry.at.saturating_add(remembered_ms) > now);
    }

    /// Takes in each if no other operation holds its id; the holders of the others.
    pub(super) fn claim(&mut self, operations: &[StoredOperation], now: u64) -> Vec<Option<Uuid>> {
        operations.iter().map(|operation| self.claim_one(operation, now)).collect()
    }

    fn claim_one(&mut self, operation: &StoredOperation, now: u64) -> Option<Uuid> {
        let StoredOperation { owner, request_id, operation_id, .. } = operation;
        if let Some(own) = self.entries.iter_mut().find(|entry| entry.operation_id == *operation_id) {
            // One that has freed its id is over: a claim that comes after that was late.
            if own.is_over {
                return Some(*operation_id);
            }
            own.replace(operation);
            return None;
        }
        let holder = self.entries.iter().find(|entry| entry.is(owner, *request_id) && !entry.is_free);
        if let Some(holder) = holder {
            return Some(holder.operation_id);
        }
        self.entries.push(Entry::new(operation, now));
        None
    }

    /// Replaces the texts of these. One that was never seen and is free is put there all the same: its claim may still be
    /// on its way.
    pub(super) fn end(&mut self, operations: &[StoredOperation], now: u64) {
        for operation in operations {
            match self.entries.iter_mut().find(|entry| entry.operation_id == operation.operation_id) {
                Some(entry) if entry.is_over && operation.is_surmised => {}
                Some(entry) => entry.replace(operation),
                None if operation.is_free => self.entries.push(Entry::new(operation, now)),
                None => {}
            }
        }
    }

    /// The operation that holds this id, or the last one that has freed it.
    pub(super) fn find_request(&self, owner: &str, request_id: Uuid) -> Option<Vec<u8>> {
        let of_it = || self.entries.iter().rev().filter(|entry| entry.is(owner, request_id));
        let found = of_it().find(|entry| !entry.is_free).or_else(|| of_it().next());
        found.map(Entry::bytes)
    }

    pub(super) fn find(&self, owner: &str, operation_id: Uuid) -> Option<Vec<u8>> {
        let found = self.entries.iter().find(|entry| entry.operation_id == operation_id && entry.owner == owner);
        found.map(Entry::bytes)
    }

    /// Newest first.
    pub(super) fn list(&self, owner: &str, before: Option<Uuid>, most: usize) -> Vec<Vec<u8>> {
        let is_before = |entry: &&Entry| before.is_none_or(|before| entry.operation_id < before);
        let mut page: Vec<_> = self.entries.iter().filter(|entry| entry.owner == owner).filter(is_before).collect();
        page.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.operation_id));
        page.into_iter().take(most).map(Entry::bytes).collect()
    }

    /// Leaves out so many bytes, the oldest first: lists of customers of what has ended; what has ended and whose id keeps
    /// nothing from running twice; lists of what still runs, whose end brings them again. False: nothing is left to give.
    pub(super) fn give_way(&mut self, bytes: usize, shorten: fn(&[u8]) -> Option<Vec<u8>>) -> bool {
        let mut left = bytes;
        let shorten_all = |entries: &mut Vec<Entry>, left: &mut usize, over: bool| {
            let long = entries.iter_mut().filter(|entry| entry.is_over == over && !entry.is_short);
            for entry in long {
                if *left == 0 {
                    return;
                }
                *left = left.saturating_sub(entry.shorten(shorten));
            }
        };
        shorten_all(&mut self.entries, &mut left, true);
        self.entries.retain(|entry| {
            let goes = left > 0 && entry.is_over && (entry.is_free || entry.request_id == entry.operation_id);
            if goes {
                left = left.saturating_sub(entry.text.len());
            }
            !goes
        });
        shorten_all(&mut self.entries, &mut left, false);
        left < bytes
    }
}

impl Entry {
    fn new(operation: &StoredOperation, now: u64) -> Self {
        let StoredOperation { owner, request_id, operation_id, .. } = operation;
        let mut entry = Self {
            owner: owner.clone(),
            request_id: *request_id,
            operation_id: *operation_id,
            at: now,
            is_free: false,
            is_over: false,
            is_short: false,
            text: String::new(),
        };
        entry.replace(operation);
        entry
    }

    fn replace(&mut self, operation: &StoredOperation) {
        (self.is_free, self.is_over, self.is_short) = (operation.is_free, operation.is_over, false);
        self.text.clone_from(&operation.text);
    }

    fn is(&self, owner: &str, request_id: Uuid) -> bool {
        self.request_id == request_id && self.owner == owner
    }

    fn bytes(&self) -> Vec<u8> {
        self.text.clone().into_bytes()
    }

    /// How many bytes that gave.
    fn shorten(&mut self, shorten: fn(&[u8]) -> Option<Vec<u8>>) -> usize {
        self.is_short = true;
        let short = shorten(self.text.as_bytes()).and_then(|short| String::from_utf8(short).ok());
        let Some(short) = short.filter(|short| short.len() < self.text.len()) else { return 0 };
        let before = std::mem::replace(&mut self.text, short).len();
        before - self.text.len()
    }
}
