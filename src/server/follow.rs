//! Files that change while the gateway runs: the policy, certificates and keys. They are polled, not watched:
//! whatever puts them in place (an editor, a rename, a projected volume), the next read finds it.

use std::{sync::Arc, time::Duration};

use tokio::{task::spawn_blocking, time::sleep};
use tracing::{info, warn};

use crate::{
    callers::Callers,
    config::{Policy, PolicySource},
};

/// How often; a change takes two reads. An operator who sets `read_only` does not notice the wait.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Reads for ever, and reports what is there whenever it has changed. Only what two reads find alike counts: a file may
/// be read while it is being written, and half a policy may be valid and lack the limits of its other half.
pub(super) async fn follow<T: PartialEq + Send + 'static>(
    read: impl Fn() -> T + Clone + Send + 'static,
    mut changed: impl FnMut(&T),
) {
    let (mut reported, mut seen) = (None, None);
    loop {
        // Files may be on a disk that does not answer.
        if let Ok(now) = spawn_blocking(read.clone()).await {
            if reported.as_ref() == Some(&now) {
                seen = None;
            } else if seen.as_ref() == Some(&now) {
                changed(&now);
                reported = Some(now);
            } else {
                seen = Some(now);
            }
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Keeps the policy as the configuration file has it.
pub(super) async fn follow_policy(source: PolicySource, callers: Arc<Callers>) {
    let read = {
        let source = source.clone();
        move || source.text().map_err(|error| error.to_string())
    };
    follow(read, |text| {
        let file = source.file.display();
        let policy = match text {
            Ok(text) => source.read(text).map_err(|problems| problems.to_string()),
            Err(error) => Err(format!("cannot be read: {error}")),
        };
        match policy {
            Ok(policy) if policy == *callers.policy() => {}
            Ok(policy) => {
                let (entries, read_only) = (policy.callers.len(), policy.read_only);
                callers.replace(policy);
                info!(%file, callers = entries, read_only, "a new policy holds");
            }
            Err(problem) if text.as_ref().is_ok_and(|text| source.asks_for_read_only(text)) => {
                callers.replace(Policy { read_only: true, ..(*callers.policy()).clone() });
                warn!(%file, problem, "the policy cannot be loaded, but for read_only: the one before still holds, without changes");
            }
            Err(problem) => warn!(%file, problem, "the policy cannot be loaded; the one before still holds"),
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        time::Duration,
    };

    use super::*;
    use crate::config::Config;

    #[tokio::test(start_paused = true)]
    async fn what_is_read_only_once_is_not_taken() {
        // A file that is rewritten, and half of it is there for a moment.
        const READ: [&str; 9] = ["old", "old", "half", "old", "half", "most", "new", "new", "new"];
        let reads = Arc::new(AtomicUsize::new(0));
        let read = {
            let reads = Arc::clone(&reads);
            move || READ[reads.fetch_add(1, Relaxed).min(READ.len() - 1)]
        };
        let mut taken = Vec::new();
        let following = follow(read, |text| taken.push(*text));
        let _ = tokio::time::timeout(Duration::from_secs(10), following).await; // it goes on for ever
        assert_eq!(taken, ["old", "new"]);
    }

    /// An editor writes in pieces, and each piece is a valid policy: without the limit, without the caller, without anybody.
    #[tokio::test(start_paused = true)]
    async fn a_policy_that_is_being_written_loses_no_limit_and_no_caller() {
        let dir = tempfile::tempdir().unwrap();
        let (file, secret) = (dir.path().join("gateway.toml"), dir.path().join("secret"));
        std::fs::write(&secret, "s").unwrap();
        let text = format!(
            "[central]\ncluster = \"us-2\"\n[credentials]\nclient_id = \"id\"\nclient_secret_file = \"{}\"\n[[callers]]\n\
             identity = \"a\"\nrpcs = [\"UnassignLicenses\"]\nscopes = [\"include\"]\nservices = \"*\"\ncustomers = \"*\"\n\
             max_customers_per_request = 1\n",
            secret.display()
        );
        std::fs::write(&file, &text).unwrap();
        let source = Config::load(Some(&file), []).unwrap().policy_source.unwrap();
        let whole = source.read(&text).unwrap();
        let pieces = ["[central]", "[[callers]]", "max_customers"].map(|word| text.find(word).unwrap());
        for piece in pieces {
            assert_ne!(source.read(&text[..piece]).unwrap(), whole, "it would be taken");
        }
        let read = {
            let source = source.clone();
            move || source.text().ok()
        };
        let following = follow(read, |text| {
            let policy = source.read(text.as_ref().expect("it is there all the time")).unwrap();
            assert_eq!(policy, whole);
        });
        let writing = async {
            // Each piece stands there for a while, but for less than it takes to look twice.
            for round in 0..40 {
                for piece in pieces {
                    std::fs::write(&file, &text[..piece]).unwrap();
                    sleep(Duration::from_millis(1 + round * 7 % 90)).await;
                }
                std::fs::write(&file, &text).unwrap();
                sleep(Duration::from_millis(200 + round * 13 % 100)).await;
            }
        };
        tokio::select! {
            () = following => {}
            () = writing => {}
        }
    }
}
