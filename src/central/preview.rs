//! What an unassignment would hit now: reads only.

use std::time::SystemTime;

use tracing::debug;

use super::{
    CentralClient, DeviceCount, Error, Member,
    dispatch::{Dispatch, Read, Reads},
    wire::listings,
};
use crate::{
    license::{Customer, CustomerId, Etag, Resolved, Scope, Unassignment},
    quota::Purpose,
};

/// Tells which services Central assigns to a customer's devices by itself.
const AUTO_LICENSE: &str = "/platform/licensing/v1/msp/customer/settings/autolicense";

/// To whom Central assigns services by itself, as far as it was read.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct AutoLicensed {
    /// Customers in scope, and which of the services.
    pub customers: Vec<(CustomerId, Vec<String>)>,
    /// How many customers in scope were asked about.
    pub seen: usize,
    /// Whether Central told of all of them.
    pub is_complete: bool,
}

/// What an unassignment would hit.
#[derive(Debug)]
pub struct Preview {
    /// Whom.
    pub resolved: Resolved,
    /// Binds the unassignment to them.
    pub etag: Etag,
    /// When Central had said who is a customer.
    pub resolved_at: SystemTime,
    /// Their devices; none: nobody asked for them.
    pub devices: Option<DeviceCount>,
    /// Why they were not all counted, if that was not for want of calls.
    pub devices_failure: Option<Error>,
    /// To whom Central assigns some of the services by itself.
    pub auto_licensed: AutoLicensed,
    /// Central's calls of a day, where it has said how many there are.
    pub day_limit: Option<u64>,
    /// How many calls all this cost.
    pub calls: u32,
}

impl CentralClient {
    /// Reads which customers the member's scope would affect now, with at most `max_device_calls` calls to count devices.
    /// Stops at the next call when the caller has gone.
    pub async fn preview(&self, member: &Member, max_device_calls: u32) -> Result<Preview, Error> {
        let (dispatch, wanted) = (&self.dispatch, &member.operation.unassignment);
        // A spent day first: without calls, nobody needs a token.
        dispatch.today(Purpose::Preview)?;
        let mut reads = Reads::for_preview(member);
        let listed = dispatch.list_customers(&mut reads).await?;
        let resolved_at = SystemTime::now();
        let resolved = Resolved::of(&wanted.scope, listed);
        let mut auto_licensed = AutoLicensed::default();
        reads.allow(1);
        let (first, others) = resolved.customers.split_at(resolved.customers.len().min(1));
        dispatch.read_auto_licensing(wanted, first, &mut auto_licensed, &mut reads).await;
        reads.allow(max_device_calls);
        let (devices, devices_failure) = if max_device_calls == 0 {
            (None, None)
        } else {
            let (devices, failure) = dispatch.count_devices(wanted, &resolved, &mut reads).await;
            (Some(devices), failure)
        };
        if devices_failure.is_none() {
            // What the devices left.
            dispatch.read_auto_licensing(wanted, others, &mut auto_licensed, &mut reads).await;
        }
        auto_licensed.is_complete = auto_licensed.seen == resolved.customers.len();
        Ok(Preview {
            etag: resolved.etag(&wanted.scope, &wanted.services),
            resolved,
            resolved_at,
            devices,
            devices_failure,
            auto_licensed,
            day_limit: dispatch.day_limit(),
            calls: reads.made,
        })
    }
}

impl CentralClient {
    /// Whether Central assigns some of the member's services by itself to customers in scope, read of every one of them. None:
    /// more than `most` are in scope.
    pub async fn auto_licensed(&self, member: &Member, most: usize) -> Result<Option<AutoLicensed>, Error> {
        let (dispatch, wanted) = (&self.dispatch, &member.operation.unassignment);
        dispatch.today(Purpose::Preview)?;
        let mut reads = Reads::for_preview(member);
        let customers = match &wanted.scope {
            Scope::Include(customers) => customers.ids().to_vec(),
            Scope::Exclude(_) | Scope::All(_) => {
                let resolved = Resolved::of(&wanted.scope, dispatch.list_customers(&mut reads).await?);
                resolved.customers.into_iter().map(|customer| customer.id).collect()
            }
        };
        if customers.len() > most {
            return Ok(None);
        }
        let mut found = AutoLicensed { is_complete: true, ..AutoLicensed::default() };
        for customer in customers {
            // Repeats of a call that did not run come on top, as everywhere.
            reads.allow(2);
            let back = dispatch.auto_licensing_of(wanted, &customer, &mut reads).await?;
            found.take(customer, back);
        }
        Ok(Some(found))
    }
}

impl AutoLicensed {
    fn take(&mut self, customer: CustomerId, services: Vec<String>) {
        self.seen += 1;
        if !services.is_empty() {
            self.customers.push((customer, services));
        }
    }
}

impl Dispatch {
    /// Asks about one customer after the other, as long as there are calls for it. Where Central does not tell, nobody knows.
    async fn read_auto_licensing(
        &self,
        wanted: &Unassignment,
        customers: &[Customer],
        found: &mut AutoLicensed,
        reads: &mut Reads<'_>,
    ) {
        for customer in customers {
            if reads.left == 0 {
                return;
            }
            match self.auto_licensing_of(wanted, &customer.id, reads).await {
                Ok(services) => found.take(customer.id.clone(), services),
                Err(error) => {
                    debug!(
                        error = &error as &(dyn std::error::Error + 'static),
                        "whether licensing is automatic is not known"
                    );
                    return;
                }
            }
        }
    }

    /// Which of the services Central assigns to this customer by itself.
    async fn auto_licensing_of(
        &self,
        wanted: &Unassignment,
        customer: &CustomerId,
        reads: &mut Reads<'_>,
    ) -> Result<Vec<String>, Error> {
        let read = Read { path: AUTO_LICENSE, query: &[("customer_id", customer.as_str())], headers: &[] };
        let answer = self.read(read, reads).await?;
        let licensed = listings::auto_licensed(&answer.body).ok_or(Error::Unreadable { status: answer.status })?;
        let services = wanted.services.names().iter().map(ToString::to_string);
        Ok(services.filter(|name| licensed.contains(&name.to_lowercase())).collect())
    }
}
