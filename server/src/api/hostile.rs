//! Every parser of requests, with bytes that nobody means (`QRM_FUZZ_INPUTS`: how many).

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use prost::Message;
use qrm_model::RewardModel;
use qrm_proto::{RewardsRequest, v1};

use super::dialects::{openrlhf, slime, trl, vllm};
use super::grpc::wire;
use super::json::parse;
use crate::request::{Bounds, prepare};

#[path = "../../../tests/support/mutate.rs"]
#[allow(unreachable_pub, missing_docs, reason = "another crate's file")]
mod mutate;

/// Enough for an everyday run.
const USUAL: usize = 60_000;

fn model(name: &str) -> Arc<RewardModel> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
    Arc::new(RewardModel::load(&path).expect("a fixture"))
}

fn texts(all: &[&str]) -> Vec<Vec<u8>> {
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}

const BOUNDS: Bounds = Bounds { trajectories: 64, tokens: 1 << 12 };

const NATIVE: [&str; 5] = [
    r#"{"inputs":[{"id":"a","prompt":"Two?","response":"naïve 日本 🙂\n","spans":[[0,7],[7,9],[9,19]]}],"span_reduce":"mean"}"#,
    r#"{"inputs":[{"prompt":[1,2,3],"responses":[[4,5],[6]]}],"include":["token_ids","tokens","entropy"],"scale":-0.5}"#,
    r##"{"inputs":[{"messages":[{"role":"user","content":"#"}],"response":"x y","add_special_tokens":true}],"normalize":"std"}"##,
    r#"{"inputs":[{"prompt":"a","response":"One.\nTwo.","step_ends":[5,9]}],"reward":"step","append_eos":true}"#,
    r#"{"model":"m","inputs":[{"prompt":"a","response":"b"}],"timeout_ms":5,"priority":-3,"truncate_prompt":true,"encoding_format":"base64"}"#,
];

#[test]
fn native_requests() {
    let models = [model("qwen2"), model("qwen2-token-classification")];
    mutate::fuzz(USUAL, &texts(&NATIVE), |thread, bytes| {
        if let Ok(request) = parse::<RewardsRequest>(bytes, 64) {
            let _ = prepare(request, &models[thread % 2], BOUNDS);
        }
    });
}

#[test]
fn dialects() {
    let seeds = texts(&[
        r#"{"query":["Two? 2"],"prompts":["Two?"],"labels":["2"]}"#,
        r#"{"prompt":[{"role":"user","content":"a"}],"response":"b","label":1}"#,
        r#"{"model":"m","input":["a b","c"],"use_activation":false,"encoding_format":"base64"}"#,
        r#"{"input":[[1,2,3]],"messages":[{"role":"user","content":"a"}],"add_special_tokens":false}"#,
        r#"{"sequences":[[1,2,3]],"prompt_lengths":[1],"temperature":1.0,"response_format":"binary","top_logprobs":1}"#,
    ]);
    let model = model("qwen2");
    mutate::fuzz(USUAL, &seeds, |_, bytes| {
        let inputs = [
            parse(bytes, 64).ok().and_then(|query| openrlhf::inputs(query).ok()),
            parse(bytes, 64).ok().and_then(|sequences| trl::inputs(sequences).ok()),
        ];
        let _ = parse::<slime::Sample>(bytes, 64);
        let native = inputs.into_iter().flatten();
        let native = native.map(|inputs| RewardsRequest { inputs, ..RewardsRequest::default() });
        let pooled = parse(bytes, 64).ok().and_then(|texts| vllm::native(texts, &model).ok());
        for request in native.chain(pooled) {
            let _ = prepare(request, &model, BOUNDS);
        }
    });
}

#[test]
fn protobuf_messages() {
    let native = NATIVE.map(|text| serde_json::from_str::<RewardsRequest>(text).expect("a seed"));
    let seeds: Vec<Vec<u8>> = native.iter().map(|request| score_request(request).encode_to_vec()).collect();
    let model = model("qwen2");
    mutate::fuzz(USUAL, &seeds, |_, bytes| {
        if let Ok(request) = v1::ScoreRequest::decode(bytes) {
            let native =
                wire::request(request.options.unwrap_or_default(), request.inputs, None, Instant::now());
            let _ = native.and_then(|native| prepare(native, &model, BOUNDS).map(drop));
        }
        let _ = v1::ScoreStreamRequest::decode(bytes);
        let _ = v1::TokenizeRequest::decode(bytes);
    });
}

/// A seed: about what the native request says.
fn score_request(request: &RewardsRequest) -> v1::ScoreRequest {
    use qrm_proto::TextOrIds::{Ids, Text};
    use v1::input::Context;
    use v1::response::Content;
    let input = |input: &qrm_proto::Input| v1::Input {
        id: "a".into(),
        context: input.prompt.clone().map(|prompt| match prompt {
            Text(text) => Context::Prompt(text),
            Ids(ids) => Context::PromptIds(v1::TokenIds { ids }),
        }),
        responses: input
            .response
            .iter()
            .chain(input.responses.iter().flatten())
            .map(|response| match response.clone() {
                Text(text) => v1::Response { content: Some(Content::Text(text)) },
                Ids(ids) => v1::Response { content: Some(Content::Ids(v1::TokenIds { ids })) },
            })
            .collect(),
        spans: input
            .spans
            .iter()
            .flatten()
            .map(|[a, b]| v1::Range { begin: *a as u32, end: *b as u32 })
            .collect(),
        step_ends: input.step_ends.iter().flatten().map(|end| *end as u32).collect(),
        add_special_tokens: input.add_special_tokens,
    };
    v1::ScoreRequest {
        options: Some(v1::Options {
            include: request.include.clone(),
            scale: request.scale,
            ..Default::default()
        }),
        inputs: request.inputs.iter().map(input).collect(),
    }
}
