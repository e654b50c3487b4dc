//! Compiles the contract, nothing else. In Rust alone: no protoc is needed.

use std::{env, error::Error, fs, path::PathBuf};

use protox::prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["central/licensing/v1/licensing.proto", "grpc/health/v1/health.proto"];
    let descriptors = protox::compile(files, ["proto", "third_party"])?;

    // Reflection serves the same descriptors that the code was made from.
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;

    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=third_party");
    Ok(())
}
