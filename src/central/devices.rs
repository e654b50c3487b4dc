//! How many devices hold the services: counted with few calls, and honest about how far it got.
//!
//! The inventory is asked, because it says for each device whose it is and which services it holds, and because the same
//! call serves for one customer (by the header `TenantID`) and for the whole account. Its pages are read by
//! [`super::list`].

use std::collections::HashSet;

use super::{
    Error,
    dispatch::{Dispatch, Reads},
    list::{List, PAGE, Pages},
    wire::listings::{self, ListedDevice},
};
use crate::license::{CustomerId, Resolved, Scope, Services, Unassignment};

/// Lists devices with their services.
const INVENTORY: &str = "/platform/device_inventory/v1/devices";
/// So many customers are asked about one by one. A call or more for each of them costs less than all devices of the
/// account, a call for every hundred; for more customers, or an open scope, it is the other way round.
const FEW: usize = 10;

/// The devices in scope that hold any of the services.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceCount {
    /// How many were found.
    pub devices: u64,
    /// How many of the customers in scope were looked at: all of them, or those whose devices were seen so far.
    pub customers_seen: usize,
    /// Whether all devices were looked at.
    pub is_complete: bool,
}

impl Dispatch {
    /// Counts as far as the calls that `reads` allows go. An error ends the counting; what was counted stands.
    pub(super) async fn count_devices(
        &self,
        wanted: &Unassignment,
        resolved: &Resolved,
        reads: &mut Reads<'_>,
    ) -> (DeviceCount, Option<Error>) {
        let mut tally = DeviceTally::new(&wanted.scope, resolved, &wanted.services);
        let is_few = !wanted.scope.is_open() && resolved.customers.len() <= FEW;
        let tenants = if is_few { resolved.customers.iter().map(|one| Some(&one.id)).collect() } else { vec![None] };
        let (mut is_complete, mut failure) = (true, None);
        for tenant in tenants {
            match self.count_of(tenant, &mut tally, reads).await {
                Ok(true) => {}
                Ok(false) => is_complete = false,
                Err(error) => {
                    (is_complete, failure) = (false, Some(error));
                    break;
                }
            }
        }
        (tally.count(is_complete, resolved.customers.len()), failure)
    }

    /// Counts one customer's devices, or everybody's. Whether all of them were seen.
    async fn count_of(
        &self,
        tenant: Option<&CustomerId>,
        tally: &mut DeviceTally<'_>,
        reads: &mut Reads<'_>,
    ) -> Result<bool, Error> {
        let mut pages = Pages::of_devices(PAGE);
        let is_whole = self.read_devices(tenant, &mut pages, reads).await;
        // Those of a list that was not read to its end were there too.
        pages.into_entries().iter().for_each(|device| tally.take(device, tenant));
        is_whole
    }

    /// Reads the devices of a customer, or of the account. False: the calls were spent before the list's end.
    pub(super) async fn read_devices(
        &self,
        tenant: Option<&CustomerId>,
        pages: &mut Pages<String, ListedDevice>,
        reads: &mut Reads<'_>,
    ) -> Result<bool, Error> {
        let headers: Vec<_> = tenant.map(|id| ("TenantID", id.as_str())).into_iter().collect();
        let list = List {
            name: "devices",
            path: INVENTORY,
            query: &[("sku_type", "all")],
            headers: &headers,
            parse: listings::device_page,
        };
        self.read_list(&list, pages, reads).await
    }
}

/// What was counted so far.
struct DeviceTally<'a> {
    scope: &'a Scope,
    resolved: HashSet<&'a str>,
    spared: HashSet<&'a str>,
    /// In lower case.
    services: HashSet<String>,
    devices: u64,
    seen: HashSet<String>,
    /// Devices of whom nobody knows whose they are.
    is_unclear: bool,
}

impl<'a> DeviceTally<'a> {
    fn new(scope: &'a Scope, resolved: &'a Resolved, services: &Services) -> Self {
        let spared = match scope {
            Scope::Exclude(customers) => customers.ids().iter().map(CustomerId::as_str).collect(),
            Scope::Include(_) | Scope::All(_) => HashSet::new(),
        };
        Self {
            scope,
            resolved: resolved.customers.iter().map(|customer| customer.id.as_str()).collect(),
            spared,
            services: services.names().iter().map(|name| name.as_str().to_lowercase()).collect(),
            devices: 0,
            seen: HashSet::new(),
            is_unclear: false,
        }
    }

    /// Takes a device of the listing of one customer, or of everybody's.
    fn take(&mut self, device: &ListedDevice, tenant: Option<&CustomerId>) {
        let Some(owner) = device.customer_id.as_deref().or(tenant.map(CustomerId::as_str)) else {
            self.is_unclear = true;
            return;
        };
        if self.resolved.contains(owner) {
            self.seen.insert(owner.to_owned());
        }
        let is_in_reach = match self.scope {
            Scope::Include(_) => self.resolved.contains(owner),
            // The MSP's own devices too.
            Scope::Exclude(_) => !self.spared.contains(owner),
            Scope::All(_) => true,
        };
        if is_in_reach && device.services.iter().any(|service| self.services.contains(service)) {
            self.devices += 1;
        }
    }

    fn count(&self, is_complete: bool, customers: usize) -> DeviceCount {
        let is_complete = is_complete && !self.is_unclear;
        let customers_seen = if is_complete { customers } else { self.seen.len() };
        DeviceCount { devices: self.devices, customers_seen, is_complete }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that cannot go on fails
mod tests {
    use super::*;
    use crate::license::{Customer, Customers, ServiceName};

    #[test]
    fn a_device_counts_once_for_whom_the_scope_reaches() {
        let id = |id: &str| CustomerId::new(id.to_owned()).unwrap();
        let named = |name: &str| Customers::new(vec![id(name)]).unwrap();
        let customers = ["a", "b"].map(|name| Customer { id: id(name), name: String::new() });
        let services = ["Advanced_AP", "pa"].map(|name| ServiceName::new(name.to_owned()).unwrap());
        let services = Services::new(services.into()).unwrap();
        let device = |owner: &str, services: &[&str]| ListedDevice {
            customer_id: Some(owner.to_owned()),
            services: services.iter().map(ToString::to_string).collect(),
        };
        let devices = [
            device("a", &["advanced_ap", "pa"]),
            device("a", &["dm"]),
            device("b", &["pa"]),
            device("msp", &["advanced_ap"]),
        ];
        for (scope, expected) in
            [(Scope::Include(named("a")), 1), (Scope::Exclude(named("a")), 2), (Scope::everyone(), 3)]
        {
            let resolved = Resolved::of(&scope, customers.to_vec());
            let mut tally = DeviceTally::new(&scope, &resolved, &services);
            for device in &devices {
                tally.take(device, None);
            }
            let count = tally.count(true, resolved.customers.len());
            let all = DeviceCount { devices: expected, customers_seen: resolved.customers.len(), is_complete: true };
            assert_eq!(count, all, "{scope:?}");
            tally.take(&ListedDevice { customer_id: None, services: Vec::new() }, None);
            assert!(!tally.count(true, 2).is_complete, "nobody knows whose it is");
        }
    }
}
