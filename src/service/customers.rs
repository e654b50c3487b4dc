//! `ListCustomers`: the customers that a scope can name, by name, page by page.
//!
//! A page begins after the last customer of the one before, so that customers who join or leave meanwhile shift nothing.

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

use super::{
    Licensing, Rpc,
    status::{Failure, Violation},
};
use crate::{
    callers::policy::Asked,
    central::CustomerList,
    deadline::within,
    license::Customer,
    proto::{self, ListCustomersRequest, ListCustomersResponse},
};

/// How many customers a page has if nobody says.
const USUAL_PAGE: u32 = 100;
/// The most of a page: some 50 KiB.
const LONGEST_PAGE: u32 = 500;
/// The longest part of a name to look for, in characters.
const LONGEST_PART: usize = 256;

/// What is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CustomersWanted {
    page_size: usize,
    /// In lower case.
    part: String,
    after: Option<PageToken>,
}

/// Where a page ends, and of which list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PageToken {
    /// In lower case.
    part: String,
    name: String,
    id: String,
}

impl Licensing {
    pub(super) async fn customers(
        &self,
        rpc: &Rpc,
        message: ListCustomersRequest,
    ) -> Result<ListCustomersResponse, Failure> {
        let wanted = CustomersWanted::try_from(message).map_err(Failure::InvalidRequest)?;
        self.callers.admit(&rpc.identity, Asked::ListCustomers, rpc.deadline).await?;

        // In a task of its own: a call that was begun is finished, so that it is known whether Central is well. None is
        // begun for a caller who has gone.
        let asker = self.asker(rpc);
        let _leave = asker.gone.clone().drop_guard();
        let (directory, origin) = (self.directory.clone(), asker.origin.clone());
        let work = self.work.spawn(origin.run(async move { directory.list(&asker).await }));
        match within(rpc.deadline, work).await {
            Ok(Ok(Ok(list))) => Ok(page(&wanted, &list, |one| self.callers.may_touch(&rpc.identity, &one.id))),
            Ok(Ok(Err(error))) => Err(Failure::Read(error)),
            Ok(Err(_panic)) => Err(Failure::Bug { nothing_was_sent: true }),
            Err(_) => Err(Failure::ReadDeadlineExceeded),
        }
    }
}

impl TryFrom<ListCustomersRequest> for CustomersWanted {
    type Error = Vec<Violation>;

    fn try_from(message: ListCustomersRequest) -> Result<Self, Vec<Violation>> {
        let mut violations = Vec::new();
        let mut violation =
            |field: &str, problem: String| violations.push(Violation { field: field.to_owned(), problem });
        if message.page_size > LONGEST_PAGE {
            violation("page_size", format!("is {}; at most {LONGEST_PAGE} are allowed", message.page_size));
        }
        let length = message.name_contains.chars().count();
        if length > LONGEST_PART {
            violation("name_contains", format!("has {length} characters; at most {LONGEST_PART} are allowed"));
        }
        let part = message.name_contains.to_lowercase();
        let after = PageToken::read(&message.page_token).unwrap_or_else(|()| {
            violation("page_token", "is no next_page_token of this method".to_owned());
            None
        });
        if after.as_ref().is_some_and(|token| token.part != part) {
            violation("page_token", "belongs to another name_contains; begin with an empty one".to_owned());
        }
        let page_size = if message.page_size == 0 { USUAL_PAGE } else { message.page_size };
        if violations.is_empty() { Ok(Self { page_size: page_size as usize, part, after }) } else { Err(violations) }
    }
}

impl PageToken {
    fn read(text: &str) -> Result<Option<Self>, ()> {
        if text.is_empty() {
            return Ok(None);
        }
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| ())?;
        serde_json::from_slice(&bytes).map(Some).map_err(|_| ())
    }

    fn write(&self) -> String {
        let json = serde_json::to_vec(self).expect("a struct of strings can always be written");
        BASE64URL_NOPAD.encode(&json)
    }
}

/// A page of the customers that this caller may see.
fn page(wanted: &CustomersWanted, list: &CustomerList, may_see: impl Fn(&Customer) -> bool) -> ListCustomersResponse {
    let is_wanted = |one: &&Customer| may_see(one) && one.name.to_lowercase().contains(&wanted.part);
    let matching: Vec<&Customer> = list.customers.iter().filter(is_wanted).collect();
    let is_before = |one: &&Customer| {
        let after = wanted.after.as_ref();
        after.is_some_and(|after| (one.name.as_str(), one.id.as_str()) <= (after.name.as_str(), after.id.as_str()))
    };
    let begin = matching.partition_point(is_before);
    let end = matching.len().min(begin + wanted.page_size);
    let token = |last: &&Customer| PageToken {
        part: wanted.part.clone(),
        name: last.name.clone(),
        id: last.id.as_str().to_owned(),
    };
    let next = matching[begin..end].last().filter(|_| end < matching.len()).map(token);
    let customers = matching[begin..end].iter();
    ListCustomersResponse {
        customers: customers.map(|one| proto::Customer { id: one.id.to_string(), name: one.name.clone() }).collect(),
        next_page_token: next.map(|token| token.write()).unwrap_or_default(),
        total_size: u32::try_from(matching.len()).unwrap_or(u32::MAX),
        fetched_at: Some(list.fetched_at.into()),
    }
}
