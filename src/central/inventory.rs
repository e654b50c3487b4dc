//! What a watch reads: how many licences the account uses, and which devices hold some.
//!
//! How many devices a page may have is disputed: HPE's library says 50, its workflows ask for 50, others for 500 and 1,000.
//! So many are asked for first, what comes is gone on by ([`super::list`]), and where that is refused, few.

use std::collections::HashSet;

use super::{
    Error, HeldDevice,
    dispatch::{Dispatch, Read, Reads},
    list::Pages,
    wire::listings,
};
use crate::license::{CustomerId, Services};

/// How many licences are used.
const STATS: &str = "/platform/licensing/v1/subscriptions/stats";
/// The largest page that a client in use asks for.
pub(super) const LONG_PAGE: usize = 1_000;
/// The page that nobody doubts.
const SHORT_PAGE: usize = 50;

impl Dispatch {
    /// How many licences of these services the account uses, all owners together; none: Central does not tell.
    pub(super) async fn used_licences(&self, services: &Services, reads: &mut Reads<'_>) -> Result<Option<u64>, Error> {
        let license_type = match services.names() {
            [one] => one.as_str(),
            // One call for all of them: what else is in the number only costs a reading more.
            _ => "all",
        };
        let read = Read { path: STATS, query: &[("license_type", license_type)], headers: &[] };
        Ok(listings::used_licences(&self.read(read, reads).await?.body))
    }

    /// The devices of a customer, or of the account, that hold any of the services. None: the calls were spent before the
    /// list's end. `page` is how many to ask for at once, and what Central was found to take.
    pub(super) async fn holders(
        &self,
        tenant: Option<&CustomerId>,
        services: &Services,
        page: &mut usize,
        reads: &mut Reads<'_>,
    ) -> Result<Option<Vec<HeldDevice>>, Error> {
        let mut pages = Pages::of_devices(*page);
        let is_whole = match self.read_devices(tenant, &mut pages, reads).await {
            Err(Error::ArgumentRejected { .. }) if *page > SHORT_PAGE => {
                *page = SHORT_PAGE;
                pages = Pages::of_devices(*page);
                self.read_devices(tenant, &mut pages, reads).await?
            }
            result => result?,
        };
        if !is_whole {
            return Ok(None);
        }
        let services: HashSet<String> = services.names().iter().map(|name| name.as_str().to_lowercase()).collect();
        let devices = pages.into_keyed().into_iter();
        let holds = devices.filter(|(_, device)| device.services.iter().any(|service| services.contains(service)));
        Ok(Some(holds.map(|(serial, device)| HeldDevice { serial, owner: device.customer_id }).collect()))
    }
}
