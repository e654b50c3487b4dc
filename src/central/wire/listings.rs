//! What Central's listings say: pages of customers and of devices, and which services are licensed automatically.

use serde_json::Value;

use crate::license::{Customer, CustomerId};

/// A page of `GET /msp_api/v1/customers`.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::central) struct CustomerPage {
    /// None: an entry has no `customer_id` that could be one. Whoever leaves it out does not know who is a customer.
    pub customers: Option<Vec<Customer>>,
    /// How many customers there are, by Central's word.
    pub total: Option<u64>,
}

/// A page of `GET /platform/device_inventory/v1/devices`.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::central) struct DevicePage {
    pub devices: Vec<ListedDevice>,
    /// How many devices there are, by Central's word.
    pub total: Option<u64>,
}

/// A device of the inventory.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::central) struct ListedDevice {
    /// Whose it is.
    pub customer_id: Option<String>,
    /// In lower case: the inventory spells services in upper case.
    pub services: Vec<String>,
}

/// None if it is anything but an object with `customers`.
pub(in crate::central) fn customer_page(body: &[u8]) -> Option<CustomerPage> {
    let page: Value = serde_json::from_slice(body).ok()?;
    let customer = |entry: &Value| {
        let id = CustomerId::new(entry.get("customer_id")?.as_str()?.to_owned()).ok()?;
        let name = entry.get("customer_name").and_then(Value::as_str).unwrap_or_default().to_owned();
        Some(Customer { id, name })
    };
    let customers = page.get("customers")?.as_array()?.iter().map(customer).collect();
    Some(CustomerPage { customers, total: page.get("total").and_then(Value::as_u64) })
}

/// None if it is anything but an object with `devices`.
pub(in crate::central) fn device_page(body: &[u8]) -> Option<DevicePage> {
    let page: Value = serde_json::from_slice(body).ok()?;
    let device = |entry: &Value| ListedDevice {
        customer_id: entry.get("customer_id").and_then(Value::as_str).map(str::to_owned),
        services: names(entry).unwrap_or_default(),
    };
    let devices = page.get("devices")?.as_array()?.iter().map(device).collect();
    Some(DevicePage { devices, total: page.get("total").and_then(Value::as_u64) })
}

/// The services that Central assigns by itself, in lower case. None if the answer does not tell.
pub(in crate::central) fn auto_licensed(body: &[u8]) -> Option<Vec<String>> {
    names(&serde_json::from_slice(body).ok()?)
}

fn names(value: &Value) -> Option<Vec<String>> {
    let names = value.get("services")?.as_array()?.iter();
    Some(names.filter_map(Value::as_str).map(str::to_lowercase).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that cannot go on fails
mod tests {
    use super::*;

    fn customer(id: &str, name: &str) -> Customer {
        Customer { id: CustomerId::new(id.to_owned()).unwrap(), name: name.to_owned() }
    }

    #[test]
    fn a_page_of_customers_is_read_or_refused_never_guessed() {
        let whole = |customers, total| Some(CustomerPage { customers, total });
        let two = || Some(vec![customer("a", "A\n"), customer("b", "")]);
        let table = [
            (r#"{"customers":[],"total":0}"#, whole(Some(vec![]), Some(0))),
            (
                r#"{"customers":[{"customer_id":"a","customer_name":"A\n","x":1},{"customer_id":"b"}],"total":7}"#,
                whole(two(), Some(7)),
            ),
            (r#"{"customers":[{"customer_id":"a"}]}"#, whole(Some(vec![customer("a", "")]), None)),
            (r#"{"customers":[{"customer_id":"a"}],"total":"1"}"#, whole(Some(vec![customer("a", "")]), None)),
            (r#"{"customers":[{"customer_id":"a"}],"total":-1}"#, whole(Some(vec![customer("a", "")]), None)),
            (r#"{"customers":[{"customer_name":"A"}],"total":1}"#, whole(None, Some(1))),
            (r#"{"customers":[{"customer_id":7}],"total":1}"#, whole(None, Some(1))),
            (r#"{"customers":[{"customer_id":null}],"total":1}"#, whole(None, Some(1))),
            (r#"{"customers":[{"customer_id":""}],"total":1}"#, whole(None, Some(1))),
            (r#"{"customers":["a"],"total":1}"#, whole(None, Some(1))),
            (r#"{"customers":[{"platform_customer_id":"a"}],"total":1}"#, whole(None, Some(1))),
            (r#"{"customers":{},"total":1}"#, None),
            (r#"{"total":1}"#, None),
            (r#"[{"customer_id":"a"}]"#, None),
            ("", None),
            ("<html>", None),
        ];
        for (body, expected) in table {
            assert_eq!(customer_page(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn devices_are_read_leniently() {
        let body = br#"{"devices":[{"customer_id":"a","services":["ADVANCED_AP",1]},{"services":null},7],"total":3}"#;
        let device = |id: Option<&str>, services: &[&str]| ListedDevice {
            customer_id: id.map(str::to_owned),
            services: services.iter().map(ToString::to_string).collect(),
        };
        let devices = vec![device(Some("a"), &["advanced_ap"]), device(None, &[]), device(None, &[])];
        assert_eq!(device_page(body), Some(DevicePage { devices, total: Some(3) }));
        assert_eq!(device_page(br#"{"deviceList":{}}"#), None);
        assert_eq!(auto_licensed(br#"{"services":["PA"]}"#), Some(vec!["pa".to_owned()]));
        assert_eq!(auto_licensed(br#"{"services":true}"#), None);
    }
}
