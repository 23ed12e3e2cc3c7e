//! The request's choices, checked against what the model can give.

use qrm_model::RewardModel;
use qrm_model::reward::{HeadKind, Normalize, RewardKind};
use qrm_proto::{EncodingFormat, RewardsRequest};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};

use super::Invalid;
use super::spans::SpanReduce;

/// How a request's trajectories are scored and its answer is written.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) reward: RewardKind,
    pub(crate) normalize: Normalize,
    pub(crate) scale: f32,
    pub(crate) span_reduce: SpanReduce,
    pub(crate) include: Include,
    pub(crate) format: EncodingFormat,
    /// The id to append to responses.
    pub(crate) eos: Option<u32>,
    pub(crate) truncate_prompt: bool,
}

/// Extra fields of each trajectory's answer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Include {
    pub(crate) token_ids: bool,
    pub(crate) tokens: bool,
    /// Where in `include` it was asked for, for the error of a response without text.
    pub(crate) offsets: Option<usize>,
    pub(crate) logit: bool,
    pub(crate) logsumexp: bool,
    pub(crate) max: bool,
    pub(crate) entropy: bool,
}

impl Options {
    pub(crate) fn read(request: &RewardsRequest, model: &RewardModel) -> Result<Self, Invalid> {
        let head = model.head();
        let scale = request.scale.unwrap_or(1.0);
        if !(scale as f32).is_finite() {
            return Err(Invalid::field("scale", "invalid_value", "scale is not a finite f32"));
        }
        if request.timeout_ms == Some(0) {
            return Err(Invalid::field("timeout_ms", "invalid_value", "timeout_ms must be at least 1"));
        }
        let eos = match request.append_eos {
            true => Some(model.eos_token_id().ok_or_else(|| {
                Invalid::field("append_eos", "no_eos_token", "the checkpoint names no end-of-sequence token")
            })?),
            false => None,
        };
        Ok(Self {
            reward: reward(request.reward.as_deref(), head)?,
            normalize: named("normalize", request.normalize.as_deref())?.unwrap_or_default(),
            scale: scale as f32,
            span_reduce: named("span_reduce", request.span_reduce.as_deref())?.unwrap_or_default(),
            include: include(&request.include, head)?,
            format: request.encoding_format,
            eos,
            truncate_prompt: request.truncate_prompt,
        })
    }
}

fn reward(name: Option<&str>, head: HeadKind) -> Result<RewardKind, Invalid> {
    let reward = named("reward", name)?.unwrap_or_else(|| head.default_reward());
    match head.gives(reward) {
        true => Ok(reward),
        false => {
            let message = format!("this checkpoint cannot give the reward {:?}", reward.as_str());
            Err(Invalid::field("reward", "reward_not_available", message))
        }
    }
}

/// One of an enum's names on the wire.
fn named<'a, T: Deserialize<'a>>(param: &str, name: Option<&'a str>) -> Result<Option<T>, Invalid> {
    let Some(name) = name else { return Ok(None) };
    let deserializer: StrDeserializer<'_, ValueError> = name.into_deserializer();
    T::deserialize(deserializer).map(Some).map_err(|e| Invalid::field(param, "invalid_value", e.to_string()))
}

fn include(names: &[String], head: HeadKind) -> Result<Include, Invalid> {
    let mut include = Include::default();
    for (i, name) in names.iter().enumerate() {
        let param = || format!("include[{i}]");
        match name.as_str() {
            "token_ids" => include.token_ids = true,
            "tokens" => include.tokens = true,
            "offsets" => include.offsets = Some(i),
            "logit" => include.logit = true,
            "logsumexp" | "max" | "entropy" if !head.is_vocabulary() => {
                let message = format!("{name} needs a vocabulary head; this checkpoint has a scalar head");
                return Err(Invalid::field(param(), "not_available", message));
            }
            "logsumexp" => include.logsumexp = true,
            "max" => include.max = true,
            "entropy" => include.entropy = true,
            _ => {
                let known = "token_ids, tokens, offsets, logit, logsumexp, max, entropy";
                return Err(Invalid::field(param(), "invalid_value", format!("{name:?} is none of {known}")));
            }
        }
    }
    Ok(include)
}
