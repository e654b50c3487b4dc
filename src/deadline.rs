//! The deadlines of callers: a point in time, or none where the caller waits as long as it takes.

use std::future::Future;

use tokio::time::{Instant, error::Elapsed, timeout_at};

/// What the future gives, unless the deadline passes first. The future is dropped then.
pub async fn within<F: Future>(deadline: Option<Instant>, future: F) -> Result<F::Output, Elapsed> {
    match deadline {
        Some(deadline) => timeout_at(deadline, future).await,
        None => Ok(future.await),
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_ends_the_wait_and_none_does_not() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        assert!(within(Some(now + second), pending::<()>()).await.is_err());
        assert_eq!(now.elapsed(), second);
        assert!(within(Some(Instant::now() + second), async {}).await.is_ok());
        assert!(within(None, sleep(1_000 * second)).await.is_ok());
    }
}
