//! The records of an audit trail as operations, for people. Called by `license-gateway audit show`; checks nothing.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, BufReader},
    path::Path,
};

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    OpenError, chain, files,
    record::{AuditRecord, Ended, Event, Intent, RecordedScope},
};

/// One operation, put together from its records: what is shown of it, so that many take little memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShownOperation {
    pub(crate) operation_id: Uuid,
    /// When its first call was about to be made; none where that file is not here.
    pub(crate) at: Option<Timestamp>,
    /// The intent of its first call, with one of its customers.
    pub(crate) first: Option<Intent>,
    /// How many customers that intent names.
    pub(crate) customers: usize,
    /// How many calls have an intent.
    pub(crate) calls: usize,
    /// None: it has not ended, or its gateway has, and none was started since.
    pub(crate) ended: Option<Ended>,
    /// Whether a call may have hit the customer who is asked for.
    is_hit: bool,
}

/// Which operations are wanted.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    /// Whose name begins so.
    pub(crate) operation: Option<String>,
    /// Those that may have hit this customer.
    pub(crate) customer: Option<String>,
    /// That began no earlier.
    pub(crate) since: Option<Timestamp>,
}

/// The operations of a directory's audit trail, in the order of their first records.
pub(crate) fn read(directory: &Path, filter: &Filter) -> Result<Vec<ShownOperation>, OpenError> {
    let mut shown = Vec::new();
    let mut places = HashMap::new();
    each(directory, |record, _| {
        gather(&mut shown, &mut places, record, filter);
        Ok(())
    })?;
    shown.retain(|operation| filter.takes(operation));
    Ok(shown)
}

/// Gives every record of these operations to `write`, as it stands in the files.
pub(crate) fn records(
    directory: &Path,
    operations: &HashSet<Uuid>,
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), OpenError> {
    each(directory, |record, line| match operation_id(&record) {
        Some(id) if operations.contains(&id) => write(line),
        _ => Ok(()),
    })
}

/// Every record, one at a time. What `take` fails with is the standard output's.
fn each(directory: &Path, mut take: impl FnMut(AuditRecord, &[u8]) -> io::Result<()>) -> Result<(), OpenError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { action: "read", path, source }
    };
    let mut line = Vec::new();
    for file in files::list(directory).map_err(io(directory))? {
        let mut reader = BufReader::new(File::open(&file.path).map_err(io(&file.path))?);
        while files::next_line(&mut reader, &mut line).map_err(io(&file.path))? == Some(true) {
            // What is no record is `verify`'s affair.
            if let Ok((record, _)) = chain::open(&line) {
                take(record, &line).map_err(OpenError::Shown)?;
            }
        }
    }
    Ok(())
}

fn operation_id(record: &AuditRecord) -> Option<Uuid> {
    match &record.event {
        Event::Opened(_) => None,
        Event::Intent(intent) => Some(intent.operation_id),
        Event::Outcome(ended) => Some(ended.operation_id),
    }
}

fn gather(shown: &mut Vec<ShownOperation>, places: &mut HashMap<Uuid, usize>, record: AuditRecord, filter: &Filter) {
    let Some(operation_id) = operation_id(&record) else { return };
    let place = *places.entry(operation_id).or_insert_with(|| {
        let (at, first, ended) = (None, None, None);
        shown.push(ShownOperation { operation_id, at, first, customers: 0, calls: 0, ended, is_hit: false });
        shown.len() - 1
    });
    let operation = &mut shown[place];
    match record.event {
        Event::Opened(_) => {}
        Event::Intent(mut intent) => {
            operation.at.get_or_insert(record.at);
            operation.calls += 1;
            operation.is_hit |= filter.customer.as_ref().is_some_and(|customer| may_hit(&intent, customer));
            if operation.first.is_none() {
                operation.customers = intent.customers.len();
                intent.customers.truncate(1);
                intent.customers.shrink_to_fit();
                operation.first = Some(intent);
            }
        }
        Event::Outcome(ended) => operation.ended = Some(ended),
    }
}

impl Filter {
    fn takes(&self, operation: &ShownOperation) -> bool {
        let named = |prefix: &String| operation.operation_id.to_string().starts_with(&prefix.to_lowercase());
        self.operation.as_ref().is_none_or(named)
            && (self.customer.is_none() || operation.is_hit)
            && self.since.is_none_or(|since| operation.at.is_some_and(|at| at >= since))
    }
}

/// Whether a call can have taken something from this customer.
fn may_hit(intent: &Intent, customer: &str) -> bool {
    let is_named = || intent.customers.iter().any(|named| named == customer);
    match intent.scope {
        RecordedScope::IncludeCustomers => is_named(),
        RecordedScope::ExcludeCustomers => !is_named(),
        RecordedScope::AllCustomers => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intent(scope: RecordedScope, customers: &[&str]) -> Intent {
        Intent {
            operation_id: Uuid::from_u128(0xab),
            call: 1,
            travelling: 1,
            caller: "c".to_owned(),
            identified_by: "connection".to_owned(),
            from: None,
            scope,
            customers: customers.iter().map(ToString::to_string).collect(),
            services: Vec::new(),
            reason: String::new(),
            etag: None,
            resolved_customers: None,
            request_id: None,
            request_digest: None,
            trace_id: None,
        }
    }

    #[test]
    fn a_customer_is_asked_for_by_what_can_have_hit_them() {
        use RecordedScope::{AllCustomers, ExcludeCustomers, IncludeCustomers};
        let table = [
            (IncludeCustomers, &["a", "b"][..], "a", true),
            (IncludeCustomers, &["b"], "a", false),
            (ExcludeCustomers, &["a"], "a", false),
            (ExcludeCustomers, &["b"], "a", true),
            (AllCustomers, &[], "a", true),
        ];
        for (scope, customers, customer, expected) in table {
            assert_eq!(may_hit(&intent(scope, customers), customer), expected, "{scope:?} {customers:?}");
        }
    }

    #[test]
    fn every_filter_narrows_what_is_shown() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let operation = ShownOperation {
            operation_id: Uuid::from_u128(0xab << 120),
            at: Some(at(100)),
            first: None,
            customers: 1,
            calls: 1,
            ended: None,
            is_hit: true,
        };
        let filter = |operation: Option<&str>, customer: Option<&str>, since: Option<i64>| Filter {
            operation: operation.map(str::to_owned),
            customer: customer.map(str::to_owned),
            since: since.map(at),
        };
        let table = [
            (filter(None, None, None), true),
            (filter(Some("AB0"), None, None), true),
            (filter(Some("ac"), None, None), false),
            (filter(None, Some("a"), None), true),
            (filter(None, None, Some(100)), true),
            (filter(None, None, Some(101)), false),
            (filter(Some("ab"), Some("a"), Some(101)), false),
        ];
        for (filter, expected) in table {
            assert_eq!(filter.takes(&operation), expected, "{filter:?}");
        }
    }
}
