//! A finished model as others load it: Hugging Face layout with `qrm_config.json`, adapters in PEFT's layout.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use candle_core::{DType, Tensor};
use qrm_model::checkpoint::{Checkpoint, write_safetensors};
use qrm_model::reward::HeadKind;
use qrm_model::training::{Lora, Method};
use qrm_model::{RewardKind, RewardModel};
use serde_json::{Map, Value, json};

use crate::evaluate::Evaluation;
use crate::files;

/// What weights are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Store {
    /// As trained.
    F32,
    /// Rounded.
    Bf16,
    /// Rounded.
    F16,
}

impl Store {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

/// Files that go along unchanged.
const COPIED: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "tokenizer.model",
];

/// What `qrm_config.json` says of a training.
#[derive(Debug, Clone)]
pub struct Card {
    /// Whether it is a reward model, not a plain language model.
    pub is_reward_model: bool,
    /// What ends a step.
    pub step_separator: String,
    /// β and γ of the loss.
    pub beta_gamma: Option<(f64, f64)>,
    /// On the validation set.
    pub evaluation: Option<Evaluation>,
}

/// Writes `model`, trained by `method` from the checkpoint in `base`, to the directory `to`, whole or not at all.
pub fn write(
    model: &RewardModel,
    method: &Method,
    base: &Path,
    to: &Path,
    store: Store,
    card: &Card,
) -> anyhow::Result<()> {
    let write = |dir: &Path| -> anyhow::Result<()> {
        let tensors = weights(model, method, base)?;
        save(&dir.join("model.safetensors"), &tensors, store.dtype())?;
        for file in COPIED.iter().filter(|file| base.join(file).exists()) {
            std::fs::copy(base.join(file), dir.join(file)).with_context(|| format!("copying {file}"))?;
        }
        let config = config(model, &base.join("config.json"), store)?;
        std::fs::write(dir.join("config.json"), pretty(&config))?;
        std::fs::write(dir.join("qrm_config.json"), pretty(&qrm_config(model, card)))?;
        if model.head() == HeadKind::Dpo {
            copy_language_model(base, &dir.join("reference"))?;
        }
        if let Method::Lora(lora) = method {
            adapter(model, lora, base, &dir.join("adapter"))?;
        }
        Ok(())
    };
    files::directory(to, write).with_context(|| format!("writing {}", to.display()))
}

/// All tensors by the names that `transformers` has for the class of [`config`].
fn weights(model: &RewardModel, method: &Method, base: &Path) -> anyhow::Result<BTreeMap<String, Tensor>> {
    let mut all = merged(model, method, base)?;
    // A base may call its scalar head otherwise, and then it is loaded as if there were none.
    for part in ["weight", "bias"] {
        if let Some(head) = ["v_head", "reward_head"].iter().find_map(|n| all.remove(&format!("{n}.{part}")))
        {
            all.insert(format!("score.{part}"), head);
        }
    }
    if model.head() == HeadKind::Outcome {
        all.remove("score.bias"); // `…ForSequenceClassification` has none, and all answers had it alike
    }
    Ok(all)
}

/// All tensors, adapters merged.
fn merged(model: &RewardModel, method: &Method, base: &Path) -> anyhow::Result<BTreeMap<String, Tensor>> {
    let trained: BTreeMap<&str, &Tensor> = model.trained().iter().map(|(n, v)| (n, v.as_tensor())).collect();
    let Method::Lora(lora) = method else {
        return Ok(trained.into_iter().map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect());
    };
    let mut all: BTreeMap<String, Tensor> = Checkpoint::open(base)?.take_all()?.into_iter().collect();
    if !model.head().is_vocabulary() {
        all.remove("lm_head.weight");
    }
    for (name, tensor) in &trained {
        match name.strip_suffix(".lora_A.weight") {
            Some(projection) => {
                let b = trained.get(format!("{projection}.lora_B.weight").as_str());
                let weight = all.get_mut(&format!("{projection}.weight"));
                let (Some(b), Some(weight)) = (b, weight) else { anyhow::bail!("{name} has no counterpart") };
                let change = (b.matmul(tensor)? * (lora.alpha / lora.rank as f64))?;
                *weight = (&*weight + change)?;
            }
            None if name.ends_with(".lora_B.weight") => {}
            None => {
                all.insert((*name).to_owned(), (*tensor).clone());
            }
        }
    }
    Ok(all)
}

/// One safetensors file. `format: pt` is what `transformers` asks for.
pub(crate) fn save(path: &Path, tensors: &BTreeMap<String, Tensor>, dtype: DType) -> anyhow::Result<()> {
    let rounded: Vec<(&String, Tensor)> = tensors
        .iter()
        .map(|(name, tensor)| Ok((name, tensor.detach().to_dtype(dtype)?.contiguous()?)))
        .collect::<candle_core::Result<_>>()?;
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    Ok(write_safetensors(rounded.iter().map(|(n, t)| (n, t)), Some(metadata), path)?)
}

/// The base's `config.json` with the class and the head of what it has become.
fn config(model: &RewardModel, base: &Path, store: Store) -> anyhow::Result<Value> {
    let mut config: Map<String, Value> = serde_json::from_slice(&std::fs::read(base)?)?;
    let class = match model.head() {
        HeadKind::QVocab | HeadKind::Dpo => "ForCausalLM",
        HeadKind::QScalar | HeadKind::Step => "ForTokenClassification",
        HeadKind::Outcome => "ForSequenceClassification",
    };
    let family = model.architecture().split("For").next().unwrap_or_default();
    config.insert("architectures".into(), json!([format!("{family}{class}")]));
    let dtype = match store {
        Store::F32 => "float32",
        Store::Bf16 => "bfloat16",
        Store::F16 => "float16",
    };
    if model.head().is_vocabulary() {
        // A GGUF's own output matrix counts even where its configuration ties it.
        config.insert("tie_word_embeddings".into(), json!(model.ties_embeddings()));
    }
    config.remove("dtype");
    config.insert("torch_dtype".into(), json!(dtype));
    if !model.head().is_vocabulary() {
        config.insert("num_labels".into(), json!(1));
        config.insert("id2label".into(), json!({"0": "REWARD"}));
        config.insert("label2id".into(), json!({"REWARD": 0}));
        // `…ForSequenceClassification` reads at the last token that is not this one: were it the end of sequence, it would read
        // before that, where an outcome model was not trained. Without one it refuses batches, which is seen.
        if config.get("pad_token_id").is_some_and(|pad| *pad == json!(model.eos_token_id())) {
            config.insert("pad_token_id".into(), Value::Null);
        }
    }
    Ok(Value::Object(config))
}

fn qrm_config(model: &RewardModel, card: &Card) -> Value {
    let mut config = Map::new();
    if card.is_reward_model {
        config.insert("reward_model".into(), json!(model.head().as_str()));
    }
    if let Some((beta, gamma)) = card.beta_gamma {
        config.insert("beta".into(), json!(beta));
        config.insert("gamma".into(), json!(gamma));
    }
    if model.head() == HeadKind::Step {
        config.insert("activation".into(), json!("tanh"));
        config.insert("step_separator".into(), json!(card.step_separator));
    }
    if let Some(evaluation) = &card.evaluation {
        if let (Some(mean), Some(std)) = (evaluation.reward_mean, evaluation.reward_std) {
            config.insert("stats".into(), json!({"mean": mean, "std": std}));
        }
        let reward: RewardKind = model.head().default_reward();
        config.insert("evaluation".into(), json!({"reward": reward, "result": evaluation}));
    }
    Value::Object(config)
}

/// The files of a checkpoint, without what lies below it, and what makes a reward model of it.
fn copy_language_model(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if entry.path().is_file() && entry.file_name() != "qrm_config.json" {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// The adapter alone, as `PeftModel.from_pretrained` loads it.
fn adapter(model: &RewardModel, lora: &Lora, base: &Path, dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir(dir)?;
    let named = model.trained().iter();
    let tensors: BTreeMap<String, Tensor> =
        named.map(|(name, var)| (format!("base_model.model.{name}"), var.as_tensor().clone())).collect();
    save(&dir.join("adapter_model.safetensors"), &tensors, DType::F32)?;
    let (task, saved) = match model.head() {
        HeadKind::QVocab | HeadKind::Dpo => ("CAUSAL_LM", Value::Null),
        HeadKind::QScalar | HeadKind::Step => ("TOKEN_CLS", json!(["score"])),
        HeadKind::Outcome => ("SEQ_CLS", json!(["score"])),
    };
    let base = std::fs::canonicalize(base)?;
    let config = json!({
        "peft_type": "LORA", "task_type": task, "base_model_name_or_path": base.to_string_lossy(),
        "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": 0.0, "bias": "none",
        "target_modules": lora.targets, "modules_to_save": saved, "inference_mode": true,
        "fan_in_fan_out": false, "init_lora_weights": true,
    });
    Ok(std::fs::write(dir.join("adapter_config.json"), pretty(&config))?)
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
