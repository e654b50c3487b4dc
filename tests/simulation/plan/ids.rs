//! Ids of requests: callers, libraries and people who ask again, at once, later, and in the next life of the gateway.

use rand::RngExt as _;
use uuid::Builder;

use super::{Bound, Chance, DEADLINES, Life, Request, in_order};

impl Chance {
    /// Gives some requests an id, and adds repeats of them, in their life and in later ones.
    pub(super) fn ids(&mut self, lives: &mut [Life], callers: usize) {
        let mut earlier: Vec<Request> = Vec::new();
        for (number, life) in lives.iter_mut().enumerate() {
            for request in &mut life.requests {
                if request.bound != Bound::PreviewAlone && self.once_in(2) {
                    request.id = Some(Builder::from_random_bytes(self.0.random()).into_uuid());
                }
            }
            let with_id: Vec<_> = life.requests.iter().filter(|one| one.id.is_some()).cloned().collect();
            let mut repeats = Vec::new();
            for first in &with_id {
                for _ in 0..*self.of(&[0, 0, 1, 1, 2, 4]) {
                    let after = *self.of(&[0, 1, 5, 50, 200, 1_000, 3_000]);
                    repeats.push(self.repeat(first, first.at + after, (number, repeats.len()), callers));
                }
            }
            for first in &earlier {
                if self.once_in(2) {
                    let at = self.from(0..3_000);
                    repeats.push(self.repeat(first, at, (number, repeats.len()), callers));
                }
            }
            life.requests.extend(repeats);
            in_order(&mut life.requests);
            earlier.extend(with_id);
        }
    }

    /// The same again; now and then something else under the same id, or another caller's.
    fn repeat(&mut self, first: &Request, at: u64, (life, number): (usize, usize), callers: usize) -> Request {
        let mut repeat = Request {
            name: format!("{}.{life}.{number}", first.name),
            at,
            deadline: *self.of(&DEADLINES),
            departs_after: self.once_in(7).then(|| self.from(0..1_500)),
            ..first.clone()
        };
        match self.0.random_range(0..12) {
            0 => repeat.caller = (first.caller + 1) % callers,
            1 => repeat.services = vec![(first.services[0] + 1) % 2],
            _ => {}
        }
        repeat
    }
}
