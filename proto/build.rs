//! Generates the gRPC code; `protox` reads the `.proto` files, so that no protoc is needed.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=qrm");
    let files = protox::compile(["qrm/v1/reward.proto"], ["."])?;
    let out: PathBuf = std::env::var("OUT_DIR")?.into();
    std::fs::write(out.join("qrm.v1.bin"), prost::Message::encode_to_vec(&files))?;
    let generated = tonic_prost_build::configure().codec_path("crate::codec::BoundedCodec");
    generated.build_transport(false).emit_rerun_if_changed(false).compile_fds(files)?;
    Ok(())
}
