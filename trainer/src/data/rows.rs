//! One row of JSON to one example.

use std::sync::Arc;

use qrm_model::text::Message;
use qrm_model::{RewardModel, Trajectory};
use serde::Deserialize;

use super::{Example, Format, Kind};

#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    String(String),
    Ids(Vec<u32>),
}

#[derive(Deserialize)]
struct Row {
    prompt: Option<Text>,
    messages: Option<Vec<Message>>,
    chosen: Option<Text>,
    rejected: Option<Text>,
    response: Option<Text>,
    first_wrong: Option<usize>,
    steps: Option<Vec<Step>>,
}

#[derive(Deserialize)]
struct Step {
    end: usize,
    label: f32,
}

/// Fields that this program has no use for are passed over, as data sets carry many.
pub(super) fn read(line: &str, format: Format, model: &RewardModel) -> Result<Example, String> {
    let row: Row = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let prompt_ids = prompt(&row, model)?;
    let names: &[(&str, &Option<Text>)] = match format.kind {
        Kind::Pairs => &[("chosen", &row.chosen), ("rejected", &row.rejected)],
        Kind::Answers | Kind::Steps => &[("response", &row.response)],
    };
    let (mut answers, mut offsets) = (Vec::new(), Vec::new());
    for (name, text) in names {
        let text = text.as_ref().ok_or_else(|| format!("{name} is missing"))?;
        let (response, ranges) = ids(text, model).map_err(|e| format!("{name}: {e}"))?;
        offsets = ranges;
        answers.push(answer(name, prompt_ids.clone(), response, format, model)?);
    }
    if let [chosen, rejected] = &answers[..]
        && chosen == rejected
    {
        return Err("chosen and rejected are the same".into());
    }
    let steps = match (format.kind, row.steps) {
        (Kind::Steps, None) => return Err("steps is missing".into()),
        (Kind::Steps, Some(steps)) => labels(&steps, &offsets, format.append_eos)?,
        _ => Vec::new(),
    };
    let first_wrong = match row.first_wrong {
        Some(byte) => token_at(byte, &offsets, &answers)?,
        None => None,
    };
    Ok(Example { answers, first_wrong, steps, reference: Vec::new() })
}

/// The token that holds a byte of the last answer; the end-of-sequence token, if there is one, of the byte after it.
fn token_at(byte: usize, offsets: &[[usize; 2]], answers: &[Trajectory]) -> Result<Option<usize>, String> {
    let end = offsets.last().map_or(0, |[_, end]| *end);
    if byte > end {
        return Err(format!("first_wrong is {byte}, the rejected answer ends at {end}"));
    }
    let token = if byte == end {
        offsets.len()
    } else {
        offsets.partition_point(|[begin, _]| *begin <= byte).saturating_sub(1)
    };
    Ok(answers.last().map(|t| t.response_ids.len()).filter(|length| token < *length).map(|_| token))
}

fn prompt(row: &Row, model: &RewardModel) -> Result<Arc<[u32]>, String> {
    let prompt = match (&row.prompt, &row.messages) {
        (Some(text), None) => ids(text, model).map_err(|e| format!("prompt: {e}"))?.0,
        (None, Some(messages)) => {
            let text = model.text().render(messages).map_err(|e| e.to_string())?;
            ids(&Text::String(text), model)?.0
        }
        _ => return Err("one of prompt and messages is needed".into()),
    };
    if prompt.is_empty() {
        return Err("the prompt is empty".into());
    }
    Ok(prompt.into())
}

/// Token ids, and of text their byte ranges.
fn ids(text: &Text, model: &RewardModel) -> Result<(Vec<u32>, Vec<[usize; 2]>), String> {
    match text {
        Text::String(text) => {
            let encoded = model.text().encode(text, false).map_err(|e| e.to_string())?;
            Ok((encoded.ids, encoded.offsets))
        }
        Text::Ids(ids) => Ok((ids.clone(), Vec::new())),
    }
}

fn answer(
    name: &str,
    prompt_ids: Arc<[u32]>,
    mut response: Vec<u32>,
    format: Format,
    model: &RewardModel,
) -> Result<Trajectory, String> {
    if response.is_empty() {
        return Err(format!("{name} is empty"));
    }
    if format.append_eos {
        response.push(model.eos_token_id().ok_or("the checkpoint names no end-of-sequence token")?);
    }
    let trajectory = Trajectory { prompt_ids, response_ids: response.into() };
    let all = || trajectory.prompt_ids.iter().chain(trajectory.response_ids.iter());
    if let Some(id) = all().find(|id| **id as usize >= model.vocab_size()) {
        return Err(format!("{name}: token id {id}, the vocabulary ends at {}", model.vocab_size()));
    }
    match trajectory.len() > model.context_length() {
        true => {
            let context = model.context_length();
            Err(format!("{name}: {} tokens with its prompt, the context holds {context}", trajectory.len()))
        }
        false => Ok(trajectory),
    }
}

/// The tokens that have a label. Where the answer goes on to the end of sequence, so does its last step: a step model is read
/// at the last token of a step, and that is the end-of-sequence token of an answer that was ended, the one before it of
/// one that was cut off or ends with a separator.
fn labels(steps: &[Step], offsets: &[[usize; 2]], append_eos: bool) -> Result<Vec<(usize, f32)>, String> {
    if steps.is_empty() {
        return Err("steps is empty".into());
    }
    let mut last = 0;
    let mut labelled: Vec<(usize, f32)> = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        let end = offsets.last().map_or(0, |[_, end]| *end);
        if step.end <= last || step.end > end {
            return Err(format!("steps[{i}].end is {}, expected {} to {end}", step.end, last + 1));
        }
        if ![-1.0, 0.0, 1.0].contains(&step.label) {
            return Err(format!("steps[{i}].label is {}, expected -1, 0 or 1", step.label));
        }
        last = step.end;
        // The step's last token: the last that begins before its end.
        let token = offsets.partition_point(|[begin, _]| *begin < step.end).saturating_sub(1);
        labelled.push((token, step.label));
        if append_eos && step.end == end {
            labelled.push((offsets.len(), step.label));
        }
    }
    Ok(labelled)
}
