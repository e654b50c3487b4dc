//! `PreviewUnassignLicenses`: whom a scope would hit now, the etag that binds a change to them, and what to know before.

use std::{collections::BTreeSet, fmt::Write as _, sync::Arc};

use tracing::info;

use super::{GiveUpOnDrop, Licensing, Rpc, record::scope_in_words, request::Look, scope_kind, status::Failure};
use crate::{
    callers::policy::Asked,
    central::Preview,
    deadline::within,
    license::{CustomerId, Scope, Unassignment},
    proto::{
        AutoLicensing, Customer, DeviceCount, PreviewUnassignLicensesRequest, PreviewUnassignLicensesResponse,
        PreviewWarning, PreviewWarningCode,
    },
    telemetry::Origin,
};

/// More names than these nobody reads; the number of all is in the answer.
const MOST_SHOWN: usize = 100;
/// So many customers may be enough to shrink the day's quota.
const MANY: usize = 10;
/// Central gives every account this many calls a day; only what is above depends on licensed devices.
const LEAST_OF_A_DAY: u64 = 5_000;
/// The first of many ids in a text.
const MOST_NAMED: usize = 5;

impl Licensing {
    pub(super) async fn preview(
        &self,
        rpc: &Rpc,
        message: PreviewUnassignLicensesRequest,
    ) -> Result<PreviewUnassignLicensesResponse, Failure> {
        let Look { wanted, max_device_calls } = Look::try_from(message).map_err(Failure::InvalidRequest)?;
        self.callers.admit(&rpc.identity, Asked::Preview(&wanted), rpc.deadline).await?;
        self.check_services(&wanted, rpc.deadline).await?;

        // In a task of its own: a call that was begun is finished, so that it is known whether Central is well. None is
        // begun for a caller who has gone.
        let (member, _never_sent) =
            self.request(rpc, &Arc::new(super::operations::operation(rpc, wanted, None, false)));
        let _leave = GiveUpOnDrop(Arc::clone(&member));
        let work = self.work.spawn(Origin::current().run({
            let (central, member, room) = (Arc::clone(&self.central), Arc::clone(&member), rpc.room.clone());
            async move {
                let _room = room;
                central.preview(&member, max_device_calls).await
            }
        }));
        match within(rpc.deadline, work).await {
            Ok(Ok(Ok(preview))) => {
                let wanted = &member.operation.unassignment;
                let (scope, _) = scope_in_words(&wanted.scope);
                let (caller, customers) = (&rpc.identity, preview.resolved.customers.len());
                info!(%caller, scope, resolved_customers = customers, calls = preview.calls, "preview finished");
                Ok(response(wanted, preview))
            }
            Ok(Ok(Err(error))) => Err(Failure::Read(Arc::new(error))),
            Ok(Err(_panic)) => Err(Failure::Bug { nothing_was_sent: true }),
            Err(_) => Err(Failure::ReadDeadlineExceeded),
        }
    }
}

fn response(wanted: &Unassignment, preview: Preview) -> PreviewUnassignLicensesResponse {
    let warnings = warnings(wanted, &preview);
    let Preview { resolved, etag, resolved_at, devices, calls, auto_licensed, .. } = preview;
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    PreviewUnassignLicensesResponse {
        scope: scope_kind(&wanted.scope).into(),
        services: wanted.services.names().iter().map(ToString::to_string).collect(),
        customer_count: u32::try_from(resolved.customers.len()).unwrap_or(u32::MAX),
        unknown_customer_ids: resolved.unknown.iter().map(ToString::to_string).collect(),
        customers: resolved
            .customers
            .into_iter()
            .take(MOST_SHOWN)
            .map(|customer| Customer { id: customer.id.to_string(), name: customer.name })
            .collect(),
        etag: etag.to_string(),
        resolved_at: Some(resolved_at.into()),
        devices: devices.map(|count| DeviceCount {
            device_count: count.devices,
            customers_seen: u32::try_from(count.customers_seen).unwrap_or(u32::MAX),
            is_complete: count.is_complete,
        }),
        warnings,
        call_count: calls,
        auto_licensing: Some(AutoLicensing {
            customer_count: count(auto_licensed.customers.len()),
            customer_ids: auto_licensed.customers.iter().take(MOST_SHOWN).map(|(id, _)| id.to_string()).collect(),
            customers_seen: count(auto_licensed.seen),
            is_complete: auto_licensed.is_complete,
        }),
    }
}

/// What to know before going on.
fn warnings(wanted: &Unassignment, preview: &Preview) -> Vec<PreviewWarning> {
    use PreviewWarningCode as Code;

    let Unassignment { scope, .. } = wanted;
    let mut warnings = Vec::new();
    let mut warn = |code: Code, text: String| warnings.push(PreviewWarning { code: code.into(), text });
    if scope.is_open() {
        let text = "the MSP's own devices are in reach too, and the etag does not cover them";
        warn(Code::MspDevicesInReach, text.to_owned());
    }
    let auto_licensed = &preview.auto_licensed;
    if !auto_licensed.customers.is_empty() {
        let customers: Vec<_> = auto_licensed.customers.iter().map(|(id, _)| id).collect();
        let services: BTreeSet<_> =
            auto_licensed.customers.iter().flat_map(|(_, services)| services).cloned().collect();
        let mut text = format!(
            "Central assigns {} automatically, and may put licences back, to the customers {}",
            services.into_iter().collect::<Vec<_>>().join(", "),
            some(&customers)
        );
        if !auto_licensed.is_complete {
            let seen = auto_licensed.seen;
            let _ = write!(text, "; only {seen} of {} were looked at", preview.resolved.customers.len());
        }
        warn(Code::AutoLicensing, text);
    }
    let is_large = scope.is_open() || preview.resolved.customers.len() >= MANY;
    if is_large && preview.day_limit.is_none_or(|limit| limit > LEAST_OF_A_DAY) {
        let text = "Central counts the account's calls of a day by its licensed devices: there may be fewer afterwards";
        warn(Code::QuotaMayShrink, text.to_owned());
    }
    let named = match scope {
        Scope::Include(customers) | Scope::Exclude(customers) => customers.ids(),
        Scope::All(_) => &[],
    };
    let unusual: Vec<_> = named.iter().filter(|id| !looks_usual(id)).collect();
    if !unusual.is_empty() {
        let text = format!("these ids do not look like Central's (32 lower-case hex digits): {}", some(&unusual));
        warn(Code::UnusualCustomerId, text);
    }
    let unknown: Vec<_> = preview.resolved.unknown.iter().collect();
    if matches!(scope, Scope::Exclude(_)) && !unknown.is_empty() {
        let text = format!("nobody has these excluded ids, so they protect nobody: {}", some(&unknown));
        warn(Code::UnknownCustomerExcluded, text);
    }
    if let Some(error) = &preview.devices_failure {
        warn(Code::DevicesNotCounted, format!("devices were not counted to the end: {error}"));
    }
    warnings
}

fn looks_usual(id: &CustomerId) -> bool {
    let id = id.as_str();
    id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn some(ids: &[&CustomerId]) -> String {
    let named: Vec<_> = ids.iter().take(MOST_NAMED).map(ToString::to_string).collect();
    match ids.len().saturating_sub(MOST_NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that cannot go on fails
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::{
        central::{AutoLicensed, Error},
        license::{self, Customers, Reason, Resolved, ServiceName, Services},
    };

    fn id(id: &str) -> CustomerId {
        CustomerId::new(id.to_owned()).unwrap()
    }

    fn usual(number: usize) -> CustomerId {
        id(&format!("{number:032x}"))
    }

    fn wanted(scope: Scope) -> Unassignment {
        let services = Services::new(vec![ServiceName::new("pa".to_owned()).unwrap()]).unwrap();
        Unassignment { scope, services, reason: Reason::default(), etag: None }
    }

    /// A preview where the account has so many customers, of usual ids.
    fn preview(wanted: &Unassignment, customers: usize) -> Preview {
        let customer = |number| license::Customer { id: usual(number), name: String::new() };
        let resolved = Resolved::of(&wanted.scope, (0..customers).map(customer).collect());
        Preview {
            etag: resolved.etag(&wanted.scope, &wanted.services),
            resolved,
            resolved_at: SystemTime::UNIX_EPOCH,
            devices: None,
            devices_failure: None,
            auto_licensed: AutoLicensed::default(),
            day_limit: None,
            calls: 1,
        }
    }

    fn codes(wanted: &Unassignment, preview: &Preview) -> Vec<PreviewWarningCode> {
        let warnings = warnings(wanted, preview);
        assert!(warnings.iter().all(|warning| !warning.text.is_empty() && !warning.text.contains(char::is_control)));
        warnings.iter().map(PreviewWarning::code).collect()
    }

    #[test]
    fn each_warning_is_given_where_it_is_due_and_nowhere_else() {
        use PreviewWarningCode as Code;

        let include = |ids| wanted(Scope::Include(Customers::new(ids).unwrap()));
        let exclude = |ids| wanted(Scope::Exclude(Customers::new(ids).unwrap()));
        let all = || wanted(Scope::everyone());
        let open = [Code::MspDevicesInReach, Code::QuotaMayShrink];
        let plain: Vec<(Unassignment, Vec<Code>)> = vec![
            (include(vec![usual(0)]), vec![]),
            (include((0..9).map(usual).collect()), vec![]),
            (include((0..10).map(usual).collect()), vec![Code::QuotaMayShrink]),
            (include(vec![usual(99)]), vec![]),
            (include(vec![id("ABC")]), vec![Code::UnusualCustomerId]),
            (include(vec![id(&usual(10).as_str().to_uppercase())]), vec![Code::UnusualCustomerId]),
            (exclude(vec![usual(0)]), open.to_vec()),
            (exclude(vec![usual(0), usual(99)]), [&open[..], &[Code::UnknownCustomerExcluded]].concat()),
            (exclude(vec![id("x")]), [&open[..], &[Code::UnusualCustomerId, Code::UnknownCustomerExcluded]].concat()),
            (all(), open.to_vec()),
        ];
        for (wanted, expected) in plain {
            assert_eq!(codes(&wanted, &preview(&wanted, 20)), expected, "{wanted:?}");
        }
        let one = include(vec![usual(0)]);
        let customers = vec![(usual(0), vec!["pa".to_owned()])];
        let licensed = AutoLicensed { customers, seen: 1, is_complete: true };
        assert_eq!(codes(&one, &Preview { auto_licensed: licensed, ..preview(&one, 1) }), [Code::AutoLicensing]);
        let failed = Some(Error::PermissionDenied);
        assert_eq!(codes(&one, &Preview { devices_failure: failed, ..preview(&one, 1) }), [Code::DevicesNotCounted]);
        for (day_limit, may_shrink) in [(None, true), (Some(5_000), false), (Some(5_001), true)] {
            let codes = codes(&all(), &Preview { day_limit, ..preview(&all(), 1) });
            assert_eq!(codes.contains(&Code::QuotaMayShrink), may_shrink, "{day_limit:?}");
        }
    }

    #[test]
    fn an_answer_names_a_hundred_customers_and_counts_all() {
        let wanted = wanted(Scope::everyone());
        let answer = response(&wanted, preview(&wanted, 250));
        assert_eq!((answer.customer_count, answer.customers.len()), (250, 100));
        assert_eq!(answer.customers[99].id, usual(99).as_str());
        assert_eq!((answer.devices, answer.unknown_customer_ids.len()), (None, 0));
    }
}
