//! The gRPC front: `qrm.v1.RewardService`, health and reflection, on the way that HTTP requests go.
//!
//! - [`gate`]: what every call passes first: key, size, pace, deadline; counts.
//! - `service`: the methods. [`stream`]: trajectories as they come.
//! - [`wire`]: protobuf to the native request and back. [`status`]: refusals.

mod gate;
mod service;
mod status;
mod stream;
pub(super) mod wire;

use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use qrm_proto::v1::FILE_DESCRIPTOR_SET;
use qrm_proto::v1::reward_service_server::RewardServiceServer;
use tonic::codec::CompressionEncoding::{Gzip, Zstd};
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};
use tonic_reflection::server::Builder as Reflection;

use super::App;
use service::Service;

/// Between looks at whether the server is ready, draining or done.
const LOOK: Duration = Duration::from_millis(100);

/// All services with their layers.
pub(crate) fn router(app: Arc<App>) -> anyhow::Result<Router> {
    // For the memory's sake; the limit itself comes later, and is of one input of a stream, not of the stream.
    qrm_proto::codec::bound(app.max_inputs.max(1 << 16));
    let rewards = RewardServiceServer::new(Service(app.clone()))
        .max_decoding_message_size(app.intake.most_each())
        .accept_compressed(Gzip)
        .accept_compressed(Zstd)
        .send_compressed(Gzip)
        .send_compressed(Zstd);
    let reflection = || {
        Reflection::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (reporter, health) = health_reporter();
    tokio::spawn(report(Arc::downgrade(&app), reporter));
    let routes = Routes::new(rewards)
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    Ok(routes.into_axum_router().layer(from_fn_with_state(app, gate::gate)))
}

/// What health is asked of.
const SERVICES: [&str; 2] = ["", "qrm.v1.RewardService"];

/// Health is what `GET /ready` says, until the last accepted work is done: then no more of it comes to who watches, and the
/// server need not wait for him.
async fn report(app: Weak<App>, mut reporter: HealthReporter) {
    let mut last = None;
    while let Some(app) = app.upgrade() {
        let now = match app.models.ready() {
            Ok(()) => ServingStatus::Serving,
            Err(_) => ServingStatus::NotServing,
        };
        let is_done = app.models.is_done();
        drop(app);
        if last.replace(now) != Some(now) {
            for service in SERVICES {
                reporter.set_service_status(service, now).await;
            }
        }
        if is_done {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    for service in SERVICES {
        reporter.clear_service_status(service).await;
    }
}
