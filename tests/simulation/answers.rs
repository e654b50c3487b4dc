//! What a caller reads in an answer.

use license_gateway::proto::{PartialOutcome, UnassignLicensesResponse};
use prost::Message as _;
use tonic::{Response, Status};
use tonic_types::StatusExt as _;

use crate::record::{About, Answer, Parts};

/// The answer to a change.
pub fn answer(result: Result<Response<UnassignLicensesResponse>, Status>) -> Answer {
    let Err(status) = result else { return Answer::Applied };
    let Some((reason, outcome)) = details(&status) else {
        return Answer::Bare(format!("{:?}: {}", status.code(), status.message()));
    };
    Answer::Failed { code: format!("{:?}", status.code()), reason, outcome, parts: parts(&status) }
}

/// The operation that an answer is about, as it says itself.
pub fn about(result: &Result<Response<UnassignLicensesResponse>, Status>) -> Option<About> {
    match result {
        Ok(response) => {
            let UnassignLicensesResponse { operation_id, replayed, .. } = response.get_ref();
            Some(About { operation: operation_id.clone(), is_replayed: *replayed })
        }
        Err(status) => {
            let info = status.get_error_details().error_info().cloned()?;
            let is_replayed = info.metadata.get("replayed").is_some_and(|replayed| replayed == "true");
            Some(About { operation: info.metadata.get("operation_id").cloned()?, is_replayed })
        }
    }
}

/// A failure in a few words.
pub fn told(status: &Status) -> String {
    match details(status) {
        Some((reason, _)) => reason,
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}

fn details(status: &Status) -> Option<(String, String)> {
    let info = status.get_error_details().error_info().cloned()?;
    Some((info.reason, info.metadata.get("outcome").cloned().unwrap_or_default()))
}

fn parts(status: &Status) -> Option<Parts> {
    let all = tonic_types::pb::Status::decode(status.details()).ok()?;
    let any = all.details.iter().find(|any| any.type_url.ends_with("central.licensing.v1.PartialOutcome"))?;
    let parts = PartialOutcome::decode(&*any.value).ok()?;
    Some(Parts {
        applied: parts.applied_customer_ids,
        not_applied: parts.not_applied_customer_ids,
        unknown: parts.unknown_customer_ids,
    })
}
