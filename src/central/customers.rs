//! The list of all customers. How its pages are read, and when it is refused, is decided in [`super::list`].

use super::{
    Error, Flaw,
    dispatch::{Dispatch, Reads},
    list::{List, Pages},
    wire::listings,
};
use crate::license::Customer;

/// Lists the MSP's customers.
const CUSTOMERS: &str = "/msp_api/v1/customers";
const NAME: &str = "customers";

impl Dispatch {
    /// Everybody who is a customer now, each once.
    ///
    /// An empty list is refused. The accounts that this gateway serves have customers, and a list that lost them would
    /// bind an open scope to nobody while it affects everybody.
    pub(super) async fn list_customers(&self, reads: &mut Reads<'_>) -> Result<Vec<Customer>, Error> {
        let unreliable = |flaw| Error::ListUnreliable { list: NAME, flaw };
        let list = List { name: NAME, path: CUSTOMERS, query: &[], headers: &[], parse: listings::customer_page };
        let mut pages = Pages::new();
        let is_whole = self.read_list(&list, &mut pages, reads).await.map_err(|error| match error {
            // No customer was named: it is the operation that is not there.
            Error::CustomerNotFound => Error::EndpointNotFound,
            error => error,
        })?;
        if !is_whole {
            return Err(unreliable(Flaw::TooLong));
        }
        let customers = pages.into_entries();
        if customers.is_empty() { Err(unreliable(Flaw::Empty)) } else { Ok(customers) }
    }
}
