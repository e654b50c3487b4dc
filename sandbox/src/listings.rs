//! What can be read: services, subscriptions, customers, devices. Field names are C where the notes list them; the
//! values of fields that nobody reads are plausible.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    dialects::Page,
    exchange::Received,
    routes::number,
    settings::InventoryPage,
    state::{Customer, Device},
    world::World,
};

const INVENTORY: &str = "/platform/device_inventory/v1/";

/// The customer of `/msp_api/v1/customers/{id}/devices`.
pub(crate) fn tenant_of(path: &str) -> Option<&str> {
    let id = path.strip_prefix("/msp_api/v1/customers/")?.strip_suffix("/devices")?;
    (!id.is_empty() && !id.contains('/')).then_some(id)
}

/// Whether this is one of the inventory's listings.
pub(crate) fn is_inventory(path: &str) -> bool {
    match path.strip_prefix(INVENTORY) {
        Some("devices" | "msp/devices") => true,
        Some(rest) => inventory_tenant(rest).is_some(),
        None => false,
    }
}

fn inventory_tenant(rest: &str) -> Option<&str> {
    let id = rest.strip_prefix("msp/")?.strip_suffix("/devices")?;
    (!id.is_empty() && !id.contains('/')).then_some(id)
}

/// An object keyed by service name (C); the shape of its values is not known (A).
pub(crate) fn services_config(world: &World, call: &Received) -> Page {
    let wanted = call.parameter("device_type");
    let services: BTreeMap<&str, Value> = world
        .account
        .catalogue
        .iter()
        .map(|name| (name.as_str(), device_type(name)))
        .filter(|(_, device_type)| wanted.is_none_or(|wanted| wanted == *device_type))
        .map(|(name, device_type)| {
            (name, json!({ "service_category": "network", "device_type": [device_type], "enabled": true }))
        })
        .collect();
    Page::json(200, &json!(services))
}

fn device_type(service: &str) -> &'static str {
    match service {
        name if name.contains("switch") => "switch",
        name if name.contains("_ap") => "iap",
        name if name.contains("vgw") => "vgw",
        name if name.contains("70") || name.contains("72") || name.contains("90") || name.contains("gw") => "gateway",
        _ => "others",
    }
}

/// One subscription for each service that some device holds.
pub(crate) fn subscriptions(world: &World, call: &Received) -> Page {
    let mut used: BTreeMap<&str, u32> = BTreeMap::new();
    for service in world.account.owners.iter().flat_map(|owner| &owner.devices).flat_map(|device| &device.services) {
        *used.entry(service).or_default() += 1;
    }
    let all: Vec<Value> = used
        .into_iter()
        .map(|(service, used)| {
            json!({
                "subscription_key": subscription_key(service),
                "license_type": service,
                "subscription_type": "EVAL",
                "sku": "Q9Y58-EVALS",
                "status": "OK",
                "quantity": used + 20,
                "available": 20,
                "start_date": 1_700_000_000_000_u64,
                "end_date": 1_900_000_000_000_u64,
            })
        })
        .collect();
    match page_of(call, &all, 1_000) {
        Ok(page) => Page::json(200, &json!({ "subscriptions": page, "total": all.len() })),
        Err(refusal) => refusal,
    }
}

/// `subscriptions/stats`: flat numbers of one service, or of all, of the whole account (C for the fields).
pub(crate) fn stats(world: &World, call: &Received) -> Page {
    let wanted = call.parameter("license_type").filter(|wanted| *wanted != "all");
    let devices = world.account.owners.iter().flat_map(|owner| &owner.devices);
    let held = |device: &Device| match wanted {
        Some(wanted) => usize::from(device.services.contains(wanted)),
        None => device.services.len(),
    };
    let of_devices: Vec<usize> = devices.map(held).collect();
    let used: usize = of_devices.iter().sum();
    let bare = of_devices.iter().filter(|held| **held == 0).count();
    Page::json(
        200,
        &json!({ "total": used + 20, "used": used, "available": 20, "non_subscribed_devices": bare, "expiring": 0 }),
    )
}

/// `/msp_api/v1/customers`: 10 by default; `customer_name` is a filter for parts of names (C).
pub(crate) fn customers(world: &mut World, call: &Received) -> Page {
    let is_beginning = call.parameter("offset").is_none_or(|offset| offset == "0");
    let moves = world.settings.customers_move && is_beginning && world.account.owners.len() > 1;
    if moves {
        world.account.owners[1..].sort_by(|one, other| one.id.cmp(&other.id)); // position 0 is the MSP
    }
    let wanted = call.parameter("customer_name").map(str::to_lowercase);
    let all: Vec<Value> = world
        .account
        .customers()
        .iter()
        .filter(|customer| wanted.as_ref().is_none_or(|wanted| customer.name.to_lowercase().contains(wanted)))
        .map(|customer| customer_json(world, customer))
        .collect();
    let mut page = match page_of(call, &all, 10) {
        Ok(page) => page,
        Err(refusal) => return refusal,
    };
    page.truncate(world.settings.longest_page.unwrap_or(usize::MAX));
    if moves {
        world.account.owners[1..].rotate_right(1);
    }
    Page::json(200, &json!({ "customers": page, "total": all.len() }))
}

/// Every listing of devices.
pub(crate) fn devices(world: &World, call: &Received) -> Page {
    let path = call.path();
    let owners = &world.account.owners;
    let one = |id: &str| owners.iter().filter(|owner| owner.id == id).collect::<Vec<_>>();
    let (owners, inventory) = match path.strip_prefix(INVENTORY) {
        // With `TenantID` the call is the tenant's (C).
        Some("devices") => (call.header("tenantid").map_or_else(|| owners.iter().collect(), one), true),
        Some("msp/devices") => (owners.iter().collect(), true),
        Some(rest) => (one(inventory_tenant(rest).unwrap_or_default()), true),
        None => match tenant_of(path) {
            Some(id) => (one(id), false),
            None => (by_name(owners, call.parameter("customer_name")), false),
        },
    };
    if owners.is_empty() && call.parameter("customer_name").is_none() {
        return Page::json(404, &json!({ "detail": "customer not found" }));
    }
    let wanted_type = call.parameter("device_type");
    let allocation = call.parameter("device_allocation_status").unwrap_or("0");
    let all: Vec<Value> = owners
        .into_iter()
        .flat_map(|owner| owner.devices.iter().map(move |device| (owner, device)))
        .filter(|(_, device)| wanted_type.is_none_or(|wanted| wanted == device.device_type))
        .filter(|(owner, _)| match allocation {
            "1" => owner.id != world.settings.msp_id,
            "2" => owner.id == world.settings.msp_id,
            _ => true,
        })
        .map(|(owner, device)| device_json(owner, device, inventory))
        .collect();
    let mut page = match page_of(call, &all, if inventory { 20 } else { 10 }) {
        Ok(page) => page,
        Err(refusal) => return refusal,
    };
    if inventory {
        match world.settings.inventory_page {
            InventoryPage::AnySize => {}
            InventoryPage::CappedAt(most) => page.truncate(most),
            InventoryPage::RefusedAbove(most) => {
                if number(call, "limit", 20).is_ok_and(|limit| limit > most) {
                    return Page::json(400, &json!({ "detail": format!("limit must not exceed {most}") }));
                }
            }
        }
        return Page::json(200, &json!({ "devices": page, "total": all.len() }));
    }
    if let (Ok(offset), Ok(limit)) = (number(call, "offset", 0), number(call, "limit", 10))
        && !offset.is_multiple_of(limit.max(1))
    {
        return Page::json(400, &json!({ "detail": "offset must be a multiple of limit" }));
    }
    let list = json!({ "devices": page, "total_devices": all.len() });
    Page::json(200, &json!({ "status": "success", "deviceList": list }))
}

fn by_name<'a>(owners: &'a [Customer], name: Option<&str>) -> Vec<&'a Customer> {
    owners.iter().filter(|owner| name.is_none_or(|name| owner.name == name)).collect()
}

/// The part of a list that `offset` and `limit` ask for.
fn page_of(call: &Received, all: &[Value], default_limit: usize) -> Result<Vec<Value>, Page> {
    let (offset, limit) = (number(call, "offset", 0)?, number(call, "limit", default_limit)?);
    Ok(all.iter().skip(offset).take(limit).cloned().collect())
}

fn customer_json(world: &World, customer: &Customer) -> Value {
    let id = customer.id.as_str();
    json!({
        "customer_id": id,
        "customer_name": customer.name,
        "msp_id": world.settings.msp_id,
        "account_status": "ACTIVE",
        "account_type": "STANDALONE",
        "provision_status": "PROVISIONED",
        // Another id for the same customer, which does not belong in the lists of an unassignment.
        "platform_customer_id": id.chars().rev().collect::<String>(),
        "application_id": "3b8f1a5c-7d2e-4c90-8e1f-0a9b8c7d6e5f",
        "application_instance_id": "c6a1e0f4-2b3d-4c5e-8f90-1a2b3c4d5e6f",
        "region": "us-west",
        "username": world.settings.username,
        "description": "",
        "group": { "name": "default" },
        "device_quota": 0,
        "lock_msp_ssids": false,
        "msp_conversion_status": "NONE",
        "created_at": 1_700_000_000_u64,
        "updated_at": 1_700_000_000_u64,
    })
}

fn device_json(owner: &Customer, device: &Device, inventory: bool) -> Value {
    // Upper case in the inventory (C).
    let services: Vec<String> =
        device.services.iter().map(|name| if inventory { name.to_uppercase() } else { name.clone() }).collect();
    let tier = services
        .first()
        .map_or("", |name| if name.to_lowercase().starts_with("adv") { "advanced" } else { "foundation" });
    json!({
        "serial": device.serial,
        "macaddr": mac(&device.serial),
        "model": device.model,
        "device_type": device.device_type,
        "aruba_part_no": device.part_number,
        "customer_id": owner.id,
        "customer_name": owner.name,
        "services": services,
        "tier_type": tier,
        "subscription_key": device.services.first().map(|service| subscription_key(service)),
        "imei": "",
    })
}

fn subscription_key(service: &str) -> String {
    super::calls::fingerprint(service).replace("sha256:", "E").to_uppercase()
}

fn mac(serial: &str) -> String {
    let hash = super::calls::fingerprint(serial);
    let digits = hash.trim_start_matches("sha256:");
    format!("20:4c:{}:{}:{}:{}", &digits[0..2], &digits[2..4], &digits[4..6], &digits[6..8])
}
