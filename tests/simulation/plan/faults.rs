//! How Central misbehaves: a script of faults for each operation.

use std::time::Duration;

use central_sandbox::{Answer, Dialect, Fault, Operation, RateHeaders, Reply, SuccessBody, TokenBody};

use super::{Central, Chance, DEADLINES, Gateway, Ms, Request, Scope};

impl Chance {
    /// The faults of a life. They are taken in order, each by the first call that it is meant for.
    pub(super) fn faults(&mut self, central: &Central, gateway: &Gateway, requests: &[Request]) -> Vec<Fault> {
        let mut faults = Vec::new();
        // A customer whom Central does not serve, whatever they travel with.
        if self.once_in(4)
            && let Some(named) = self.named(requests)
        {
            let status = *self.of(&[400, 403, 404, 409, 422]);
            faults.push(Fault::answer(status).on(Operation::Unassign).naming(&named).always());
        }
        let trouble = *self.of(&[0, 2, 3, 5]);
        // Parts of a scope that is too large are best met by answers that are late.
        let is_only_late = central.ids_per_call.is_some() && self.once_in(3);
        if trouble > 0 {
            for _ in 0..24 {
                let fault = match self.below(10) < trouble * 2 {
                    true if is_only_late => Fault::none().answering_late(self.late(gateway)),
                    true => self.of_a_change(gateway),
                    false => Fault::none(),
                };
                faults.push(fault.on(Operation::Unassign));
            }
        }
        if self.once_in(3) {
            for _ in 0..8 {
                let fault = if self.once_in(2) { self.of_a_read(gateway) } else { Fault::none() };
                faults.push(fault.on(Operation::Customers));
            }
        }
        if self.once_in(4) {
            for _ in 0..4 {
                let fault = if self.once_in(2) { self.of_the_token(gateway) } else { Fault::none() };
                faults.push(fault.on(Operation::Token));
            }
        }
        if self.once_in(10) {
            faults.push(Fault::answer(503).on(Operation::ServicesConfig).times(2));
        }
        faults
    }

    fn named(&mut self, requests: &[Request]) -> Option<String> {
        let Scope::Include(customers) = &requests[self.below(requests.len())].scope else { return None };
        Some(self.of(customers).clone())
    }

    /// How long something takes that takes too long: as long as a caller or the gateway waits, or a little less or more.
    fn late(&mut self, gateway: &Gateway) -> Duration {
        let deadline = self.of(&DEADLINES).filter(|deadline| *deadline < 10_000).unwrap_or(gateway.timeout);
        if self.once_in(2) {
            return Duration::from_millis(self.from(100..deadline.min(gateway.timeout) + 100));
        }
        let off: i64 = *self.of(&[-150, -40, -15, 0, 15, 60, 300]);
        let length: Ms = deadline.saturating_add_signed(off);
        Duration::from_millis(length)
    }

    fn of_a_change(&mut self, gateway: &Gateway) -> Fault {
        let is_applied = self.once_in(2);
        let fault = match self.below(20) {
            0..=3 => Fault::none().answering_late(self.late(gateway)),
            4 => Fault::none().delayed(self.late(gateway)),
            5 => return self.refusal(),
            6 => return Fault::answer(429),
            7 => return Fault::new(Reply::Answer(Answer::new(429).rate_headers(RateHeaders::None))),
            8 => return Fault::answer(401),
            9 => return Fault::new(Reply::Answer(Answer::new(404).dialect(Dialect::Html))),
            10 => Fault::answer(*self.of(&[500, 502, 503, 504])),
            11 => Fault::reset(),
            12 => Fault::new(Reply::Close),
            13 => return Fault::new(self.of(&[Reply::ResetMidway, Reply::Truncated]).clone()).and_applied(),
            14 => Fault::silence(),
            15 => Fault::new(Reply::Answer(Answer { status: *self.of(&[302, 303, 307]), ..Answer::redirect("/") })),
            16 => Fault::new(Reply::Answer(Answer::new(200).dialect(Dialect::Html))),
            17 => Fault::new(Reply::Success(SuccessBody::ReportsFailure)),
            18 => {
                let body = *self.of(&REPORTED_FAILURES);
                Fault::new(Reply::Answer(Answer::new(*self.of(&[200, 200, 207])).body(body)))
            }
            _ => {
                let odd = Answer::new(200).body("{\"status\":\"success\"}").rate_headers(RateHeaders::DaySpent);
                return Fault::new(Reply::Answer(odd)).and_applied();
            }
        };
        if is_applied { fault.and_applied() } else { fault }
    }

    /// Surely not applied.
    fn refusal(&mut self) -> Fault {
        Fault::answer(*self.of(&[400, 403, 404, 409, 413, 417, 422, 501]))
    }

    fn of_a_read(&mut self, gateway: &Gateway) -> Fault {
        match self.below(8) {
            0 => Fault::answer(503),
            1 => Fault::answer(429),
            2 => Fault::reset(),
            3 => Fault::new(Reply::Truncated).and_applied(),
            4 => Fault::new(Reply::Answer(Answer::new(200).dialect(Dialect::Html))),
            5 => Fault::new(Reply::Answer(Answer::new(200).body("{\"customers\":[],\"total\":0}"))),
            6 => Fault::silence(),
            _ => Fault::none().answering_late(self.late(gateway)),
        }
    }

    fn of_the_token(&mut self, gateway: &Gateway) -> Fault {
        match self.below(9) {
            0 => Fault::answer(503),
            1 => Fault::answer(500),
            2 => Fault::answer(429),
            3 => Fault::reset(),
            4 => Fault::reset().and_applied(),
            5 => Fault::new(Reply::Token(TokenBody::Malformed)).and_applied(),
            6 => Fault::new(Reply::Token(TokenBody::Html)),
            7 => Fault::new(Reply::ResetMidway).and_applied(),
            _ => Fault::none().answering_late(self.late(gateway)),
        }
    }
}

/// A 2xx that says that it failed, in the shapes that Central's other operations use.
const REPORTED_FAILURES: [&str; 4] = [
    r#"{"error_code":"0001","description":"failed"}"#,
    r#"{"detail":"licenses could not be unassigned"}"#,
    r#"{"response":"failure"}"#,
    r#"[{"status":"failed","customer_id":"c01"}]"#,
];
