//! What Central's listings say: pages of customers and of devices, and which services are licensed automatically.

use serde_json::Value;

use crate::{
    central::list::Page,
    license::{Customer, CustomerId},
};

/// A device of the inventory.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::central) struct ListedDevice {
    /// Whose it is.
    pub customer_id: Option<String>,
    /// In lower case: the inventory spells services in upper case.
    pub services: Vec<String>,
}

/// A page of `GET /msp_api/v1/customers`. None if it is anything but an object with `customers`.
pub(in crate::central) fn customer_page(body: &[u8]) -> Option<Page<CustomerId, Customer>> {
    page(body, "customers", |entry| {
        let id = CustomerId::new(entry.get("customer_id")?.as_str()?.to_owned()).ok()?;
        let name = entry.get("customer_name").and_then(Value::as_str).unwrap_or_default().to_owned();
        Some((id.clone(), Customer { id, name }))
    })
}

/// A page of `GET /platform/device_inventory/v1/devices`. None if it is anything but an object with `devices`.
pub(in crate::central) fn device_page(body: &[u8]) -> Option<Page<String, ListedDevice>> {
    page(body, "devices", |entry| {
        let serial = entry.get("serial")?.as_str().filter(|serial| !serial.is_empty())?.to_owned();
        let customer_id = entry.get("customer_id").and_then(Value::as_str).map(str::to_owned);
        Some((serial, ListedDevice { customer_id, services: names(entry).unwrap_or_default() }))
    })
}

/// `entry` reads one entry of the list of this name; none: it has no id.
fn page<Id, T>(body: &[u8], list: &str, entry: impl Fn(&Value) -> Option<(Id, T)>) -> Option<Page<Id, T>> {
    let page: Value = serde_json::from_slice(body).ok()?;
    let entries = page.get(list)?.as_array()?.iter().map(entry).collect();
    Some(Page { entries, total: page.get("total").and_then(Value::as_u64) })
}

/// The services that Central assigns by itself, in lower case. None if the answer does not tell.
pub(in crate::central) fn auto_licensed(body: &[u8]) -> Option<Vec<String>> {
    names(&serde_json::from_slice(body).ok()?)
}

/// How many licences are used. None if the answer does not tell.
pub(in crate::central) fn used_licences(body: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Value>(body).ok()?.get("used")?.as_u64()
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
        let whole = |customers: Option<Vec<Customer>>, total| {
            let entries = customers.map(|all| all.into_iter().map(|one| (one.id.clone(), one)).collect());
            Some(Page { entries, total })
        };
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
        let body = br#"{"devices":[{"serial":"1","customer_id":"a","services":["ADVANCED_AP",1]},
            {"serial":"2","services":null}],"total":3}"#;
        let device = |id: Option<&str>, services: &[&str]| ListedDevice {
            customer_id: id.map(str::to_owned),
            services: services.iter().map(ToString::to_string).collect(),
        };
        let entries = vec![("1".to_owned(), device(Some("a"), &["advanced_ap"])), ("2".to_owned(), device(None, &[]))];
        assert_eq!(device_page(body), Some(Page { entries: Some(entries), total: Some(3) }));
        for nameless in [r#"{"devices":[{"customer_id":"a"}]}"#, r#"{"devices":[{"serial":""}]}"#, r#"{"devices":[7]}"#]
        {
            assert_eq!(device_page(nameless.as_bytes()), Some(Page { entries: None, total: None }), "{nameless}");
        }
        assert_eq!(device_page(br#"{"deviceList":{}}"#), None);
        assert_eq!(auto_licensed(br#"{"services":["PA"]}"#), Some(vec!["pa".to_owned()]));
        assert_eq!(auto_licensed(br#"{"services":true}"#), None);
        assert_eq!(used_licences(br#"{"total":9,"used":7,"available":2}"#), Some(7));
        assert_eq!(used_licences(br#"{"stats":{"used":7}}"#), None);
    }
}
