//! The ids of requests are their callers' own: nobody sees, blocks or gets what belongs to another.

use std::sync::Arc;

use license_gateway::proto::{
    GetOperationRequest, ListOperationsRequest, UnassignLicensesRequest, WatchReleaseRequest,
    get_operation_request::Id, licensing_service_client::LicensingServiceClient,
    watch_release_request::Scope as Target,
};

use super::*;
use crate::callers::authority::{Authority, connect, somebody, uri};

#[tokio::test]
async fn two_callers_with_one_id_do_not_know_of_each_other() {
    let names = ["spiffe://msp.test/alice", "spiffe://msp.test/bob"];
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let (sandbox, dir) = (sandbox().await, tempfile::tempdir().unwrap());
    servers.server().put(dir.path());
    fs::write(dir.path().join("clients.pem"), clients.pem()).unwrap();
    let gateway = Gateway::start_in(&sandbox, Arc::new(tempfile::tempdir().unwrap()), |config| {
        config.tls = Some(tls_files(dir.path()));
        config.policy.callers = names.map(|name| CallerRules::everything(WhichCaller::Named(name.to_owned()))).into();
    })
    .await;
    let mut callers = Vec::new();
    for name in names {
        let pair = clients.issue(&somebody(&[uri(name)]));
        callers.push(LicensingServiceClient::new(connect(gateway.address, &servers, Some(&pair)).await.unwrap()));
    }
    let id = "0f8fad5b-d9cb-469f-a165-70867728950e".to_owned();
    let with_id =
        |who: usize| UnassignLicensesRequest { request_id: id.clone(), ..include(&[&customer(&sandbox, who)]) };
    let (mut alice, mut bob) = (callers.remove(0), callers.remove(0));

    let of_alice = alice.unassign_licenses(with_id(0)).await.unwrap().into_inner();
    // Not even another request under the id is in its way.
    let of_bob = bob.unassign_licenses(with_id(1)).await.unwrap().into_inner();
    assert!(!of_alice.replayed && !of_bob.replayed);
    assert_eq!(deletes(&sandbox), 2);
    for (client, own, other) in [(&mut alice, &of_alice, &of_bob), (&mut bob, &of_bob, &of_alice)] {
        let by_request = GetOperationRequest { id: Some(Id::RequestId(id.clone())) };
        let told = client.get_operation(by_request).await.unwrap().into_inner().operation.unwrap();
        assert_eq!(told.operation_id, own.operation_id);
        let page = client.list_operations(ListOperationsRequest::default()).await.unwrap().into_inner();
        assert_eq!(page.operations.iter().map(|one| &one.operation_id).collect::<Vec<_>>(), [&own.operation_id]);
        let by_operation = GetOperationRequest { id: Some(Id::OperationId(other.operation_id.clone())) };
        let failure = Failure::from(client.get_operation(by_operation).await.unwrap_err());
        assert_eq!(failure.reason, "OPERATION_NOT_FOUND");
        let scope = Some(Target::OperationId(other.operation_id.clone()));
        let watch = WatchReleaseRequest { scope, ..WatchReleaseRequest::default() };
        let failure = Failure::from(client.watch_release(watch).await.unwrap_err());
        assert_eq!(failure.reason, "OPERATION_NOT_FOUND");
    }
    assert!(alice.unassign_licenses(with_id(0)).await.unwrap().into_inner().replayed);
    assert!(bob.unassign_licenses(with_id(1)).await.unwrap().into_inner().replayed);
    assert_eq!(deletes(&sandbox), 2);
    drop((alice, bob));
    gateway.stop().await;
}
