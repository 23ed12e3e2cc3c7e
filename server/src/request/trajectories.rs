//! Inputs tokenised and checked: each becomes one trajectory per response.

use std::collections::HashSet;
use std::sync::Arc;

use qrm_model::reward::RewardKind;
use qrm_model::{RewardModel, Trajectory};
use qrm_proto::request::ChatMessage;
use qrm_proto::{Input, TextOrIds};
use serde_json::Value;

use super::spans::Spans;
use super::{Bounds, Invalid, Options, text};

/// A request ready for the engine.
pub(crate) struct Prepared {
    pub(crate) trajectories: Vec<Trajectory>,
    pub(crate) origins: Vec<Origin>,
    pub(crate) options: Options,
}

/// What the answer says of a trajectory besides its scores.
#[derive(Default)]
pub(crate) struct Origin {
    /// Place of its input in the request.
    pub(crate) input: usize,
    pub(crate) id: Option<Value>,
    /// Byte ranges of the response text, when asked for.
    pub(crate) offsets: Option<Vec<[usize; 2]>>,
    /// Of the policy's tokens, when given.
    pub(crate) spans: Option<Spans>,
    /// The last token of each step, when it was said where they end.
    pub(crate) last_tokens: Option<Vec<usize>>,
}

pub(super) fn prepare(
    inputs: Vec<Input>,
    options: Options,
    model: &RewardModel,
    bounds: Bounds,
) -> Result<Prepared, Invalid> {
    let count: usize = inputs.iter().map(|i| i.responses.as_ref().map_or(1, Vec::len)).sum();
    if count > bounds.trajectories {
        return Err(Invalid::too_many(count, bounds.trajectories, "inputs"));
    }
    if inputs.is_empty() {
        return Err(Invalid::field("inputs", "inputs_empty", "inputs holds nothing to score"));
    }
    let mut prepared =
        Prepared { trajectories: Vec::with_capacity(count), origins: Vec::with_capacity(count), options };
    let mut so_far = SoFar { prompts: HashSet::new(), tokens: 0, most: bounds.tokens };
    for (index, input) in inputs.into_iter().enumerate() {
        Reader { model, index }.read(input, &mut so_far, &mut prepared)?;
    }
    Ok(prepared)
}

/// What the inputs that were read came to.
struct SoFar {
    /// The engine compares by where they are before it looks at their tokens.
    prompts: HashSet<Arc<[u32]>>,
    tokens: usize,
    /// Tokens of a request: more is not even made, since prompts that are shortened may be many of one.
    most: usize,
}

impl SoFar {
    /// The same prompt, and the same memory if it was there before.
    fn prompt(&mut self, ids: &[u32]) -> Arc<[u32]> {
        if let Some(same) = self.prompts.get(ids) {
            return same.clone();
        }
        let prompt: Arc<[u32]> = ids.into();
        self.prompts.insert(prompt.clone());
        prompt
    }

    fn add(&mut self, tokens: usize) -> Result<(), Invalid> {
        self.tokens += tokens;
        match self.tokens > self.most {
            true => Err(Invalid::too_large(
                format!("more than the {} tokens that are taken", self.most),
                "inputs",
            )),
            false => Ok(()),
        }
    }
}

struct Response {
    ids: Vec<u32>,
    text: Option<TextOfResponse>,
}

/// Where a response's tokens lie in it.
struct TextOfResponse {
    /// Bytes, `[T]`.
    offsets: Vec<[usize; 2]>,
    /// Of the text.
    bytes: usize,
}

/// Reads one input, knowing its place for errors.
struct Reader<'a> {
    model: &'a RewardModel,
    index: usize,
}

impl Reader<'_> {
    fn param(&self, field: &str) -> String {
        format!("inputs[{}].{field}", self.index)
    }

    fn read(&self, input: Input, so_far: &mut SoFar, out: &mut Prepared) -> Result<(), Invalid> {
        let both = |field: &str, other: &str| {
            Invalid::field(
                self.param(field),
                "conflicting_fields",
                format!("{field} and {other} exclude each other"),
            )
        };
        let (prompt, prompt_field) = match (input.prompt, input.messages) {
            (Some(_), Some(_)) => return Err(both("messages", "prompt")),
            (Some(prompt), None) => (self.prompt(prompt, input.add_special_tokens, &out.options)?, "prompt"),
            (None, Some(messages)) => {
                (self.messages(messages, input.add_special_tokens, &out.options)?, "messages")
            }
            (None, None) => {
                let message = "an input needs a prompt or messages";
                return Err(Invalid::field(self.param("prompt"), "missing_field", message));
            }
        };
        let prompt = so_far.prompt(&prompt);
        let (responses, single) = match (input.response, input.responses) {
            (Some(_), Some(_)) => return Err(both("responses", "response")),
            (Some(response), None) => (vec![response], true),
            (None, Some(_)) if input.spans.is_some() => return Err(both("spans", "responses")),
            (None, Some(_)) if input.step_ends.is_some() => return Err(both("step_ends", "responses")),
            (None, Some(responses)) => (responses, false),
            (None, None) => {
                let message = "an input needs a response or responses";
                return Err(Invalid::field(self.param("response"), "missing_field", message));
            }
        };
        if responses.is_empty() {
            return Err(Invalid::field(
                self.param("responses"),
                "response_empty",
                "responses holds no response",
            ));
        }
        for (j, response) in responses.into_iter().enumerate() {
            let param = if single { self.param("response") } else { self.param(&format!("responses[{j}]")) };
            let Response { ids, text } = self.response(response, &param, &out.options)?;
            let spans = input.spans.as_ref().map(|spans| self.spans(spans, text.as_ref())).transpose()?;
            let last_tokens = match &input.step_ends {
                Some(ends) => Some(self.last_tokens(ends, text.as_ref(), ids.len(), &out.options)?),
                None => None,
            };
            let offsets = Self::offsets(text, &param, &out.options)?;
            let fitting = self.fit(&prompt, &ids, prompt_field, &param, out.options.truncate_prompt)?;
            so_far.add(fitting.len() + ids.len())?;
            // The whole prompt is known by where it is.
            let prompt_ids =
                if fitting.len() == prompt.len() { prompt.clone() } else { so_far.prompt(fitting) };
            out.trajectories.push(Trajectory { prompt_ids, response_ids: ids.into() });
            out.origins.push(Origin { input: self.index, id: input.id.clone(), offsets, spans, last_tokens });
        }
        Ok(())
    }

    fn prompt(
        &self,
        prompt: TextOrIds,
        add_special_tokens: bool,
        options: &Options,
    ) -> Result<Vec<u32>, Invalid> {
        let param = self.param("prompt");
        match prompt {
            TextOrIds::Text(text) => self.prompt_text(&text, add_special_tokens, &param, options),
            TextOrIds::Ids(ids) => {
                text::check_ids(self.model, &ids, &param)?;
                Ok(ids)
            }
        }
    }

    fn messages(
        &self,
        messages: Vec<ChatMessage>,
        add_special_tokens: bool,
        options: &Options,
    ) -> Result<Vec<u32>, Invalid> {
        let param = self.param("messages");
        let text = text::render(self.model, messages, &param)?;
        self.prompt_text(&text, add_special_tokens, &param, options)
    }

    fn prompt_text(
        &self,
        text: &str,
        add_special_tokens: bool,
        param: &str,
        options: &Options,
    ) -> Result<Vec<u32>, Invalid> {
        let encode = if options.truncate_prompt { text::encode_to_cut } else { text::encode };
        Ok(encode(self.model, text, add_special_tokens, param)?.ids)
    }

    fn response(&self, response: TextOrIds, param: &str, options: &Options) -> Result<Response, Invalid> {
        let (mut ids, text) = match response {
            TextOrIds::Text(text) => {
                let mut encoded = text::encode(self.model, &text, false, param)?;
                encoded.ids.extend(options.eos);
                encoded.offsets.extend(options.eos.map(|_| [text.len(), text.len()]));
                (encoded.ids, Some(TextOfResponse { offsets: encoded.offsets, bytes: text.len() }))
            }
            TextOrIds::Ids(mut ids) => {
                text::check_ids(self.model, &ids, param)?;
                ids.extend(options.eos);
                (ids, None)
            }
        };
        ids.shrink_to_fit();
        // A policy may end at once: that is one token, if its end counts.
        if ids.is_empty() {
            return Err(Invalid::field(param, "response_empty", "the response holds no token"));
        }
        Ok(Response { ids, text })
    }

    fn spans(&self, spans: &[[usize; 2]], text: Option<&TextOfResponse>) -> Result<Spans, Invalid> {
        let Some(text) = text else {
            let message = "spans are of response text; the response is token ids";
            return Err(Invalid::field(self.param("spans"), "not_available", message));
        };
        Spans::new(spans, &text.offsets, text.bytes).map_err(|bad| {
            let param = format!("inputs[{}].spans[{}]", self.index, bad.index);
            Invalid::field(param, "invalid_span", bad.message)
        })
    }

    /// The last token of every step: the one that holds the step's last byte, or, of ids, has its place.
    fn last_tokens(
        &self,
        ends: &[usize],
        text: Option<&TextOfResponse>,
        tokens: usize,
        options: &Options,
    ) -> Result<Vec<usize>, Invalid> {
        if options.reward != RewardKind::Step {
            let message = format!("the reward is {}, not step", options.reward.as_str());
            return Err(Invalid::field(self.param("step_ends"), "not_available", message));
        }
        let (most, unit) = text.map_or((tokens, "tokens"), |text| (text.bytes, "bytes"));
        let mut before = 0;
        let mut last_tokens = Vec::with_capacity(ends.len());
        for (i, end) in ends.iter().enumerate() {
            if *end <= before || *end > most {
                let message = format!("{end} is not above {before} and within the response's {most} {unit}");
                return Err(Invalid::field(
                    format!("inputs[{}].step_ends[{i}]", self.index),
                    "out_of_range",
                    message,
                ));
            }
            before = *end;
            last_tokens.push(match text {
                None => end - 1,
                Some(text) => text.offsets.partition_point(|[begin, _]| begin < end).saturating_sub(1),
            });
        }
        Ok(last_tokens)
    }

    /// Byte ranges where they are asked for.
    fn offsets(
        text: Option<TextOfResponse>,
        param: &str,
        options: &Options,
    ) -> Result<Option<Vec<[usize; 2]>>, Invalid> {
        match (options.include.offsets, text) {
            (None, _) => Ok(None),
            (Some(_), Some(text)) => Ok(Some(text.offsets)),
            (Some(i), None) => {
                let message = format!("offsets are of response text; {param} is token ids");
                Err(Invalid::field(format!("include[{i}]"), "not_available", message))
            }
        }
    }

    /// The prompt, shortened from the left where that is allowed and needed.
    fn fit<'p>(
        &self,
        prompt: &'p [u32],
        response: &[u32],
        prompt_field: &str,
        response_param: &str,
        truncate_prompt: bool,
    ) -> Result<&'p [u32], Invalid> {
        let context = self.model.context_length();
        let least = self.model.min_prompt_tokens();
        if prompt.len() < least {
            let message =
                "a vocabulary head reads the first reward at the prompt's last token; the prompt has none";
            return Err(Invalid::field(self.param(prompt_field), "prompt_empty", message));
        }
        let total = prompt.len() + response.len();
        if total <= context {
            return Ok(prompt);
        }
        if !truncate_prompt || response.len() + least > context {
            let message = format!(
                "{} prompt and {} response tokens, the context holds {context}",
                prompt.len(),
                response.len()
            );
            return Err(Invalid::field(response_param, "context_length_exceeded", message));
        }
        Ok(&prompt[total - context..])
    }
}
