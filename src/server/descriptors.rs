//! File descriptors: without any, no call to Central can be made and no file be read. So connections never take them all.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

/// For calls to Central, for stores and files, for the connections of operators.
const RESERVED: usize = 200;

/// Takes as many descriptors as the system gives; how many of `wanted` connections there can be.
pub(super) fn connections(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        debug!(%error, "the limit of file descriptors cannot be raised");
    }
    let limit = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
    let Some(limit) = limit else { return wanted };
    let possible = possible(wanted, limit);
    if possible < wanted {
        warn!(
            wanted,
            possible, limit, "fewer connections than server.max_connections: the limit of file descriptors is low"
        );
    }
    possible
}

fn possible(wanted: usize, limit: usize) -> usize {
    wanted.min((limit / 2).max(limit.saturating_sub(RESERVED))).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_everything_else() {
        let table =
            [(500, 1_048_576, 500), (500, 1_024, 500), (500, 600, 400), (500, 256, 128), (10, 256, 10), (500, 1, 1)];
        for (wanted, limit, expected) in table {
            assert_eq!(possible(wanted, limit), expected, "{wanted} of {limit}");
        }
    }
}
