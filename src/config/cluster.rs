//! Central's public clusters by name. Sugar: `central.base_url` takes any address, these and on-premises ones.

use url::Url;

/// Name and host of the API gateway, as the clusters' owner publishes them.
///
/// Left out: clusters whose host is documented nowhere (UK), or documented wrongly, and internal ones.
pub(super) const HOSTS: [(&str, &str); 14] = [
    ("us-1", "app1-apigw.central.arubanetworks.com"),
    ("us-2", "apigw-prod2.central.arubanetworks.com"),
    ("us-west4", "apigw-uswest4.central.arubanetworks.com"),
    ("us-west5", "apigw-uswest5.central.arubanetworks.com"),
    ("us-east1", "apigw-us-east-1.central.arubanetworks.com"),
    ("eu-1", "eu-apigw.central.arubanetworks.com"),
    ("eu-central2", "apigw-eucentral2.central.arubanetworks.com"),
    ("eu-central3", "apigw-eucentral3.central.arubanetworks.com"),
    ("canada-1", "apigw-ca.central.arubanetworks.com"),
    ("china-1", "apigw.central.arubanetworks.com.cn"),
    ("apac-1", "api-ap.central.arubanetworks.com"),
    ("apac-east1", "apigw-apaceast.central.arubanetworks.com"),
    ("apac-south1", "apigw-apacsouth.central.arubanetworks.com"),
    ("uae-north1", "apigw-uaenorth1.central.arubanetworks.com"),
];

/// The names alone.
pub(super) const CLUSTER_NAMES: [&str; HOSTS.len()] = {
    let mut names = [""; HOSTS.len()];
    let mut i = 0;
    while i < HOSTS.len() {
        names[i] = HOSTS[i].0;
        i += 1;
    }
    names
};

/// The base URL of a cluster.
pub(super) fn url(host: &str) -> Url {
    Url::parse(&format!("https://{host}/")).expect("the hosts above are valid; a test reads them all")
}
