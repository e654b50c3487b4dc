//! Where requests wait for a slot. The queue is the batch: whoever waits for the same slot with the same services
//! travels together.
//!
//! Every caller has a lane, and slots go round the lanes in turn, so that one caller's flood does not starve another.
//! Pure: the loop that empties it is [`super::dispatch`].

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Error,
    batch::{self, Batch, Member},
};
use crate::license::{Caller, Scope, Services};

/// The requests that wait.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// In the order of their turns.
    lanes: VecDeque<Lane>,
}

/// What one caller waits for. Never empty.
#[derive(Debug)]
struct Lane {
    caller: Caller,
    batches: VecDeque<Batch>,
}

/// Where a request stands, or would stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spot {
    lane: usize,
    position: usize,
}

/// Where a request would go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prospect {
    /// The batch it can join.
    joins: Option<Spot>,
    /// How many calls go out before its own.
    pub(super) turns_ahead: usize,
    /// Whether the batch comes sooner in the joining caller's own lane.
    moves: bool,
}

impl Queue {
    /// Where a request would go, and how many calls go out before it.
    pub(super) fn prospect(&self, caller: &Caller, scope: &Scope, services: &Services) -> Prospect {
        let own = match self.lanes.iter().position(|lane| lane.caller == *caller) {
            Some(lane) => Spot { lane, position: self.lanes[lane].batches.len() },
            None => Spot { lane: self.lanes.len(), position: 0 },
        };
        let own_turns = self.turns_ahead(own);
        let key = batch::key(services);
        let joins = self.lanes.iter().enumerate().find_map(|(lane, waiting)| {
            let position = waiting.batches.iter().position(|batch| batch.takes(scope, &key))?;
            Some(Spot { lane, position })
        });
        let its_turns = joins.map_or(own_turns, |spot| self.turns_ahead(spot));
        Prospect { joins, turns_ahead: own_turns.min(its_turns), moves: own_turns < its_turns }
    }

    /// Takes a request in, where `prospect` says.
    pub(super) fn join(&mut self, prospect: Prospect, scope: &Scope, services: &Services, member: Member) {
        let caller = member.caller.clone();
        let Some(spot) = prospect.joins else {
            return self.lane(&caller).push_back(Batch::new(scope, services, member));
        };
        if !prospect.moves {
            return self.lanes[spot.lane].batches[spot.position].add(scope, member);
        }
        if let Some(mut batch) = self.lanes[spot.lane].batches.remove(spot.position) {
            batch.add(scope, member);
            self.lane(&caller).push_back(batch);
            self.lanes.retain(|lane| !lane.batches.is_empty());
        }
    }

    /// What is to be sent next. Those whose callers have gone are not in it.
    pub(super) fn next(&mut self) -> Option<Batch> {
        loop {
            let mut lane = self.lanes.pop_front()?;
            let batch = lane.batches.pop_front();
            if !lane.batches.is_empty() {
                self.lanes.push_back(lane);
            }
            let Some(mut batch) = batch else { continue };
            batch.leave_if_shut();
            if !batch.is_empty() {
                return Some(batch);
            }
        }
    }

    /// Halves of a batch come next in their caller's lane.
    pub(super) fn put_back(&mut self, batches: [Batch; 2]) {
        for batch in batches.into_iter().rev() {
            if let Some(caller) = batch.caller().cloned() {
                self.lane(&caller).push_front(batch);
            }
        }
    }

    /// Those who cannot wait until `at` are told the error now.
    pub(super) fn leave_before(&mut self, at: Instant, error: &Arc<Error>) {
        for lane in &mut self.lanes {
            for batch in &mut lane.batches {
                batch.leave_before(at, error);
            }
            lane.batches.retain(|batch| !batch.is_empty());
        }
        self.lanes.retain(|lane| !lane.batches.is_empty());
    }

    /// Everybody leaves.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Batch> + use<> {
        std::mem::take(&mut self.lanes).into_iter().flat_map(|lane| lane.batches)
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// How many requests wait.
    pub(super) fn count(&self) -> usize {
        self.lanes.iter().flat_map(|lane| &lane.batches).map(Batch::count).sum()
    }

    fn lane(&mut self, caller: &Caller) -> &mut VecDeque<Batch> {
        let index = self.lanes.iter().position(|lane| lane.caller == *caller).unwrap_or_else(|| {
            self.lanes.push_back(Lane { caller: caller.clone(), batches: VecDeque::new() });
            self.lanes.len() - 1
        });
        &mut self.lanes[index].batches
    }

    /// How many calls go out before the one at this spot.
    fn turns_ahead(&self, spot: Spot) -> usize {
        let before = |(index, lane): (usize, &Lane)| match index.cmp(&spot.lane) {
            std::cmp::Ordering::Less => lane.batches.len().min(spot.position + 1),
            std::cmp::Ordering::Equal | std::cmp::Ordering::Greater => lane.batches.len().min(spot.position),
        };
        self.lanes.iter().enumerate().map(before).sum()
    }
}

/// How long the last of `turns` calls waits, at a rate of `per_second`.
pub(super) fn expected_wait(turns: usize, per_second: f64) -> Duration {
    #[allow(clippy::cast_precision_loss)] // nobody waits behind 2^52 calls
    let seconds = turns as f64 / per_second;
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}
