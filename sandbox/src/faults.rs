//! Faults on demand: a queue that reads like a script. Each call takes the first fault that is meant for it.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use super::{dialects::Answer, settings::SuccessBody};

/// What a call asks for. Also what a fault is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// In a fault: every call. Never recorded.
    Any,
    /// `DELETE /platform/licensing/v1/msp/subscriptions/devices/all`.
    Unassign,
    /// `POST` on the same path: assigns. Answered with 200, changes nothing here.
    Assign,
    /// `POST /oauth2/token`.
    Token,
    /// `POST /oauth2/authorize/central/api/login`.
    Login,
    /// `POST /oauth2/authorize/central/api`: an authorization code.
    Authorize,
    /// `DELETE /oauth2/api/tokens`.
    Revoke,
    /// `GET …/services/config`.
    ServicesConfig,
    /// `GET …/services/enabled`.
    ServicesEnabled,
    /// `GET …/subscriptions`.
    Subscriptions,
    /// `GET …/subscriptions/stats`.
    Stats,
    /// `GET`, `POST`, `DELETE …/msp/customer/settings/autolicense`.
    AutoLicense,
    /// `GET /msp_api/v1/customers`.
    Customers,
    /// Every listing of devices.
    Devices,
    /// A path that Kong has no route for.
    NoRoute,
}

impl Operation {
    /// Whether Kong answers it itself, before it looks for an access token.
    pub(crate) fn is_oauth(self) -> bool {
        matches!(self, Self::Token | Self::Login | Self::Authorize | Self::Revoke)
    }
}

/// One line of the script: which calls, whether they are carried out, how they are answered.
///
/// [`applied`](Fault::applied) is the whole truth about the effect: `true` means that the operation was carried out
/// (licences gone, token pair rotated), `false` that it was not, whatever the caller gets to see.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Which calls it is meant for.
    #[serde(default = "any")]
    pub operation: Operation,
    /// How many calls it hits; null: all from now on.
    #[serde(default = "once")]
    pub times: Option<u32>,
    /// How many calls it lets pass first. Counts only calls that no earlier fault has taken.
    #[serde(default)]
    pub skip: u32,
    /// Hits only calls whose `include_customers` names this customer.
    #[serde(default)]
    pub customer: Option<String>,
    /// Where it strikes.
    #[serde(default)]
    pub stage: Stage,
    /// What the call waits for before it is carried out (or not).
    #[serde(default)]
    pub before: Option<Wait>,
    /// Whether the operation is carried out. Always true with [`Reply::Normal`], false with [`Reply::CloseOnAccept`].
    #[serde(default)]
    pub applied: bool,
    /// What the call waits for after that, before it is answered.
    #[serde(default)]
    pub after: Option<Wait>,
    /// What the caller gets to see.
    #[serde(default)]
    pub reply: Reply,
}

fn any() -> Operation {
    Operation::Any
}

// Serde wants the field's own type.
#[allow(clippy::unnecessary_wraps)]
fn once() -> Option<u32> {
    Some(1)
}

/// Where a fault strikes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// At the licensing service: only calls that Kong let through (token, size, role, quota) are hit. An answer that is
    /// Kong's own by its status (401, 403, 413, 417, 429) and not applied is not counted against the quota.
    #[default]
    Service,
    /// At a proxy in front of Kong: every call is hit, with or without a valid token, and none is counted.
    Proxy,
}

/// What a call waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wait {
    /// So many milliseconds of real time.
    DelayMs(u64),
    /// Until this gate is released ([`Sandbox::release`](super::Sandbox::release)). A release lets those pass that
    /// wait at that moment; whoever comes later waits for the next one.
    Gate(String),
}

/// What the caller gets to see.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// What it would have been anyway.
    #[default]
    Normal,
    /// This answer.
    Answer(Answer),
    /// 200 with this body.
    Success(SuccessBody),
    /// The token endpoint's 200 with one thing wrong.
    Token(TokenBody),
    /// No answer: the connection is reset (RST).
    Reset,
    /// No answer: the connection is closed (FIN).
    Close,
    /// Headers and half of the body, then the connection is reset (RST).
    ResetMidway,
    /// Headers and half of the announced body, then the connection is closed (FIN).
    Truncated,
    /// Headers that announce more than there is, the whole body, then the connection is reset (RST).
    ResetBehind,
    /// No answer, ever; the connection stays open.
    Silence,
    /// A 200 whose body has this many bytes, all of them blanks.
    Huge(u64),
    /// This status, and a body that repeats the received Authorization header, query and body: hostile on purpose.
    EchoSecrets(u16),
    /// The next connection is closed right after it is accepted, before anything is read, be it one to
    /// `/__sandbox/`. Needs the operation `any`.
    CloseOnAccept,
    /// The stand-in itself panics: to see that tests notice.
    Panic,
}

/// What is wrong with the token endpoint's 200. With `applied` the tokens in it are real, else they are invented.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenBody {
    /// JSON cut short.
    Malformed,
    /// An HTML page.
    Html,
    /// No bytes.
    Empty,
    /// A field is missing: `access_token`, `refresh_token`, `expires_in`, `token_type`.
    Without(String),
    /// `expires_in` has this value: `"7200"`, 0, -1, 1e12, null, …
    ExpiresIn(serde_json::Value),
}

impl Fault {
    /// Hits the next call of any operation, which is not carried out (unless the reply is normal).
    pub fn new(reply: Reply) -> Self {
        Self {
            operation: Operation::Any,
            times: Some(1),
            skip: 0,
            customer: None,
            stage: Stage::Service,
            before: None,
            applied: reply == Reply::Normal,
            after: None,
            reply,
        }
    }

    /// Nothing unusual: for scripts such as transient, transient, success.
    pub fn none() -> Self {
        Self::new(Reply::Normal)
    }

    /// This status in the dialect that goes with it; not carried out.
    pub fn answer(status: u16) -> Self {
        Self::new(Reply::Answer(Answer::new(status)))
    }

    /// Reset without an answer; not carried out unless [`and_applied`](Self::and_applied).
    pub fn reset() -> Self {
        Self::new(Reply::Reset)
    }

    /// Never an answer; not carried out unless [`and_applied`](Self::and_applied).
    pub fn silence() -> Self {
        Self::new(Reply::Silence)
    }

    /// A normal call that waits at this gate before it is carried out.
    pub fn hold(gate: &str) -> Self {
        Self { before: Some(Wait::Gate(gate.into())), ..Self::none() }
    }

    /// A normal call that is carried out and then waits at this gate with its answer.
    pub fn hold_answer(gate: &str) -> Self {
        Self { after: Some(Wait::Gate(gate.into())), ..Self::none() }
    }

    /// Meant for this operation only.
    #[must_use]
    pub fn on(self, operation: Operation) -> Self {
        Self { operation, ..self }
    }

    /// Hits so many calls.
    #[must_use]
    pub fn times(self, times: u32) -> Self {
        Self { times: Some(times), ..self }
    }

    /// Hits every call from now on.
    #[must_use]
    pub fn always(self) -> Self {
        Self { times: None, ..self }
    }

    /// Lets so many calls pass first.
    #[must_use]
    pub fn skip(self, skip: u32) -> Self {
        Self { skip, ..self }
    }

    /// Hits only calls whose `include_customers` names this customer.
    #[must_use]
    pub fn naming(self, customer_id: &str) -> Self {
        Self { customer: Some(customer_id.into()), ..self }
    }

    /// Strikes in front of Kong, whatever the token.
    #[must_use]
    pub fn at_proxy(self) -> Self {
        Self { stage: Stage::Proxy, ..self }
    }

    /// The operation is carried out all the same.
    #[must_use]
    pub fn and_applied(self) -> Self {
        Self { applied: true, ..self }
    }

    /// Waits before the operation is carried out (or not).
    #[must_use]
    pub fn delayed(self, delay: Duration) -> Self {
        Self { before: Some(delay_ms(delay)), ..self }
    }

    /// Waits between the operation and its answer.
    #[must_use]
    pub fn answering_late(self, delay: Duration) -> Self {
        Self { after: Some(delay_ms(delay)), ..self }
    }

    /// What makes this fault meaningless: the field, and what it may be.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.times == Some(0) {
            return Err(("times", "must be at least 1, or null for all calls".into()));
        }
        match &self.reply {
            Reply::CloseOnAccept if self.operation != Operation::Any || self.customer.is_some() => {
                Err(("operation", "close_on_accept knows no operation yet: must be any, without customer".into()))
            }
            Reply::Answer(answer) if !(200..=599).contains(&answer.status) => {
                Err(("reply.answer.status", "must be from 200 to 599".into()))
            }
            Reply::EchoSecrets(status) if !(200..=599).contains(status) => {
                Err(("reply.echo_secrets", "must be from 200 to 599".into()))
            }
            Reply::Token(_) if self.operation != Operation::Token => {
                Err(("operation", "reply token goes with the operation token".into()))
            }
            _ => Ok(()),
        }
    }

    /// Whether it refuses as Kong does, before the quota is counted.
    pub(crate) fn refuses_as_kong(&self) -> bool {
        matches!(&self.reply, Reply::Answer(answer) if matches!(answer.status, 401 | 403 | 413 | 417 | 429))
            && !self.applied
    }

    fn is_for(&self, operation: Operation, names: impl Fn(&str) -> bool) -> bool {
        let meant = self.operation == Operation::Any || self.operation == operation;
        meant && self.reply != Reply::CloseOnAccept && self.customer.as_deref().is_none_or(names)
    }
}

fn delay_ms(delay: Duration) -> Wait {
    Wait::DelayMs(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX))
}

/// The faults that are still to come, in order.
#[derive(Debug, Default)]
pub(crate) struct Faults(VecDeque<Fault>);

impl Faults {
    pub(crate) fn push(&mut self, mut fault: Fault) {
        match fault.reply {
            Reply::Normal => fault.applied = true,
            Reply::CloseOnAccept => fault.applied = false,
            _ => {}
        }
        self.0.push_back(fault);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn list(&self) -> Vec<Fault> {
        self.0.iter().cloned().collect()
    }

    /// The first fault that is meant for this call. Faults before it that still let calls pass have let one more pass.
    pub(crate) fn take(&mut self, stage: Stage, operation: Operation, names: impl Fn(&str) -> bool) -> Option<Fault> {
        self.take_first(|fault| fault.stage == stage && fault.is_for(operation, &names))
    }

    /// The next fault for this call if it refuses as Kong does. A script keeps its order: a refusal that stands behind
    /// another fault for this call is not taken.
    pub(crate) fn take_refusal(&mut self, operation: Operation, names: impl Fn(&str) -> bool) -> Option<Fault> {
        let next = self
            .0
            .iter()
            .find(|fault| fault.stage == Stage::Service && fault.skip == 0 && fault.is_for(operation, &names));
        if !next.is_some_and(Fault::refuses_as_kong) {
            return None;
        }
        self.take(Stage::Service, operation, names)
    }

    /// Whether a new connection is to be closed at once.
    pub(crate) fn closes_on_accept(&mut self) -> bool {
        self.take_first(|fault| fault.reply == Reply::CloseOnAccept).is_some()
    }

    fn take_first(&mut self, is_meant: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let position = self.0.iter_mut().position(|fault| match fault.skip {
            _ if !is_meant(fault) => false,
            0 => true,
            _ => {
                fault.skip -= 1;
                false
            }
        })?;
        let fault = &mut self.0[position];
        match &mut fault.times {
            Some(times) if *times > 1 => *times -= 1,
            Some(_) => return self.0.remove(position),
            None => {}
        }
        Some(fault.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(faults: &mut Faults, operation: Operation) -> Option<u16> {
        let taken = faults.take(Stage::Service, operation, |customer| customer == "named")?;
        match taken.reply {
            Reply::Answer(answer) => Some(answer.status),
            other => panic!("not an answer: {other:?}"),
        }
    }

    #[test]
    fn faults_are_taken_in_order_by_those_they_are_meant_for() {
        let mut faults = Faults::default();
        faults.push(Fault::answer(503).on(Operation::Unassign).times(2));
        faults.push(Fault::answer(500).on(Operation::Token));
        faults.push(Fault::answer(502).skip(1));
        assert_eq!(take(&mut faults, Operation::Token), Some(500));
        assert_eq!(take(&mut faults, Operation::Unassign), Some(503));
        assert_eq!(take(&mut faults, Operation::Unassign), Some(503));
        assert_eq!(take(&mut faults, Operation::Unassign), None, "let pass");
        assert_eq!(take(&mut faults, Operation::Customers), Some(502));
        assert!(faults.list().is_empty());
    }

    #[test]
    fn a_fault_for_a_customer_waits_for_that_customer() {
        let mut faults = Faults::default();
        faults.push(Fault::answer(404).naming("other"));
        faults.push(Fault::answer(409).naming("named").always());
        assert_eq!(take(&mut faults, Operation::Unassign), Some(409));
        assert_eq!(take(&mut faults, Operation::Unassign), Some(409));
    }

    #[test]
    fn stages_do_not_mix() {
        let mut faults = Faults::default();
        faults.push(Fault::answer(502).at_proxy());
        assert_eq!(take(&mut faults, Operation::Unassign), None);
        assert!(faults.take(Stage::Proxy, Operation::Unassign, |_| false).is_some());
    }
}
