//! Replicas that share one Secret of operations.

use license_gateway::proto::licensing_service_client::LicensingServiceClient;
use tonic::transport::Channel;

use super::*;
use crate::{
    api_server::{ApiServer, Fault as Trouble},
    support::{Process, channel, kubeconfig, unlimited},
};

const SECRET: &str = "license-gateway-token-operations";

struct Replica {
    client: LicensingServiceClient<Channel>,
    _process: Process,
    _dir: tempfile::TempDir,
}

async fn replica(sandbox: &Sandbox, api: &ApiServer) -> Replica {
    let dir = tempfile::tempdir().unwrap();
    let file = kubeconfig(api, dir.path());
    let more = [("LICENSE_GATEWAY__TOKEN_STORE__KIND", "kubernetes"), ("KUBECONFIG", file.to_str().unwrap())];
    let process = Process::serve(sandbox, dir.path(), &more).await;
    Replica { client: LicensingServiceClient::new(channel(process.address).await), _process: process, _dir: dir }
}

impl Replica {
    async fn ask(&self, request: UnassignLicensesRequest) -> Result<UnassignLicensesResponse, Failure> {
        let answer = self.client.clone().unassign_licenses(request).await;
        answer.map(tonic::Response::into_inner).map_err(Failure::from)
    }

    async fn by_request(&self, id: &str) -> Result<Operation, Failure> {
        let request = GetOperationRequest { id: Some(Id::RequestId(id.to_owned())) };
        let answer = self.client.clone().get_operation(request).await;
        answer.map(|answer| answer.into_inner().operation.expect("always set")).map_err(Failure::from)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_runs_once_whatever_replica_is_asked_and_both_tell_of_it() {
    let sandbox = Sandbox::start(unlimited().with_generated_customers(2)).await.unwrap();
    let api = ApiServer::start().await;
    let replicas = [Arc::new(replica(&sandbox, &api).await), Arc::new(replica(&sandbox, &api).await)];
    for (round, repeats) in [20, 20, 20, 200].into_iter().enumerate() {
        sandbox.clear_calls();
        let (id, who) = (new_id(), customer(&sandbox, 0));
        let mut asking = JoinSet::new();
        for n in 0..repeats {
            let (replica, request) = (Arc::clone(&replicas[n % 2]), with_id(&id, &[&who]));
            asking.spawn(async move { replica.ask(request).await.expect("applied") });
        }
        let answers = asking.join_all().await;
        assert_eq!(answers.iter().filter(|answer| !answer.replayed).count(), 1);
        assert_eq!(sandbox.unassign_calls().len(), 1);
        for replica in &replicas {
            let told = replica.by_request(&id).await.unwrap();
            let expected = (answers[0].operation_id.as_str(), OperationOutcome::Applied);
            assert_eq!((told.operation_id.as_str(), told.outcome()), expected);
            let reused = replica.ask(with_id(&id, &[&customer(&sandbox, 1)])).await.unwrap_err();
            assert_eq!(reused.reason, "REQUEST_ID_REUSED");
            let request = ListOperationsRequest { page_size: 500, page_token: String::new() };
            let page = replica.client.clone().list_operations(request).await.unwrap().into_inner();
            assert_eq!(page.operations.len(), round + 1, "of both");
        }
    }
    assert!(api.cluster.secret("gateway", SECRET).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_secret_nothing_is_sent_and_the_id_is_free_when_it_is_back() {
    let sandbox = Sandbox::start(unlimited().with_generated_customers(2)).await.unwrap();
    let api = ApiServer::start().await;
    let replica = replica(&sandbox, &api).await;
    let who = customer(&sandbox, 0);
    replica.ask(with_id(&new_id(), &[&who])).await.expect("applied");
    sandbox.clear_calls();
    let id = new_id();
    api.cluster.forbid("update");
    for request in [with_id(&id, &[&who]), include(&[&who])] {
        let failure = replica.ask(request).await.unwrap_err();
        let told = (failure.code, failure.reason.as_str(), failure.outcome.as_str());
        assert_eq!(told, (Code::Unavailable, "OPERATIONS_UNAVAILABLE", "not_applied"));
    }
    // What something else wrote there is left as it is.
    api.cluster.allow("update");
    let good = api.cluster.secret("gateway", SECRET).unwrap();
    api.cluster.apply("gateway", SECRET, |secret| secret["data"]["operations.json.gz"] = "aGVsbG8=".into());
    let failure = replica.ask(with_id(&id, &[&who])).await.unwrap_err();
    assert_eq!(failure.reason, "OPERATIONS_UNAVAILABLE");
    assert!(sandbox.unassign_calls().is_empty());
    api.cluster.apply("gateway", SECRET, |secret| secret["data"] = good["data"].clone());
    // And a slow one is waited for.
    api.cluster.next("update", Trouble::Delay(Duration::from_millis(300)));
    assert!(!replica.ask(with_id(&id, &[&who])).await.unwrap().replayed);
    assert_eq!(sandbox.unassign_calls().len(), 1);
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_killed_leaves_at_most_one_call_and_the_others_tell_the_truth() {
    let sandbox = Sandbox::start(unlimited().with_generated_customers(2)).await.unwrap();
    let (api, dir) = (ApiServer::start().await, tempfile::tempdir().unwrap());
    let (other, file) = (replica(&sandbox, &api).await, kubeconfig(&api, dir.path()));
    let store = [("LICENSE_GATEWAY__TOKEN_STORE__KIND", "kubernetes"), ("KUBECONFIG", file.to_str().unwrap())];
    killed::one_of_two(&sandbox, &other.client, &store).await;
}
