//! Health and reflection.

use std::time::Duration;

use qrm_proto::v1::ScoreRequest;
use qrm_tests::{Rng, Server, fixture};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

use super::{channel, connect, input, read};

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_readiness() {
    let mut server = Server::start(&fixture("qwen2"), &["--drain-timeout", "120", "--threads", "1"]);
    let mut health = HealthClient::new(channel(&server).await);
    let ask = HealthCheckRequest { service: "qrm.v1.RewardService".into() };
    let mut watch = health.watch(ask.clone()).await.expect("a watch").into_inner();
    while watch.message().await.expect("no error").expect("a status").status() != ServingStatus::Serving {}
    assert_eq!(health.check(ask).await.expect("a status").into_inner().status(), ServingStatus::Serving);
    let silent = connect(&server).await.score_stream(futures_util::stream::pending()).await;
    let idle = silent.expect("a stream").into_inner();
    let mut reflection = ServerReflectionClient::new(channel(&server).await);
    let asked = reflection.server_reflection_info(futures_util::stream::pending()).await;
    let mut asked = asked.expect("a stream").into_inner();
    // Enough work that it drains for a while.
    let mut rng = Rng::new(8);
    let inputs = (0..300).map(|_| input(&rng.input(300, 200))).collect();
    let mut client = connect(&server).await;
    let score = tokio::spawn(async move { client.score(ScoreRequest { options: None, inputs }).await });
    let http = server.client();
    http.until("qrm_queue_tokens", |waiting| waiting > 0.0);
    let idle_connection = tokio::net::TcpStream::connect(server.grpc()).await.expect("connects");
    let (_kept, connection) = h2::client::handshake(idle_connection).await.expect("HTTP/2");
    server.terminate();
    // Who keeps a connection is sent to another server at once, not when the last work is done.
    tokio::time::timeout(Duration::from_secs(20), connection).await.expect("told to go").expect("politely");
    assert!(!score.is_finished(), "the work was too little for this test");
    let last = watch.message().await.expect("no error").expect("a status").status();
    assert_eq!(last, ServingStatus::NotServing);
    score.await.expect("no panic").expect("accepted work is answered");
    // Nobody who watches, and no stream on which nothing happens, keeps it.
    assert!(watch.message().await.expect("a good end").is_none());
    assert_eq!(read(idle).await.3.expect_err("no").code(), Code::Unavailable);
    assert!(asked.message().await.expect("a good end").is_none());
    assert!(server.wait(Duration::from_secs(60)).success());
}
