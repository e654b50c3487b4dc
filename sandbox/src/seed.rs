//! The account that a fresh stand-in holds: five customers, the MSP's own two devices, the known services.

use super::state::{Customer, Device};

/// The MSP's own customer id.
pub(crate) const MSP_ID: &str = "5f2c0a9e6d3b4e1f8a7c9b0d1e2f3a4b";

/// Service names that the sources mention, lower-case as `services/config` keys them (C for the names, A that this is
/// the whole list).
pub(crate) const SERVICES: &[&str] = &[
    "pa",
    "ucc",
    "dm",
    "clarity",
    "airgroup",
    "cloud_guest",
    "foundation_ap",
    "advanced_ap",
    "foundation_switch_6100",
    "foundation_switch_6200",
    "foundation_switch_6300",
    "foundation_switch_6400",
    "foundation_switch_8400",
    "advanced_switch_6100",
    "advanced_switch_6200",
    "advanced_switch_6300",
    "advanced_switch_6400",
    "advanced_switch_8xxx_9xxx_10xxx",
    "foundation_7005",
    "foundation_70xx",
    "foundation_72xx",
    "foundation_90xx_sec",
    "foundation_base_90xx_sec",
    "advance_70xx",
    "advance_72xx",
    "advance_90xx_sec",
    "foundation_wlan_gw",
    "vgw_500m",
    "vgw_2g",
    "vgw_4g",
];

/// The MSP's own devices.
pub(crate) fn msp_devices() -> Vec<Device> {
    vec![
        device("CNK9L0A001", "AP-515", "iap", "Q9H62A", &["advanced_ap"]),
        device("CN8FKAA002", "9004", "gateway", "R1B21A", &["advance_90xx_sec"]),
    ]
}

/// The MSP's customers.
pub(crate) fn customers() -> Vec<Customer> {
    vec![
        customer(
            "267958b55d5a463e94a302c20f4a6b68",
            "Alpine Hotels",
            vec![
                device("CNK9L0B101", "AP-515", "iap", "Q9H62A", &["advanced_ap"]),
                device("CNK9L0B102", "AP-535", "iap", "JZ336A", &["advanced_ap"]),
                device("SG03KW5101", "6300M", "switch", "JL661A", &["foundation_switch_6300"]),
            ],
        ),
        customer(
            "8c1d4e7fa2b349d0b6c5e8f90a1b2c3d",
            "Borealis Retail",
            vec![
                device("CNK9L0B201", "AP-505", "iap", "R2H28A", &["foundation_ap"]),
                device("CNK9L0B202", "AP-505", "iap", "R2H28A", &["advanced_ap"]),
                device("SG03KW5201", "6200F", "switch", "JL725A", &["advanced_switch_6200"]),
                device("CN8FKAA201", "7005", "gateway", "JW633A", &["foundation_7005"]),
            ],
        ),
        customer(
            "d4f6a81b3c2e4597a0b9c8d7e6f5a4b3",
            "Cedar Clinics",
            vec![
                device("CNK9L0B301", "AP-635", "iap", "R7J27A", &["advanced_ap"]),
                device("CN8FKAA301", "9004", "gateway", "R1B21A", &["advance_90xx_sec"]),
            ],
        ),
        customer(
            "0b7e9c52d1a84f36951e2d3c4b5a6978",
            "Delta Schools",
            vec![
                device("CNK9L0B401", "AP-515", "iap", "Q9H62A", &["advanced_ap"]),
                device("SG03KW5401", "6300M", "switch", "JL661A", &["foundation_switch_6300"]),
                device("SG03KW5402", "6300M", "switch", "JL661A", &["advanced_switch_6300"]),
            ],
        ),
        customer(
            "f19a3b5c7d9e4021b3c5d7e9f0a1b2c4",
            "Emden Logistics",
            vec![
                device("CNK9L0B501", "AP-515", "iap", "Q9H62A", &["advanced_ap"]),
                device("CNK9L0B502", "AP-515", "iap", "Q9H62A", &[]),
            ],
        ),
    ]
}

/// The customer with this number, counted from 0.
pub(crate) fn generated_customer(number: usize) -> Customer {
    let serial = format!("CNG{number:07}");
    let device = device(&serial, "AP-515", "iap", "Q9H62A", &["advanced_ap"]);
    customer(&format!("{number:032x}"), &format!("Customer {number}"), vec![device])
}

fn customer(id: &str, name: &str, devices: Vec<Device>) -> Customer {
    Customer { id: id.into(), name: name.into(), devices, auto_license: Vec::new() }
}

fn device(serial: &str, model: &str, device_type: &str, part_number: &str, services: &[&str]) -> Device {
    Device {
        serial: serial.into(),
        model: model.into(),
        device_type: device_type.into(),
        part_number: part_number.into(),
        services: services.iter().map(ToString::to_string).collect(),
    }
}
