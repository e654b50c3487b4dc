//! Reads Central's lists page by page. [`Pages`] decides what a page means for the next one; it is pure.
//!
//! A list that lacks an entry is worse than none: a preview shows too few customers, and an etag binds to them. So a list
//! that does not add up is read anew, a few times, and then refused.
//!
//! - A list is complete when as many *different* ids came as its total says. Without a total it ends with an empty page.
//! - The next offset is what was received: a server may cap its pages. Central's listings of devices want an offset that
//!   is a multiple of the limit, so after a short page the limit becomes the largest divisor of the offset that fits.
//! - A total that changes, or an id of an earlier page, means that the list moved: it is begun anew.
//!
//! What one reading cannot show: a customer who leaves and another who joins between two pages may hide a third. Two
//! readings with the same ids prove it, as long as no id comes back: every id was there from the end of the first to the
//! beginning of the second, and there were no more than those. An etag compares exactly these two readings.

use std::{collections::HashSet, hash::Hash};

use super::{
    Error,
    dispatch::{Dispatch, Read, Reads},
};

/// How many entries are asked for at once: what HPE's own library asks for.
pub(super) const PAGE: usize = 100;
/// Of a list of customers: 10,000. A longer one would spend a fiftieth of the day on every reading. Lists of devices may
/// have as many pages as their reader has calls.
const MOST_PAGES: u32 = 100;
/// How often a list is begun that moves while it is read.
const MOST_ROUNDS: u32 = 3;
/// What reading a list may cost, repeats and new beginnings included.
pub(super) const MOST_LIST_CALLS: u32 = 120;

/// Why a list cannot be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// An entry cannot be told from others.
    #[error("an entry has no id")]
    NoId,
    /// The number of different ids is not its total.
    #[error("it has {listed} different entries, and by its own word there are {total}")]
    Miscounted {
        /// How many different entries came.
        listed: u64,
        /// How many there are by Central's word.
        total: u64,
    },
    /// A page brings entries of an earlier page.
    #[error("its pages repeat each other")]
    Repeating,
    /// Its total was another one each time.
    #[error("it changed each of the {MOST_ROUNDS} times that it was read")]
    Unsettled,
    /// It does not end.
    #[error("it has more than {MOST_PAGES} pages, or takes more than {MOST_LIST_CALLS} calls")]
    TooLong,
    /// It is empty, and an account without customers cannot be told from a list that failed.
    #[error("it is empty")]
    Empty,
}

/// One page.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page<Id, T> {
    /// None: an entry has no id. Whoever leaves it out does not know the list.
    pub(super) entries: Option<Vec<(Id, T)>>,
    /// How many entries the whole list has, by Central's word.
    pub(super) total: Option<u64>,
}

/// Which list, and how its pages are read.
pub(super) struct List<'a, Id, T> {
    /// What it lists, for messages.
    pub(super) name: &'static str,
    pub(super) path: &'static str,
    /// The query beside `offset` and `limit`.
    pub(super) query: &'a [(&'a str, &'a str)],
    pub(super) headers: &'a [(&'static str, &'a str)],
    /// None: the body is not a page of this list.
    pub(super) parse: fn(&[u8]) -> Option<Page<Id, T>>,
}

impl Dispatch {
    /// Reads a list into `pages`, which hold what came whatever happens. False: the calls were spent before its end.
    pub(super) async fn read_list<Id: Clone + Eq + Hash, T>(
        &self,
        list: &List<'_, Id, T>,
        pages: &mut Pages<Id, T>,
        reads: &mut Reads<'_>,
    ) -> Result<bool, Error> {
        while reads.left > 0 {
            let (offset, limit) = (pages.received.to_string(), pages.limit.to_string());
            let query: Vec<_> = list.query.iter().copied().chain([("offset", &*offset), ("limit", &*limit)]).collect();
            let answer = self.read(Read { path: list.path, query: &query, headers: list.headers }, reads).await?;
            let page = (list.parse)(&answer.body).ok_or(Error::Unreadable { status: answer.status })?;
            match pages.take(page) {
                Ok(AfterPage::More) => {}
                Ok(AfterPage::Done) => return Ok(true),
                Err(flaw) => return Err(Error::ListUnreliable { list: list.name, flaw }),
            }
        }
        Ok(false)
    }
}

/// The pages that came so far.
#[derive(Debug)]
pub(super) struct Pages<Id, T> {
    /// Each id once, in the list's order.
    entries: Vec<(Id, T)>,
    seen: HashSet<Id>,
    /// The ids of the first page, as they stood there.
    first: Vec<Id>,
    /// Entries, with those that stand twice in a page: where the next page begins.
    received: usize,
    /// How many entries to ask for next. Divides `received`.
    limit: usize,
    /// The shortest page that was not empty: Central's own limit may be lower than ours.
    shortest: usize,
    /// By the first page's word.
    total: Option<u64>,
    count: u32,
    /// How often it was begun anew.
    restarts: u32,
    /// How many entries to ask for at first.
    page: usize,
    most: u32,
}

/// What a page means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterPage {
    /// Another page is to be read.
    More,
    /// That was all.
    Done,
}

impl<Id: Clone + Eq + Hash, T> Pages<Id, T> {
    pub(super) fn new() -> Self {
        Self::bounded(PAGE, MOST_PAGES)
    }

    /// Of devices, of which a customer may have many: asks for so many at once, and ends with its reader's calls.
    pub(super) fn of_devices(page: usize) -> Self {
        Self::bounded(page, u32::MAX)
    }

    fn bounded(page: usize, most: u32) -> Self {
        Self {
            entries: Vec::new(),
            seen: HashSet::new(),
            first: Vec::new(),
            received: 0,
            limit: page,
            shortest: page,
            total: None,
            count: 0,
            restarts: 0,
            page,
            most,
        }
    }

    /// What came, each id once.
    pub(super) fn into_entries(self) -> Vec<T> {
        self.entries.into_iter().map(|(_, entry)| entry).collect()
    }

    /// The same, with their ids.
    pub(super) fn into_keyed(self) -> Vec<(Id, T)> {
        self.entries
    }

    /// Takes the page that was asked for with the offset `received` and this `limit`.
    fn take(&mut self, page: Page<Id, T>) -> Result<AfterPage, Flaw> {
        if self.count > 0 && page.total.is_some() && self.total.is_some() && page.total != self.total {
            return self.begin_anew(Flaw::Unsettled);
        }
        self.count += 1;
        self.total = page.total.or(self.total);
        let entries = page.entries.ok_or(Flaw::NoId)?;
        let length = entries.len();
        if self.count == 1 {
            self.first = entries.iter().map(|(id, _)| id.clone()).collect();
        } else if length > 0 && entries.iter().map(|(id, _)| id).eq(&self.first) {
            // The offset is ignored. That does not matter where the first page was the whole list.
            return if self.is_counted() { Ok(AfterPage::Done) } else { Err(Flaw::Repeating) };
        } else if entries.iter().any(|(id, _)| self.seen.contains(id)) {
            return self.begin_anew(Flaw::Repeating);
        }
        let is_short = length < self.limit;
        self.add(entries);
        self.after(length, is_short)
    }

    fn add(&mut self, entries: Vec<(Id, T)>) {
        let length = entries.len();
        self.received += length;
        for (id, entry) in entries {
            if self.seen.insert(id.clone()) {
                self.entries.push((id, entry));
            }
        }
        if length > 0 {
            self.shortest = self.shortest.min(length);
            self.limit = largest_divisor(self.received, self.shortest);
        }
    }

    /// What a page of this length means, now that its entries are counted. A full page says nothing of whether there are
    /// more, and a short one may be as long as Central's pages get.
    fn after(&self, length: usize, is_short: bool) -> Result<AfterPage, Flaw> {
        let listed = self.entries.len() as u64;
        match self.total {
            Some(total) if listed > total => return Err(Flaw::Miscounted { listed, total }),
            Some(total) if listed == total && is_short => return Ok(AfterPage::Done),
            Some(total) if length == 0 => return Err(Flaw::Miscounted { listed, total }),
            None if length == 0 => return Ok(AfterPage::Done),
            _ => {}
        }
        if self.count == self.most { Err(Flaw::TooLong) } else { Ok(AfterPage::More) }
    }

    fn is_counted(&self) -> bool {
        self.total == Some(self.entries.len() as u64)
    }

    /// The list moved: offsets mean something else now, and an entry that was skipped is not seen.
    fn begin_anew(&mut self, flaw: Flaw) -> Result<AfterPage, Flaw> {
        if self.restarts + 1 == MOST_ROUNDS {
            return Err(flaw);
        }
        *self = Self { restarts: self.restarts + 1, ..Self::bounded(self.page, self.most) };
        Ok(AfterPage::More)
    }
}

fn largest_divisor(number: usize, at_most: usize) -> usize {
    (1..=at_most).rev().find(|divisor| number.is_multiple_of(*divisor)).unwrap_or(1)
}

#[cfg(test)]
mod tests;
