//! The account: who has which devices, and which licences they hold. Pure: no I/O, `now` is an argument.

use std::collections::{BTreeSet, HashMap, HashSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    clock,
    settings::{BothLists, EmptyList, Settings, UnknownCustomer, UnknownService, Unscoped},
};

/// A customer (tenant) of the MSP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Customer {
    /// Central's `customer_id`: 32 lower-case hex characters as a rule.
    pub id: String,
    /// Free text; need not be unique.
    pub name: String,
    /// The devices that are theirs.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// The services that Central assigns to their devices by itself.
    #[serde(default)]
    pub auto_license: Vec<String>,
}

/// A device and the licences it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Unique in the account.
    pub serial: String,
    /// Such as `AP-515`.
    #[serde(default)]
    pub model: String,
    /// `iap`, `switch`, `gateway`, …
    #[serde(default)]
    pub device_type: String,
    /// `aruba_part_no`.
    #[serde(default)]
    pub part_number: String,
    /// The services it is licensed for, spelled as in `services/config`.
    #[serde(default)]
    pub services: BTreeSet<String>,
}

/// Licences that one call took away from one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// Whose device: a customer's id, or the MSP's.
    pub customer_id: String,
    /// The device.
    pub serial: String,
    /// What it lost (or will have lost once the background work is done).
    pub services: Vec<String>,
}

/// Why the licensing service does not act. Nothing is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// 400.
    BadRequest(String),
    /// 404.
    NotFound(String),
}

/// A body with `services` and the two lists, as received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScopedServices {
    services: Vec<String>,
    include: Option<Vec<String>>,
    exclude: Option<Vec<String>>,
}

impl ScopedServices {
    /// Reads the body. An absent list and `null` are the same; so is `[]` if the settings say so.
    pub(crate) fn parse(body: &[u8], empty: EmptyList) -> Result<Self, Refusal> {
        let body: Value =
            serde_json::from_slice(body).map_err(|error| Refusal::BadRequest(format!("body is not JSON: {error}")))?;
        let Value::Object(fields) = body else {
            return Err(Refusal::BadRequest("body must be a JSON object".into()));
        };
        let services = match strings(&fields, "services")? {
            None => return Err(Refusal::BadRequest("required field is missing: services".into())),
            Some(services) if services.is_empty() => {
                return Err(Refusal::BadRequest("services must not be empty".into()));
            }
            Some(services) => services,
        };
        let list = |name| match strings(&fields, name)? {
            Some(ids) if ids.is_empty() && empty == EmptyList::BadRequest => {
                Err(Refusal::BadRequest(format!("{name} must not be empty")))
            }
            Some(ids) if ids.is_empty() => Ok(None),
            ids => Ok(ids),
        };
        Ok(Self { services, include: list("include_customers")?, exclude: list("exclude_customers")? })
    }

    /// Whether a list names this customer.
    pub(crate) fn includes(&self, customer_id: &str) -> bool {
        self.include.as_ref().is_some_and(|ids| ids.iter().any(|id| id == customer_id))
    }

    /// The same for every body that means the same: order and repetition do not count.
    pub(crate) fn canonical(&self) -> String {
        let set = |list: &[String]| list.iter().cloned().collect::<BTreeSet<_>>();
        let lists = (self.include.as_deref().map(set), self.exclude.as_deref().map(set));
        format!("{:?} {lists:?}", set(&self.services))
    }
}

fn strings(fields: &serde_json::Map<String, Value>, name: &str) -> Result<Option<Vec<String>>, Refusal> {
    let refusal = || Refusal::BadRequest(format!("{name} must be an array of strings"));
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(entries)) => {
            let texts: Option<Vec<String>> = entries.iter().map(|entry| entry.as_str().map(str::to_owned)).collect();
            texts.map(Some).ok_or_else(refusal)
        }
        Some(_) => Err(refusal()),
    }
}

/// The account's content and the work that Central still does in the background.
#[derive(Debug)]
pub(crate) struct Account {
    /// The MSP first, then its customers.
    pub(crate) owners: Vec<Customer>,
    pub(crate) catalogue: Vec<String>,
    changes: Vec<Change>,
}

/// Background work: one device gains or loses one service.
#[derive(Debug)]
struct Change {
    due: Timestamp,
    serial: String,
    service: String,
    gained: bool,
}

impl Account {
    /// As the settings seed it.
    pub(crate) fn new(settings: &Settings) -> Self {
        let msp = Customer {
            id: settings.msp_id.clone(),
            name: settings.msp_name.clone(),
            devices: settings.msp_devices.clone(),
            auto_license: Vec::new(),
        };
        let owners = std::iter::once(msp).chain(settings.customers.iter().cloned()).collect();
        Self { owners, catalogue: settings.services.clone(), changes: Vec::new() }
    }

    /// The MSP's customers, without the MSP.
    pub(crate) fn customers(&self) -> &[Customer] {
        self.owners.get(1..).unwrap_or_default()
    }

    /// Whether background work is left.
    pub(crate) fn is_settled(&self) -> bool {
        self.changes.is_empty()
    }

    /// Does the background work that is due.
    pub(crate) fn settle(&mut self, now: Timestamp) {
        if self.changes.iter().all(|change| change.due > now) {
            return;
        }
        let (mut due, later): (Vec<_>, Vec<_>) = self.changes.drain(..).partition(|change| change.due <= now);
        self.changes = later;
        due.sort_by_key(|change| change.due);
        let mut devices: HashMap<&str, &mut BTreeSet<String>> = HashMap::new();
        for device in self.owners.iter_mut().flat_map(|owner| &mut owner.devices) {
            devices.insert(&device.serial, &mut device.services);
        }
        for change in due {
            match devices.get_mut(change.serial.as_str()) {
                Some(services) if change.gained => services.insert(change.service),
                Some(services) => services.remove(&change.service),
                None => false,
            };
        }
    }

    /// Takes licences away as the scope says, now or (by the settings) little by little; says what goes.
    pub(crate) fn unassign(
        &mut self,
        request: &ScopedServices,
        settings: &Settings,
        now: Timestamp,
    ) -> Result<Vec<Applied>, Refusal> {
        let owners = self.owners_in_scope(request, settings)?;
        let mut applied = Vec::new();
        for (position, owner) in owners.iter().map(|index| &self.owners[*index]).enumerate() {
            let share = u128::from(settings.completion_delay_ms) * (position as u128 + 1) / owners.len() as u128;
            let due = clock::later_by_ms(now, u64::try_from(share).unwrap_or(u64::MAX));
            let is_stalled = settings.completion_stalls_after.is_some_and(|finished| position >= finished);
            for device in &owner.devices {
                let services: Vec<String> =
                    request.services.iter().filter(|service| device.services.contains(*service)).cloned().collect();
                for service in &services {
                    let change =
                        |due, gained| Change { due, serial: device.serial.clone(), service: service.clone(), gained };
                    if is_stalled {
                        continue;
                    }
                    self.changes.push(change(due, false));
                    if let Some(after) = settings.auto_license_after_ms.filter(|_| owner.auto_license.contains(service))
                    {
                        self.changes.push(change(clock::later_by_ms(due, after), true));
                    }
                }
                if !services.is_empty() {
                    applied.push(Applied { customer_id: owner.id.clone(), serial: device.serial.clone(), services });
                }
            }
        }
        self.settle(now);
        Ok(applied)
    }

    /// Switches auto-licensing on or off; the same scope as for an unassignment.
    pub(crate) fn set_auto_license(
        &mut self,
        request: &ScopedServices,
        settings: &Settings,
        on: bool,
    ) -> Result<(), Refusal> {
        for index in self.owners_in_scope(request, settings)? {
            let auto_license = &mut self.owners[index].auto_license;
            auto_license.retain(|service| !request.services.contains(service));
            if on {
                auto_license.extend(request.services.iter().cloned());
            }
        }
        Ok(())
    }

    /// Positions in `owners` of those whom the scope hits.
    fn owners_in_scope(&self, request: &ScopedServices, settings: &Settings) -> Result<Vec<usize>, Refusal> {
        let unknown = request.services.iter().find(|service| !self.catalogue.contains(service));
        if let Some(service) = unknown.filter(|_| settings.unknown_service == UnknownService::BadRequest) {
            return Err(Refusal::BadRequest(format!("unknown service: {service}")));
        }
        let known: HashSet<&str> = self.owners.iter().map(|owner| owner.id.as_str()).collect();
        let named = request.include.iter().chain(&request.exclude).flatten();
        if let Some(id) = named.into_iter().find(|id| !known.contains(id.as_str())) {
            match settings.unknown_customer {
                UnknownCustomer::NotFound => return Err(Refusal::NotFound(format!("customer not found: {id}"))),
                UnknownCustomer::BadRequest => return Err(Refusal::BadRequest(format!("invalid customer id: {id}"))),
                UnknownCustomer::Ignored => {}
            }
        }
        let set = |ids: &Option<Vec<String>>| ids.iter().flatten().cloned().collect::<HashSet<String>>();
        let (included, excluded) = (set(&request.include), set(&request.exclude));
        // Position 0 is the MSP. An include list never reaches its devices (C, worded for assignment).
        let hit = |index: usize, id: &str| match (&request.include, &request.exclude) {
            (None, None) => index > 0 || settings.unscoped == Unscoped::MspAndTenants,
            (None, Some(_)) => !excluded.contains(id),
            (Some(_), None) => index > 0 && included.contains(id),
            (Some(_), Some(_)) => index > 0 && included.contains(id) && !excluded.contains(id),
        };
        if request.include.is_some() && request.exclude.is_some() && settings.both_lists == BothLists::BadRequest {
            return Err(Refusal::BadRequest("include_customers and exclude_customers are mutually exclusive".into()));
        }
        Ok(self
            .owners
            .iter()
            .enumerate()
            .filter(|(index, owner)| hit(*index, &owner.id))
            .map(|(index, _)| index)
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALPINE: &str = "267958b55d5a463e94a302c20f4a6b68";
    const BOREALIS: &str = "8c1d4e7fa2b349d0b6c5e8f90a1b2c3d";

    /// The owners that lose `advanced_ap`, in order, each once.
    fn losers(body: &str, settings: &Settings) -> Result<Vec<String>, Refusal> {
        let request = ScopedServices::parse(body.as_bytes(), settings.empty_list)?;
        let applied = Account::new(settings).unassign(&request, settings, Timestamp::UNIX_EPOCH)?;
        let mut owners: Vec<String> = applied.into_iter().map(|applied| applied.customer_id).collect();
        owners.dedup();
        Ok(owners)
    }

    #[test]
    fn scope_follows_the_matrix() {
        let settings = Settings::default();
        let everyone = 6; // five customers and the MSP, all with `advanced_ap`
        for (lists, count) in [
            (format!(r#","include_customers":["{ALPINE}"]"#), 1),
            (format!(r#","include_customers":["{ALPINE}","{}"]"#, settings.msp_id), 1),
            (format!(r#","exclude_customers":["{ALPINE}"]"#), everyone - 1),
            (format!(r#","exclude_customers":["{ALPINE}","{}"]"#, settings.msp_id), everyone - 2),
            (String::new(), everyone),
            (r#","include_customers":[]"#.into(), everyone),
            (r#","include_customers":null,"exclude_customers":[]"#.into(), everyone),
            (format!(r#","include_customers":["{ALPINE}"],"exclude_customers":[]"#), 1),
        ] {
            let body = format!(r#"{{"services":["advanced_ap"]{lists}}}"#);
            assert_eq!(losers(&body, &settings).map(|owners| owners.len()), Ok(count), "{body}");
        }
    }

    #[test]
    fn each_reading_of_an_undocumented_point_can_be_chosen() {
        let unscoped = r#"{"services":["advanced_ap"]}"#;
        let tenants = Settings { unscoped: Unscoped::TenantsOnly, ..Settings::default() };
        assert_eq!(losers(unscoped, &tenants).map(|owners| owners.len()), Ok(5));

        let both = format!(
            r#"{{"services":["advanced_ap"],"include_customers":["{ALPINE}","{BOREALIS}"],"exclude_customers":["{ALPINE}"]}}"#
        );
        assert!(matches!(losers(&both, &Settings::default()), Err(Refusal::BadRequest(_))));
        let difference = Settings { both_lists: BothLists::Difference, ..Settings::default() };
        assert_eq!(losers(&both, &difference), Ok(vec![BOREALIS.to_owned()]));

        let unknown = format!(r#"{{"services":["advanced_ap"],"include_customers":["{ALPINE}","nobody"]}}"#);
        let policy = |unknown_customer| Settings { unknown_customer, ..Settings::default() };
        assert!(matches!(losers(&unknown, &policy(UnknownCustomer::NotFound)), Err(Refusal::NotFound(_))));
        assert!(matches!(losers(&unknown, &policy(UnknownCustomer::BadRequest)), Err(Refusal::BadRequest(_))));
        assert_eq!(losers(&unknown, &policy(UnknownCustomer::Ignored)), Ok(vec![ALPINE.to_owned()]));

        let service = r#"{"services":["advanced_ap","nothing"]}"#;
        assert!(matches!(losers(service, &Settings::default()), Err(Refusal::BadRequest(_))));
        let ignored = Settings { unknown_service: UnknownService::Ignored, ..Settings::default() };
        assert_eq!(losers(service, &ignored).map(|owners| owners.len()), Ok(6));
    }

    #[test]
    fn a_malformed_body_is_refused() {
        for body in [
            "",
            "[]",
            "{}",
            r#"{"services":[]}"#,
            r#"{"services":"pa"}"#,
            r#"{"services":[1]}"#,
            r#"{"services":["pa"],"include_customers":"x"}"#,
        ] {
            assert!(matches!(losers(body, &Settings::default()), Err(Refusal::BadRequest(_))), "{body}");
        }
    }

    #[test]
    fn the_work_in_the_background_can_stall() {
        let settings = Settings { completion_stalls_after: Some(2), ..Settings::default() };
        let mut account = Account::new(&settings);
        let request =
            ScopedServices::parse(br#"{"services":["advanced_ap"]}"#, settings.empty_list).expect("a valid body");
        let applied = account.unassign(&request, &settings, Timestamp::UNIX_EPOCH).expect("a valid scope");
        assert_eq!(
            applied.iter().map(|one| &one.customer_id).collect::<HashSet<_>>().len(),
            6,
            "it was accepted for all"
        );
        let holds = |owner: &&Customer| owner.devices.iter().any(|d| d.services.contains("advanced_ap"));
        assert_eq!(account.owners.iter().filter(holds).count(), 4);
    }

    #[test]
    fn licences_go_little_by_little_and_come_back_by_auto_licensing() {
        let mut settings =
            Settings { completion_delay_ms: 6_000, auto_license_after_ms: Some(10_000), ..Settings::default() };
        settings.customers[0].auto_license.push("advanced_ap".into());
        let mut account = Account::new(&settings);
        let request =
            ScopedServices::parse(br#"{"services":["advanced_ap"]}"#, settings.empty_list).expect("a valid body");
        let at = |seconds| Timestamp::from_second(seconds).expect("a small number");
        account.unassign(&request, &settings, at(0)).expect("a valid scope");

        let mut holders = |seconds| {
            account.settle(at(seconds));
            let holds = |owner: &&Customer| owner.devices.iter().any(|d| d.services.contains("advanced_ap"));
            account.owners.iter().filter(holds).count()
        };
        assert_eq!([0, 1, 3, 6].map(&mut holders), [6, 5, 3, 0]);
        assert_eq!(holders(12), 1, "the one with auto-licensing, 10 s after its turn at 2 s");
    }
}
