//! Which path is which operation, and what the services behind Kong do.

use http::Method;
use serde_json::{Value, json};

use super::{
    dialects::{self, Page},
    exchange::Received,
    faults::Operation,
    listings,
    state::{Refusal, ScopedServices},
    world::World,
};

const LICENSING: &str = "/platform/licensing/v1/";

/// What this method on this path asks for. A method that is not known on a path has no route (A: Kong's answer where
/// the service's own is not known).
pub(crate) fn operation(method: &Method, path: &str) -> Operation {
    if let Some(path) = path.strip_prefix(LICENSING) {
        return match (method, path) {
            (&Method::DELETE, "msp/subscriptions/devices/all") => Operation::Unassign,
            (&Method::POST, "msp/subscriptions/devices/all") => Operation::Assign,
            (&Method::GET, "services/config") => Operation::ServicesConfig,
            (&Method::GET, "services/enabled") => Operation::ServicesEnabled,
            (&Method::GET, "subscriptions") => Operation::Subscriptions,
            (&Method::GET, "subscriptions/stats") => Operation::Stats,
            (&Method::GET | &Method::POST | &Method::DELETE, "msp/customer/settings/autolicense") => {
                Operation::AutoLicense
            }
            _ => Operation::NoRoute,
        };
    }
    match (method, path) {
        (&Method::POST, "/oauth2/token") => Operation::Token,
        (&Method::POST, "/oauth2/authorize/central/api/login") => Operation::Login,
        (&Method::POST, "/oauth2/authorize/central/api") => Operation::Authorize,
        (&Method::DELETE, "/oauth2/api/tokens") => Operation::Revoke,
        (&Method::GET, "/msp_api/v1/customers") => Operation::Customers,
        (&Method::GET, "/msp_api/v1/devices") => Operation::Devices,
        (&Method::GET, path) if listings::tenant_of(path).is_some() => Operation::Devices,
        (&Method::GET, path) if listings::is_inventory(path) => Operation::Devices,
        _ => Operation::NoRoute,
    }
}

/// Answers a call that Kong let through.
pub(crate) fn carry_out(world: &mut World, call: &Received) -> Page {
    world.now(); // background work that is due is done first
    let page = match call.operation {
        Operation::Unassign => unassign(world, call),
        Operation::Assign => assign(world, call),
        Operation::AutoLicense => auto_license(world, call),
        Operation::ServicesConfig => listings::services_config(world, call),
        Operation::ServicesEnabled => Page::json(200, &json!({ "services": { "services": world.account.catalogue } })),
        Operation::Subscriptions => listings::subscriptions(world, call),
        Operation::Stats => listings::stats(world, call),
        Operation::Customers => listings::customers(world, call),
        Operation::Devices => listings::devices(world, call),
        Operation::Any
        | Operation::NoRoute
        | Operation::Token
        | Operation::Login
        | Operation::Authorize
        | Operation::Revoke => Page::kong(404, super::kong::NO_ROUTE),
    };
    if page.status < 300 {
        world.record.note(call.sequence, |call| call.processed = true);
    }
    page
}

fn unassign(world: &mut World, call: &Received) -> Page {
    let now = world.now();
    let result = ScopedServices::parse(&call.body, world.settings.empty_list)
        .and_then(|request| world.account.unassign(&request, &world.settings, now));
    match result {
        Ok(applied) => {
            world.record.note(call.sequence, |call| call.applied = applied);
            success(world)
        }
        Err(refusal) => refused(refusal),
    }
}

// Assigning is not what this stand-in is for: checked like an unassignment, then nothing changes.
fn assign(world: &World, call: &Received) -> Page {
    match ScopedServices::parse(&call.body, world.settings.empty_list) {
        Ok(_) => success(world),
        Err(refusal) => refused(refusal),
    }
}

fn auto_license(world: &mut World, call: &Received) -> Page {
    if call.parts.method == Method::GET {
        let id = call.parameter("customer_id").unwrap_or(&world.settings.msp_id);
        return match world.account.owners.iter().find(|owner| owner.id == id) {
            Some(owner) => Page::json(200, &json!({ "services": owner.auto_license })),
            None => refused(Refusal::NotFound(format!("customer not found: {id}"))),
        };
    }
    let on = call.parts.method == Method::POST;
    let result = ScopedServices::parse(&call.body, world.settings.empty_list)
        .and_then(|request| world.account.set_auto_license(&request, &world.settings, on));
    match result {
        Ok(()) => success(world),
        Err(refusal) => refused(refusal),
    }
}

fn success(world: &World) -> Page {
    let (content_type, text) = world.settings.success_body.render();
    Page::new(200, content_type, text)
}

// Which dialect the licensing service speaks is not known (A): d for arguments, c for entities.
fn refused(refusal: Refusal) -> Page {
    match refusal {
        Refusal::BadRequest(detail) => Page::json(400, &json!({ "detail": detail })),
        Refusal::NotFound(description) => dialects::central_service(404, &description),
    }
}

/// `value` or nothing, for parameters that must be numbers.
pub(crate) fn number(call: &Received, name: &str, default: usize) -> Result<usize, Page> {
    match call.parameter(name) {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| {
            let detail: Value = format!("{name} must be a whole number, got {text:?}").into();
            Page::json(400, &json!({ "detail": detail }))
        }),
    }
}
