//! The gRPC port: the same service, and trajectories as they come.
//!
//! - `calls`: one message, one answer. `streams`: `ScoreStream`. `health`: what orchestrators ask.

mod calls;
mod health;
mod streams;

use qrm_proto::v1::input::Context;
use qrm_proto::v1::response::Content;
use qrm_proto::v1::reward_service_client::RewardServiceClient;
use qrm_proto::v1::score_stream_response::Result as Kind;
use qrm_proto::v1::{Input, Response, TokenIds, Trajectory};
use qrm_tests::Server;
use serde_json::Value;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

type Client = RewardServiceClient<Channel>;

async fn channel(server: &Server) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc())).expect("an address");
    endpoint.connect().await.expect("connects")
}

async fn connect(server: &Server) -> Client {
    RewardServiceClient::new(channel(server).await).max_decoding_message_size(64 << 20)
}

fn ids(of: &Value) -> TokenIds {
    let ids = of.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32);
    TokenIds { ids: ids.collect() }
}

/// An input of token ids, as JSON has it.
fn input(of: &Value) -> Input {
    let responses = match of["responses"].as_array() {
        Some(group) => group.iter().collect(),
        None => vec![&of["response"]],
    };
    let response = |of: &Value| Response { content: Some(Content::Ids(ids(of))) };
    Input {
        context: Some(Context::PromptIds(ids(&of["prompt"]))),
        responses: responses.into_iter().map(response).collect(),
        ..Input::default()
    }
}

fn inputs(request: &Value) -> Vec<Input> {
    request["inputs"].as_array().expect("inputs").iter().map(input).collect()
}

fn text(text: &str) -> Response {
    Response { content: Some(Content::Text(text.into())) }
}

/// A stream's messages: trajectories in any order, errors by input, whether a summary came, how it ended.
async fn read(
    mut stream: tonic::Streaming<qrm_proto::v1::ScoreStreamResponse>,
) -> (Vec<Trajectory>, Vec<qrm_proto::v1::Error>, Option<qrm_proto::v1::Summary>, Result<(), Status>) {
    let (mut data, mut errors, mut summary) = (Vec::new(), Vec::new(), None);
    loop {
        match stream.message().await {
            Ok(None) => return (data, errors, summary, Ok(())),
            Err(status) => return (data, errors, summary, Err(status)),
            Ok(Some(message)) => {
                assert!(summary.is_none(), "the summary is the last");
                match message.result.expect("a result") {
                    Kind::Trajectory(one) => {
                        assert!(!message.model_version.is_empty());
                        data.push(one);
                    }
                    Kind::Error(error) => errors.push(error),
                    Kind::Summary(all) => summary = Some(all),
                }
            }
        }
    }
}
