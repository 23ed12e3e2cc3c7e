//! The RoPE part of `config.json`, in both of its layouts, and the frequencies that it asks for.

use super::config::{DecoderConfig, RopeScaling};
use super::fields::{FieldError, Fields};

/// `transformers`' base where the config names none.
const DEFAULT_THETA: f64 = 10_000.0;

/// Base and scaling: from `rope_parameters` (transformers 5), else `rope_theta` and `rope_scaling`.
pub(super) fn read(config: Fields<'_>, limit: usize) -> Result<(f64, RopeScaling), FieldError> {
    let outer = config.positive("rope_theta")?.unwrap_or(DEFAULT_THETA);
    whole(config)?;
    let (section, rope) = match config.object("rope_parameters")? {
        Some(rope) => ("rope_parameters", rope),
        None => match config.object("rope_scaling")? {
            Some(rope) => ("rope_scaling", rope),
            None => return Ok((outer, RopeScaling::None)),
        },
    };
    scaling(rope, outer, limit).map_err(|message| format!("{section}: {message}"))
}

/// Heads are rotated whole.
fn whole(fields: Fields<'_>) -> Result<(), FieldError> {
    match fields.positive("partial_rotary_factor")?.filter(|part| *part != 1.0) {
        None => Ok(()),
        Some(part) => Err(format!("partial_rotary_factor {part} is not supported, only 1")),
    }
}

fn scaling(rope: Fields<'_>, outer: f64, limit: usize) -> Result<(f64, RopeScaling), FieldError> {
    if let Some((layers, _)) = rope.0.iter().find(|(_, value)| value.is_object()) {
        return Err(format!("settings per kind of layer ({layers}) are not supported"));
    }
    whole(rope)?;
    let kind = match rope.text("rope_type")? {
        Some(kind) => kind,
        None => rope.text("type")?.unwrap_or("default"),
    };
    let scaling = match kind {
        "default" | "none" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: rope.required_positive("factor")? },
        "llama3" => llama3(rope, limit)?,
        other => {
            return Err(format!("rope type {other:?} is not supported, only default, linear and llama3"));
        }
    };
    Ok((rope.positive("rope_theta")?.unwrap_or(outer), scaling))
}

fn llama3(rope: Fields<'_>, limit: usize) -> Result<RopeScaling, FieldError> {
    let low_freq_factor = rope.required_positive("low_freq_factor")?;
    let high_freq_factor = rope.required_positive("high_freq_factor")?;
    if high_freq_factor <= low_freq_factor {
        return Err(format!(
            "high_freq_factor {high_freq_factor} is not above low_freq_factor {low_freq_factor}"
        ));
    }
    Ok(RopeScaling::Llama3 {
        factor: rope.required_positive("factor")?,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings: rope.required_size("original_max_position_embeddings", limit)?,
    })
}

/// Rotation frequencies, `[head_dim / 2]`, as `transformers` computes them.
pub(crate) fn inv_freq(config: &DecoderConfig) -> Vec<f64> {
    let plain =
        (0..config.head_dim / 2).map(|i| config.rope_theta.powf(-2.0 * i as f64 / config.head_dim as f64));
    match config.rope_scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => plain
            .map(|f| {
                let context = original_max_position_embeddings as f64;
                let wavelength = 2.0 * std::f64::consts::PI / f;
                if wavelength < context / high_freq_factor {
                    f
                } else if wavelength > context / low_freq_factor {
                    f / factor
                } else {
                    let smooth =
                        (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            })
            .collect(),
    }
}
