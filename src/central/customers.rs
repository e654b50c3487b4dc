//! The list of all customers, page by page. What a page means for the next one is decided by the pure [`Pages`].
//!
//! A set that lacks somebody is worse than none: a preview would show too few, and an etag would bind to them. So what
//! does not add up is refused.

use std::collections::HashSet;

use super::{
    Error,
    dispatch::{Dispatch, Read, Reads},
    wire::listings::{self, CustomerPage},
};
use crate::license::{Customer, CustomerId};

/// Lists the MSP's customers.
const CUSTOMERS: &str = "/msp_api/v1/customers";
/// How many are asked for at once: what HPE's own library asks for.
const PAGE: usize = 100;
/// 10,000 customers. An account with more would spend a fiftieth of its day on every list.
const MOST_PAGES: u32 = 100;
/// How often a list is begun that changes while it is read.
const MOST_ROUNDS: u32 = 3;
/// What a list may cost, repeats and new beginnings included.
pub(super) const MOST_CALLS: u32 = 120;

/// Why a list of customers cannot be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Somebody is in it of whom the id is not known.
    #[error("an entry has no customer_id")]
    NoId,
    /// There are more than it has.
    #[error("it has {listed} entries, and by its own word there are {total}")]
    Short {
        /// How many entries came.
        listed: u64,
        /// How many there are by Central's word.
        total: u64,
    },
    /// Page follows page and brings nobody new.
    #[error("its pages repeat each other")]
    Repeating,
    /// It was another one each time.
    #[error("it changed each of the {MOST_ROUNDS} times that it was read")]
    Unsettled,
    /// It does not end.
    #[error("it has more than {MOST_PAGES} pages of {PAGE}, or takes more than {MOST_CALLS} calls")]
    TooLong,
}

impl Dispatch {
    /// Everybody who is a customer now, each once.
    pub(super) async fn list_customers(&self, reads: &mut Reads<'_>) -> Result<Vec<Customer>, Error> {
        let mut pages = Pages::default();
        loop {
            if reads.left == 0 {
                return Err(Error::ListUnreliable(Flaw::TooLong));
            }
            let (offset, limit) = (pages.received.to_string(), PAGE.to_string());
            let read = Read { path: CUSTOMERS, query: &[("offset", &offset), ("limit", &limit)], headers: &[] };
            let answer = self.read(read, reads).await.map_err(|error| match error {
                // No customer was named: it is the operation that is not there.
                Error::CustomerNotFound => Error::EndpointNotFound,
                error => error,
            })?;
            let page = listings::customer_page(&answer.body).ok_or(Error::Unreadable { status: answer.status })?;
            if pages.take(page).map_err(Error::ListUnreliable)? == Next::Done {
                return Ok(pages.customers);
            }
        }
    }
}

/// The pages that came so far.
#[derive(Debug, Default)]
struct Pages {
    customers: Vec<Customer>,
    seen: HashSet<CustomerId>,
    /// Entries, with those that stand twice: where the next page begins.
    received: usize,
    /// By the first page's word.
    total: Option<u64>,
    count: u32,
    /// How often it was begun anew.
    restarts: u32,
}

/// What a page means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// There may be more.
    More,
    /// That was all.
    Done,
}

impl Pages {
    /// Takes the page that begins where the last one ended.
    fn take(&mut self, page: CustomerPage) -> Result<Next, Flaw> {
        // Somebody came or went: offsets have moved, and who was skipped is not seen.
        if self.count > 0 && page.total.is_some() && self.total.is_some() && page.total != self.total {
            if self.restarts + 1 == MOST_ROUNDS {
                return Err(Flaw::Unsettled);
            }
            *self = Self { restarts: self.restarts + 1, ..Self::default() };
            return Ok(Next::More);
        }
        self.count += 1;
        self.total = page.total.or(self.total);
        let customers = page.customers.ok_or(Flaw::NoId)?;
        let (length, known) = (customers.len(), self.customers.len());
        self.received += length;
        for customer in customers {
            if self.seen.insert(customer.id.clone()) {
                self.customers.push(customer);
            }
        }
        let listed = self.received as u64;
        // A full page says nothing of whether there are more, and a short one may be as long as Central's pages get:
        // only a short one that fits the total is the end, or an empty one.
        match self.total {
            Some(total) if length < PAGE && listed >= total => return Ok(Next::Done),
            Some(total) if length == 0 => return Err(Flaw::Short { listed, total }),
            None if length == 0 => return Ok(Next::Done),
            _ => {}
        }
        if length >= PAGE && self.customers.len() == known {
            return Err(Flaw::Repeating);
        }
        if self.count == MOST_PAGES {
            return Err(Flaw::TooLong);
        }
        Ok(Next::More)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that cannot go on fails
mod tests {
    use std::ops::Range;

    use super::*;

    fn page(ids: Range<usize>, total: impl Into<Option<u64>>) -> CustomerPage {
        let customer = |id: usize| Customer { id: CustomerId::new(format!("c{id}")).unwrap(), name: String::new() };
        CustomerPage { customers: Some(ids.map(customer).collect()), total: total.into() }
    }

    /// How many customers a list of these pages has; it must not ask for more of them, nor end before.
    fn listed(pages: Vec<CustomerPage>) -> Result<usize, Flaw> {
        let (mut listing, count) = (Pages::default(), pages.len());
        for (index, page) in pages.into_iter().enumerate() {
            if listing.take(page)? == Next::Done {
                assert_eq!(index + 1, count, "it ended before the last page");
                return Ok(listing.customers.len());
            }
        }
        panic!("it would ask for more than {count} pages");
    }

    #[test]
    fn a_list_ends_where_it_ends_and_not_before() {
        let table: Vec<(&str, Vec<CustomerPage>, Result<usize, Flaw>)> = vec![
            ("nobody", vec![page(0..0, 0)], Ok(0)),
            ("nobody, and no total", vec![page(0..0, None)], Ok(0)),
            ("one page", vec![page(0..5, 5)], Ok(5)),
            ("a full page may not be the last", vec![page(0..100, 100), page(0..0, 100)], Ok(100)),
            ("a total that lies low", vec![page(0..100, 100), page(100..150, 100)], Ok(150)),
            ("two pages", vec![page(0..100, 150), page(100..150, 150)], Ok(150)),
            ("Central's pages are shorter", vec![page(0..50, 120), page(50..100, 120), page(100..120, 120)], Ok(120)),
            ("no total: to the empty page", vec![page(0..50, None), page(50..70, None), page(70..70, None)], Ok(70)),
            ("the limit is ignored", vec![page(0..250, 250), page(0..0, 250)], Ok(250)),
            ("who stands twice counts once", vec![page(0..100, 130), page(80..110, 130)], Ok(110)),
            ("a total that lies high", vec![page(0..5, 7), page(5..5, 7)], Err(Flaw::Short { listed: 5, total: 7 })),
            ("the offset is ignored", vec![page(0..100, 200), page(0..100, 200)], Err(Flaw::Repeating)),
            (
                "somebody came: from the beginning",
                vec![page(0..100, 150), page(99..150, 151), page(0..100, 151), page(100..151, 151)],
                Ok(151),
            ),
            (
                "it never settles",
                vec![
                    page(0..100, 150),
                    page(100..149, 149),
                    page(0..100, 150),
                    page(100..149, 149),
                    page(0..100, 150),
                    page(100..149, 149),
                ],
                Err(Flaw::Unsettled),
            ),
            ("an entry without id", vec![CustomerPage { customers: None, total: Some(1) }], Err(Flaw::NoId)),
        ];
        for (name, pages, expected) in table {
            assert_eq!(listed(pages), expected, "{name}");
        }
    }

    #[test]
    fn a_list_without_end_is_given_up() {
        for total in [None, Some(1_000_000)] {
            let endless = (0..).map(|index| page(index * 100..(index + 1) * 100, total));
            let mut pages = Pages::default();
            let mut taken = 0;
            let flaw = endless.into_iter().find_map(|page| {
                taken += 1;
                pages.take(page).err()
            });
            assert_eq!((flaw, taken), (Some(Flaw::TooLong), MOST_PAGES));
        }
    }
}
