//! The gateway in front of Central's services, in Kong's order: token (401), size (413, 417), role (403), quota (429).

use super::{
    dialects::{self, Page},
    exchange::Received,
    settings::Role,
    world::World,
};
use serde_json::json;

/// What [`Page::kong`] says for a path without a route (K).
pub(crate) const NO_ROUTE: &str = "no route and no API found with those values";

/// The first three steps: the generation of the caller's token, or the refusal.
pub(crate) fn admit(world: &mut World, call: &Received) -> Result<Option<u64>, Page> {
    let generation = if call.operation.is_oauth() { None } else { Some(authenticate(world, call)?) };
    if call.too_large {
        return Err(if call.expects_continue {
            Page::kong(417, "Request size limit exceeded")
        } else {
            Page::kong(413, "Request size limit exceeded")
        });
    }
    if world.settings.role == Role::NotMsp && call.path().contains("/msp") {
        return Err(Page::kong(403, "You cannot consume this service"));
    }
    Ok(generation)
}

/// The fourth step: counts the call; the quota's headers, or the refusal that carries them.
pub(crate) fn count(world: &mut World, call: &Received) -> Result<Vec<(String, String)>, Page> {
    if call.operation.is_oauth() && !world.settings.count_token_calls {
        return Ok(Vec::new());
    }
    let now = world.now();
    let verdict = world.limits.count(now, world.settings.per_second, world.settings.per_day);
    if verdict.passes {
        return Ok(verdict.headers);
    }
    let mut page = Page::kong(429, "API rate limit exceeded");
    page.headers.extend(verdict.headers);
    Err(page)
}

fn authenticate(world: &mut World, call: &Received) -> Result<u64, Page> {
    let bearer = call.header("authorization").and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let Some(access) = bearer.or_else(|| call.parameter("access_token")) else {
        let body = json!({ "error": "invalid_request", "error_description": "The access token is missing" });
        return Err(Page::kong_json(401, &body).with("WWW-Authenticate", r#"Bearer realm="service""#));
    };
    let now = world.now();
    match world.tokens.by_access(access, now) {
        Some(row) => Ok(row.generation),
        None => Err(dialects::invalid_token(401, "The access token is invalid or has expired")),
    }
}
