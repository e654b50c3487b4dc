//! One target of the gateway's `src/fuzz.rs`: the variable `TARGET` names it.
#![no_main]

use std::{env, sync::LazyLock};

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<license_gateway::fuzz::Target> = LazyLock::new(|| {
    let name = env::var("TARGET").expect("the variable TARGET names the target");
    license_gateway::fuzz::target(&name).expect("TARGET is one of src/fuzz.rs")
});

fuzz_target!(|input: &[u8]| TARGET(input));
