//! One call to Central, and what it teaches about the quota and about Central's health.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use reqwest::Method;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{Dispatch, lock};
use crate::{
    central::{
        Error,
        breaker::Change,
        retry::{self, Attempts, CallKind},
        wire::Complaint,
    },
    chance,
    exchange::{self, Answer, Body, HttpClient, OnBehalf, Request},
    quota::{Permit, Purpose, RateLimitHeaders},
    telemetry::{Origin, metrics::Window},
    token::{AccessToken, failpoint},
};

/// What is sent, and for which requests.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) query: &'a [(&'a str, &'a str)],
    pub(super) headers: &'a [(&'static str, &'a str)],
    pub(super) body: Body,
    pub(super) token: &'a AccessToken,
    pub(super) origins: &'a [Origin],
    pub(super) permit: Permit,
    /// When the last of them stops waiting.
    pub(super) give_up: Instant,
}

/// A call that was not accepted.
pub(super) struct Refused {
    pub(super) error: Error,
    /// It surely did not run and may be sent again after this; none: the error stands.
    pub(super) repeat_after: Option<Duration>,
}

impl Dispatch {
    /// One call. What it teaches about the quota and about Central's health is kept.
    pub(super) async fn call(
        &self,
        client: &HttpClient,
        call: Call<'_>,
        attempts: &mut Attempts,
    ) -> Result<Answer, Refused> {
        let began = Instant::now();
        let pass = lock(&self.breaker)
            .ask(began)
            .map_err(|retry_after| Refused { error: Error::Down { retry_after }, repeat_after: None })?;
        call.permit.spend();
        let kind = if call.method == Method::GET { CallKind::Read } else { CallKind::Change };
        let request = Request {
            method: call.method,
            path: call.path,
            query: call.query,
            bearer: Some(call.token.secret()),
            headers: call.headers,
            body: call.body,
            resend_count: attempts.sent,
            on_behalf: OnBehalf::Members(call.origins),
        };
        let result = client.send(request).await;
        if kind == CallKind::Change {
            failpoint("change: answered");
        }
        let now = Instant::now();
        attempts.sent += 1;
        self.took(now - began);
        let result = self.classify(kind, result, call.token);
        let is_alive = !matches!(&result, Err(error) if error.is_outage());
        match lock(&self.breaker).ended(pass, is_alive, now) {
            Some(Change::Opened(pause)) => warn!(?pause, "Central is down: no calls are made for a while"),
            Some(Change::Closed) => info!("Central is back: calls are made again"),
            None => {}
        }
        result.map_err(|error| {
            attempts.note(&error, call.token.generation());
            // Waiting to be sent again is waiting: no longer than before the first call.
            let left = call.give_up.saturating_duration_since(now).min(self.max_wait);
            let repeat_after = retry::next(&error, *attempts, left, chance::jitter());
            // A token that Central no longer takes is our trouble, not Central's: it is not in the budget.
            let is_granted = |_: &Duration| attempts.is_unauthorized() || lock(&self.budget).spend(now);
            Refused { error, repeat_after: repeat_after.filter(is_granted) }
        })
    }

    /// What came back, and what is to be learned from it.
    fn classify(
        &self,
        kind: CallKind,
        result: Result<Answer, exchange::Error>,
        token: &AccessToken,
    ) -> Result<Answer, Error> {
        let answer = result?;
        self.quota.learn(Purpose::Change, answer.status, &answer.headers);
        if answer.status != 401 {
            token.mark_accepted();
        }
        let Err(error) = retry::judge(kind, &answer, SystemTime::now()) else { return Ok(answer) };
        let complaint = Complaint::read(&answer.body);
        debug!(
            http_status = answer.status,
            dialect = ?complaint.dialect,
            words = complaint.for_log(),
            "Central did not accept a call"
        );
        match error {
            Error::RateLimited { .. } if RateLimitHeaders::read(&answer.headers, SystemTime::now()).is_silent() => {
                self.tracing.metrics().throttled(Window::Unknown);
            }
            Error::RateLimited { .. } => self.tracing.metrics().throttled(Window::Second),
            Error::QuotaExhausted { .. } => self.tracing.metrics().throttled(Window::Day),
            _ => {}
        }
        if answer.status == 429
            && let Ok((next_permit, _)) = self.quota.outlook(Purpose::Change)
        {
            let wait = next_permit.saturating_duration_since(Instant::now());
            let error = Arc::new(Error::RateLimited { wait, is_answer: false });
            lock(&self.queue).leave_before(next_permit, &error);
        }
        Err(error)
    }

    fn took(&self, time: Duration) {
        let mut call_time = lock(&self.call_time);
        *call_time = if call_time.is_zero() { time } else { *call_time * 7 / 8 + time / 8 };
    }
}
