//! What an unassignment would hit now: reads only.

use std::time::SystemTime;

use tokio::time::Instant;
use tracing::debug;

use super::{
    CentralClient, DeviceCount, Error, SendGate,
    dispatch::{Dispatch, Read, Reads},
    list,
    wire::listings,
};
use crate::{
    license::{CustomerId, Etag, Resolved, Unassignment},
    telemetry::Origin,
};

/// Tells which services Central assigns to a customer's devices by itself.
const AUTO_LICENSE: &str = "/platform/licensing/v1/msp/customer/settings/autolicense";

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
    /// A customer in scope to whom Central assigns some of the services by itself, and which. None: not known of anybody.
    pub auto_licensed: Option<(CustomerId, Vec<String>)>,
    /// Central's calls of a day, where it has said how many there are.
    pub day_limit: Option<u64>,
    /// How many calls all this cost.
    pub calls: u32,
}

impl CentralClient {
    /// Looks whom this would hit, with at most `max_device_calls` calls to count devices. Stops at the next call when
    /// `gate` is shut.
    pub async fn preview(
        &self,
        wanted: &Unassignment,
        max_device_calls: u32,
        gate: &SendGate,
        deadline: Option<Instant>,
    ) -> Result<Preview, Error> {
        let dispatch = &self.dispatch;
        // A spent day first: without calls, nobody needs a token.
        dispatch.today()?;
        let origins = [Origin::current()];
        let mut reads = Reads::new(&origins, gate, deadline, list::MOST_CALLS);
        let listed = dispatch.list_customers(&mut reads).await?;
        let resolved_at = SystemTime::now();
        let resolved = Resolved::of(&wanted.scope, listed);
        reads.allow(1);
        let auto_licensed = dispatch.auto_licensed(wanted, &resolved, &mut reads).await;
        reads.allow(max_device_calls);
        let (devices, devices_failure) = if max_device_calls == 0 {
            (None, None)
        } else {
            let (devices, failure) = dispatch.count_devices(wanted, &resolved, &mut reads).await;
            (Some(devices), failure)
        };
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

impl Dispatch {
    /// Asks about one customer in scope: more would cost a call for each. Where Central does not tell, nobody knows.
    async fn auto_licensed(
        &self,
        wanted: &Unassignment,
        resolved: &Resolved,
        reads: &mut Reads<'_>,
    ) -> Option<(CustomerId, Vec<String>)> {
        let customer = &resolved.customers.first()?.id;
        let read = Read { path: AUTO_LICENSE, query: &[("customer_id", customer.as_str())], headers: &[] };
        let answer = self.read(read, reads).await.inspect_err(|error| {
            debug!(error = error as &(dyn std::error::Error + 'static), "whether licensing is automatic is not known");
        });
        let licensed = listings::auto_licensed(&answer.ok()?.body)?;
        let services = wanted.services.names().iter().map(ToString::to_string);
        let back: Vec<_> = services.filter(|name| licensed.contains(&name.to_lowercase())).collect();
        (!back.is_empty()).then(|| (customer.clone(), back))
    }
}
