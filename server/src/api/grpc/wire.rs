//! Protobuf to the native request, and its answer back.

use std::time::Instant;

use qrm_proto::request::ChatMessage;
use qrm_proto::tokenize::TokenizeResponse;
use qrm_proto::v1::input::Context;
use qrm_proto::v1::response::Content;
use qrm_proto::v1::{self, Options};
use qrm_proto::{Datum, Floats, Input, RewardsRequest, RewardsResponse, TextOrIds, status};
use serde_json::Value;

use crate::request::Invalid;

/// An empty string is a field that was left out.
fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// The native request, of a message that arrived then.
pub(crate) fn request(
    options: Options,
    inputs: Vec<v1::Input>,
    deadline: Option<Instant>,
    arrived: Instant,
) -> Result<RewardsRequest, Invalid> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(arrived));
    Ok(RewardsRequest {
        model: given(options.model),
        inputs: inputs.into_iter().enumerate().map(|(i, one)| input(i, one)).collect::<Result<_, _>>()?,
        reward: given(options.reward),
        scale: options.scale,
        normalize: given(options.normalize),
        append_eos: options.append_eos,
        truncate_prompt: options.truncate_prompt,
        span_reduce: given(options.span_reduce),
        include: options.include,
        priority: options.priority,
        timeout_ms: left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1)),
        ..RewardsRequest::default()
    })
}

fn input(index: usize, input: v1::Input) -> Result<Input, Invalid> {
    let (prompt, messages) = match input.context {
        Some(Context::Prompt(text)) => (Some(TextOrIds::Text(text)), None),
        Some(Context::PromptIds(ids)) => (Some(TextOrIds::Ids(ids.ids)), None),
        Some(Context::Messages(list)) => (None, Some(messages(list))),
        None => (None, None),
    };
    let response = |(j, response): (usize, v1::Response)| match response.content {
        Some(Content::Text(text)) => Ok(TextOrIds::Text(text)),
        Some(Content::Ids(ids)) => Ok(TextOrIds::Ids(ids.ids)),
        None => {
            let param = format!("inputs[{index}].responses[{j}]");
            Err(Invalid::field(param, "missing_field", "a response is text or ids"))
        }
    };
    let mut responses: Vec<TextOrIds> =
        input.responses.into_iter().enumerate().map(response).collect::<Result<_, _>>()?;
    let spans: Vec<[usize; 2]> = input.spans.iter().map(|s| [s.begin as usize, s.end as usize]).collect();
    let spans = (!spans.is_empty()).then_some(spans);
    let step_ends: Vec<usize> = input.step_ends.iter().map(|end| *end as usize).collect();
    let step_ends = (!step_ends.is_empty()).then_some(step_ends);
    // Both are of one response.
    let single =
        if (spans.is_some() || step_ends.is_some()) && responses.len() == 1 { responses.pop() } else { None };
    Ok(Input {
        id: given(input.id).map(Value::String),
        prompt,
        messages,
        responses: single.is_none().then_some(responses),
        response: single,
        spans,
        step_ends,
        add_special_tokens: input.add_special_tokens,
    })
}

pub(super) fn messages(list: v1::Messages) -> Vec<ChatMessage> {
    let message = |m: v1::Message| ChatMessage { role: m.role, content: m.content };
    list.messages.into_iter().map(message).collect()
}

/// The whole answer.
pub(super) fn response(answer: RewardsResponse) -> v1::ScoreResponse {
    v1::ScoreResponse {
        summary: Some(summary(&answer)),
        data: answer.data.into_iter().map(trajectory).collect(),
    }
}

pub(super) fn summary(answer: &RewardsResponse) -> v1::Summary {
    let RewardsResponse { stats, usage, timing, .. } = answer;
    v1::Summary {
        model: answer.model.clone(),
        model_version: answer.model_version.clone(),
        reward: answer.reward.to_owned(),
        stats: Some(v1::Stats { count: stats.count as u64, mean: stats.mean, std: stats.std }),
        usage: Some(v1::Usage {
            prompt_tokens: usage.prompt_tokens as u64,
            response_tokens: usage.response_tokens as u64,
            computed_tokens: usage.computed_tokens as u64,
            cached_tokens: usage.cached_tokens as u64,
        }),
        timing: Some(v1::Timing {
            tokenize_ms: timing.tokenize_ms,
            queue_ms: timing.queue_ms,
            compute_ms: timing.compute_ms,
        }),
    }
}

pub(super) fn trajectory(datum: Datum) -> v1::Trajectory {
    let floats = |values: Option<Floats>| values.map(Floats::into_values).unwrap_or_default();
    v1::Trajectory {
        index: datum.index as u32,
        input: datum.input as u32,
        id: id(datum.id),
        rewards: datum.rewards.into_values(),
        score: datum.score,
        sum: datum.sum,
        token_ids: datum.token_ids.unwrap_or_default(),
        tokens: datum.tokens.unwrap_or_default(),
        offsets: ranges(datum.offsets.unwrap_or_default()),
        logit: floats(datum.logit),
        logsumexp: floats(datum.logsumexp),
        max: floats(datum.max),
        entropy: floats(datum.entropy),
    }
}

fn id(id: Option<Value>) -> String {
    match id {
        Some(Value::String(id)) => id,
        _ => String::new(),
    }
}

fn ranges(offsets: Vec<[usize; 2]>) -> Vec<v1::Range> {
    offsets.into_iter().map(|[begin, end]| v1::Range { begin: begin as u32, end: end as u32 }).collect()
}

pub(super) fn tokens(answer: TokenizeResponse) -> v1::TokenizeResponse {
    v1::TokenizeResponse {
        tokens: answer.tokens,
        token_strs: answer.token_strs,
        offsets: ranges(answer.offsets),
        max_model_len: answer.max_model_len as u32,
    }
}

pub(super) fn info(info: status::Info) -> v1::InfoResponse {
    let model = |facts: status::ModelFacts| v1::Model {
        name: facts.model,
        version: facts.model_version,
        architecture: facts.architecture,
        head: facts.head,
        reward: facts.reward,
        parameters: facts.parameters as u64,
        vocab_size: facts.vocab_size as u32,
        context_length: facts.context_length as u32,
        dtype: facts.dtype,
        device: facts.device,
    };
    v1::InfoResponse {
        version: info.version.to_owned(),
        models: info.models.into_iter().map(model).collect(),
        limits: Some(v1::Limits {
            max_batch_tokens: info.limits.max_batch_tokens as u64,
            max_queue_tokens: info.limits.max_queue_tokens as u64,
            max_queue_requests: info.limits.max_queue_requests as u64,
            max_inputs: info.limits.max_inputs as u64,
            max_body_bytes: info.limits.max_body_bytes as u64,
        }),
    }
}
