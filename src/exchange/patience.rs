//! How long an answer is waited for that must not be lost, by a process that may be stopped meanwhile.
//!
//! A process can be stopped for longer than any bound: by SIGSTOP, a frozen container, a machine that sleeps or moves.
//! The clock runs on, so an ordinary time-out fires the moment the process runs again, although the answer may have
//! been waiting in its socket all the while. Here time is looked at in short steps: a step that took much longer than
//! it should means that the process stood still, and then there is a little time to read what has arrived.
//!
//! Called by [`super::HttpClient::send_patiently`].

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// How often time is looked at.
const STEP: Duration = Duration::from_millis(250);
/// Steps that are late by more than this mean that the process stood still. A busy machine may do that too: the price
/// is one grace.
const LATE: Duration = Duration::from_millis(100);
/// How long a process that stood still gets to read what has arrived, from when it runs again. An answer that lies in
/// the socket needs milliseconds.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// How long to wait still: moved on from look to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Patience {
    /// When it ends, as far as is known.
    deadline: Instant,
    /// When to look again.
    due: Instant,
}

impl Patience {
    fn new(began: Instant, limit: Duration) -> Self {
        let deadline = began + limit;
        Self { deadline, due: deadline.min(began + STEP) }
    }

    /// What is left of it at a look; none when it is over.
    fn at(self, now: Instant) -> Option<Self> {
        let stood_still = now.saturating_duration_since(self.due) > LATE;
        let deadline = if stood_still { self.deadline.max(now + GRACE) } else { self.deadline };
        (now < deadline).then(|| Self { deadline, due: deadline.min(now + STEP) })
    }
}

/// What `answer` gives; none if there is nothing after `limit` of a process that runs.
pub(super) async fn within<T>(limit: Duration, answer: impl Future<Output = T>) -> Option<T> {
    let mut patience = Patience::new(Instant::now(), limit);
    let mut answer = std::pin::pin!(answer);
    loop {
        tokio::select! {
            biased;
            answer = &mut answer => return Some(answer),
            () = sleep_until(patience.due) => patience = patience.at(Instant::now())?,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{sync::oneshot, task::yield_now, time::advance};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    /// Looks at these moments, in milliseconds from the beginning; when patience was over, if it was.
    fn over_at(limit: Duration, mut looks: impl Iterator<Item = u64>) -> Option<u64> {
        let began = Instant::now();
        let mut patience = Patience::new(began, limit);
        looks.find(|look| match patience.at(began + Duration::from_millis(*look)) {
            Some(left) => {
                patience = left;
                false
            }
            None => true,
        })
    }

    fn every_250(range: std::ops::RangeInclusive<u64>) -> impl Iterator<Item = u64> {
        range.step_by(250)
    }

    #[test]
    fn patience_ends_with_its_limit_or_a_second_after_the_process_runs_again() {
        let cases: [(&str, Vec<u64>, Option<u64>); 9] = [
            ("runs all the time", every_250(250..=40_000).collect(), Some(30_000)),
            ("each step a little late", (1..=88).map(|step| step * 340).chain([30_050]).collect(), Some(30_050)),
            (
                "stopped early, and not for long",
                [250].into_iter().chain(every_250(9_000..=40_000)).collect(),
                Some(30_000),
            ),
            ("stopped beyond the end", [250].into_iter().chain(every_250(90_000..=99_000)).collect(), Some(91_000)),
            (
                "stopped across the end, briefly",
                every_250(250..=29_750).chain(every_250(30_300..=39_000)).collect(),
                Some(31_300),
            ),
            (
                "stopped shortly before the end",
                every_250(250..=20_000).chain(every_250(29_500..=39_000)).collect(),
                Some(30_500),
            ),
            (
                "stopped again in the second of grace",
                [250].into_iter().chain(every_250(90_000..=90_500)).chain(every_250(200_000..=210_000)).collect(),
                Some(201_000),
            ),
            ("has just run again", vec![250, 90_000], None),
            ("late, but not by much", every_250(250..=29_750).chain([30_090]).collect(), Some(30_090)),
        ];
        for (name, looks, expected) in cases {
            assert_eq!(over_at(LIMIT, looks.into_iter()), expected, "{name}");
        }
        assert_eq!(over_at(Duration::from_millis(100), [100].into_iter()), Some(100), "shorter than a step");
    }

    /// As after SIGSTOP: the clock has run on, and what arrived meanwhile is read only now.
    #[tokio::test(start_paused = true)]
    async fn what_arrived_while_the_process_stood_still_is_taken() {
        for stopped_for in [1, 29, 31, 60, 86_400] {
            let (answer, arrives) = oneshot::channel();
            let waiting = tokio::spawn(within(LIMIT, arrives));
            yield_now().await;
            advance(Duration::from_secs(stopped_for)).await;
            // The timer has fired already when the connection is read.
            for _ in 0..10 {
                yield_now().await;
            }
            advance(GRACE / 2).await;
            answer.send(()).expect("it still waits");
            assert_eq!(waiting.await.unwrap(), Some(Ok(())), "stopped for {stopped_for} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_given_up_when_it_should_be() {
        let began = Instant::now();
        assert_eq!(within(LIMIT, std::future::pending::<()>()).await, None);
        assert_eq!(began.elapsed(), LIMIT);

        let began = Instant::now();
        let waiting = tokio::spawn(within(LIMIT, std::future::pending::<()>()));
        yield_now().await;
        advance(Duration::from_mins(10)).await;
        assert_eq!(waiting.await.unwrap(), None);
        assert_eq!(began.elapsed(), Duration::from_mins(10) + GRACE);
    }
}
