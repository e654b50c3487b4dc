//! The token endpoint, the login flow and revocation.

use serde_json::{Value, json};

use super::{
    calls::{Grant, Placement, fingerprint},
    dialects::Page,
    exchange::Received,
    faults::Operation,
    settings::{GrantPlacement, RefreshRace},
    world::World,
};

/// Answers an oauth call. `seen`: the pair that the refresh token belonged to when the call arrived.
pub(crate) fn carry_out(world: &mut World, call: &Received, seen: Option<u64>) -> Page {
    match call.operation {
        Operation::Login => login(world, call),
        Operation::Authorize => authorize(world, call),
        Operation::Revoke => revoke(world, call),
        _ => token(world, call, seen),
    }
}

/// With `refresh_race = both_win`: the pair that the call's refresh token belongs to now.
pub(crate) fn refresh_seen(world: &mut World, call: &Received) -> Option<u64> {
    if call.operation != Operation::Token || world.settings.refresh_race != RefreshRace::BothWin {
        return None;
    }
    let parameters = Parameters::read(call, world.settings.grant_placement);
    let now = world.now();
    world.tokens.by_refresh(parameters.text("refresh_token")?, now).map(|row| row.generation)
}

/// The 200 of the token endpoint (C, K).
pub(crate) fn pair_page(access: &str, refresh: &str, expires_in_s: u64) -> Page {
    no_store(Page::kong_json(
        200,
        &json!({
            "access_token": access,
            "refresh_token": refresh,
            "expires_in": expires_in_s,
            "token_type": "bearer",
        }),
    ))
}

// The order of the checks is Kong's (K): grant type, client, grant.
fn token(world: &mut World, call: &Received, seen: Option<u64>) -> Page {
    let parameters = Parameters::read(call, world.settings.grant_placement);
    let grant_type = parameters.text("grant_type").unwrap_or_default();
    let secret = parameters.text("refresh_token").or_else(|| parameters.text("code"));
    let grant = Grant { kind: grant_type.to_owned(), placement: parameters.placement, secret: secret.map(fingerprint) };
    world.record.note(call.sequence, |call| call.grant = Some(grant));

    if !matches!(grant_type, "refresh_token" | "authorization_code") {
        return refusal(400, "unsupported_grant_type", "Invalid grant_type");
    }
    let from_parameters = parameters.text("client_id").zip(parameters.text("client_secret"));
    let basic = call.header("authorization").and_then(basic_credentials);
    let client = from_parameters.map(|(id, secret)| (id.to_owned(), secret.to_owned())).or_else(|| basic.clone());
    let known = (world.settings.client_id.clone(), world.settings.client_secret.clone());
    if client.is_none_or(|client| client != known) {
        return if from_parameters.is_none() && basic.is_some() {
            refusal(401, "invalid_client", "Invalid client authentication")
                .with("WWW-Authenticate", r#"Basic realm="OAuth2.0""#)
        } else {
            refusal(400, "invalid_client", "Invalid client authentication")
        };
    }

    let now = world.now();
    let row = if grant_type == "refresh_token" {
        let refresh = parameters.text("refresh_token").unwrap_or_default();
        let found = seen.or_else(|| world.tokens.by_refresh(refresh, now).map(|row| row.generation));
        let Some(generation) = found else {
            return refusal(400, "invalid_request", "Invalid refresh_token");
        };
        world.record.note(call.sequence, |call| call.token_generation = Some(generation));
        world.tokens.rotate(generation, &world.settings, now)
    } else {
        if !world.tokens.redeem_code(parameters.text("code").unwrap_or_default(), now) {
            return refusal(400, "invalid_request", "Invalid code");
        }
        world.tokens.issue(&world.settings, now)
    };
    world.record.note(call.sequence, |call| call.processed = true);
    pair_page(&row.access, &row.refresh, world.settings.access_token_life_s)
}

fn refusal(status: u16, error: &str, description: &str) -> Page {
    no_store(Page::kong_json(status, &json!({ "error": error, "error_description": description })))
}

fn no_store(page: Page) -> Page {
    page.with("Cache-Control", "no-store").with("Pragma", "no-cache")
}

fn login(world: &mut World, call: &Received) -> Page {
    let now = world.now();
    if let Err(wait) = world.tokens.throttle_login(now) {
        let seconds = wait.as_millis().div_ceil(1_000);
        return Page::kong(429, &format!("Too many login requests, please try again after {seconds} seconds"));
    }
    if call.parameter("client_id") != Some(&world.settings.client_id) {
        return Page::json(400, &json!({ "status": false, "message": "Invalid client_id" }));
    }
    let body = json_object(call);
    let is = |name: &str, expected: &str| body.get(name).and_then(Value::as_str) == Some(expected);
    if !is("username", &world.settings.username) || !is("password", &world.settings.password) {
        // A 200 that says no: clients are known to check `status` besides the HTTP status (C); when it is so is A.
        return Page::json(200, &json!({ "status": false, "message": "Invalid username or password" }));
    }
    let session = world.tokens.open_session();
    world.record.note(call.sequence, |call| call.processed = true);
    Page::json(200, &json!({ "status": true }))
        .with("Set-Cookie", &format!("csrftoken={}; Path=/", session.csrf))
        .with("Set-Cookie", &format!("session={}; Path=/; HttpOnly", session.session))
}

fn authorize(world: &mut World, call: &Received) -> Page {
    if !has_session(world, call) {
        return Page::json(401, &json!({ "message": "Not logged in, or the CSRF token is missing" }));
    }
    if call.parameter("client_id") != Some(&world.settings.client_id) || call.parameter("response_type") != Some("code")
    {
        let body = json!({ "error": "invalid_request", "error_description": "Invalid client_id or response_type" });
        return Page::kong_json(400, &body);
    }
    if json_object(call).get("customer_id").and_then(Value::as_str) != Some(&world.settings.msp_id) {
        return Page::json(400, &json!({ "message": "Invalid customer_id" }));
    }
    let now = world.now();
    let code = world.tokens.issue_code(now);
    world.record.note(call.sequence, |call| call.processed = true);
    Page::json(200, &json!({ "auth_code": code }))
}

fn revoke(world: &mut World, call: &Received) -> Page {
    if !has_session(world, call) {
        return Page::json(401, &json!({ "message": "Not logged in, or the CSRF token is missing" }));
    }
    let body = json_object(call);
    let access = body.get("access_token").and_then(Value::as_str).unwrap_or_default();
    if !world.tokens.revoke(access) {
        return Page::json(404, &json!({ "message": "Token not found" }));
    }
    world.record.note(call.sequence, |call| call.processed = true);
    Page::json(200, &json!({ "message": "Token deleted" }))
}

fn has_session(world: &World, call: &Received) -> bool {
    let cookies = call.header("cookie").unwrap_or_default();
    let session = cookies.split(';').find_map(|cookie| cookie.trim().strip_prefix("session="));
    match (session, call.header("x-csrf-token")) {
        (Some(session), Some(csrf)) => world.tokens.has_session(session, csrf),
        _ => false,
    }
}

fn json_object(call: &Received) -> Value {
    serde_json::from_slice(&call.body).unwrap_or_default()
}

/// The parameters of a grant.
struct Parameters {
    pairs: Vec<(String, String)>,
    placement: Placement,
}

impl Parameters {
    /// Query and body, the body's first (K: merged, the body wins).
    fn read(call: &Received, allowed: GrantPlacement) -> Self {
        let content_type = call.header("content-type").unwrap_or_default();
        let (body, body_placement): (Vec<(String, String)>, _) = if content_type.contains("application/json") {
            let fields = serde_json::from_slice::<serde_json::Map<String, Value>>(&call.body).unwrap_or_default();
            let text = |value: Value| match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
            (fields.into_iter().map(|(name, value)| (name, text(value))).collect(), Placement::Json)
        } else if content_type.contains("application/x-www-form-urlencoded") {
            (url::form_urlencoded::parse(&call.body).into_owned().collect(), Placement::Form)
        } else {
            (Vec::new(), Placement::Query)
        };
        let in_body = body.iter().any(|(name, _)| name == "grant_type");
        let placement = if in_body { body_placement } else { Placement::Query };
        let body = if allowed == GrantPlacement::Any { body } else { Vec::new() };
        Self { pairs: body.into_iter().chain(call.query.iter().cloned()).collect(), placement }
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The two halves of `Basic base64(id:secret)`; empty ones if it is Basic and cannot be read.
fn basic_credentials(authorization: &str) -> Option<(String, String)> {
    let (scheme, encoded) = authorization.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(base64(encoded.trim())).unwrap_or_default();
    Some(text.split_once(':').map(|(id, secret)| (id.to_owned(), secret.to_owned())).unwrap_or_default())
}

/// Decodes up to the first character that is not of the alphabet.
fn base64(encoded: &str) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut decoded) = (0_u32, 0, Vec::new());
    for value in encoded.bytes().map_while(|byte| ALPHABET.iter().position(|known| *known == byte)) {
        bits = (bits << 6 | u32::try_from(value).unwrap_or_default()) & 0xff_ffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            decoded.push(u8::try_from(bits >> count & 0xff).unwrap_or_default());
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_credentials_are_read() {
        assert_eq!(basic_credentials("Basic aWQ6c2VjcmV0"), Some(("id".into(), "secret".into())));
        assert_eq!(basic_credentials("basic aWQ6c2VjcmV0MQ=="), Some(("id".into(), "secret1".into())));
        assert_eq!(basic_credentials("Basic ***"), Some((String::new(), String::new())));
        assert_eq!(basic_credentials("Bearer aWQ6"), None);
    }
}
