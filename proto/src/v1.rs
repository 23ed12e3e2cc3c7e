//! gRPC package `qrm.v1`, generated from `qrm/v1/reward.proto`: that file says what everything means.
#![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, reason = "generated")]

tonic::include_proto!("qrm.v1");

/// The package's descriptors, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/qrm.v1.bin"));
