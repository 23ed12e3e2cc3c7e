//! The Q-RM loss and its gradients against PyTorch in f64 (`reference.py` made `pytorch.json`).

use std::path::Path;

use qrm_model::reward::HeadKind;
use qrm_model::training::{Gradients, Method};
use qrm_model::{RewardModel, Trajectory};
use qrm_trainer::data::Example;
use qrm_trainer::objective::{Objective, Preference};
use serde_json::Value;

#[test]
fn loss_and_gradients_are_pytorchs() {
    let reference: Value = serde_json::from_str(include_str!("pytorch.json")).unwrap();
    let ids = |v: &Value| -> Vec<u32> { serde_json::from_value(v.clone()).unwrap() };
    let examples: Vec<Example> = reference["pairs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| {
            let answer = |name: &str| Trajectory {
                prompt_ids: ids(&pair["prompt"]).into(),
                response_ids: ids(&pair[name]).into(),
            };
            let answers = vec![answer("chosen"), answer("rejected")];
            Example { answers, first_wrong: None, steps: Vec::new(), reference: Vec::new() }
        })
        .collect();
    let (beta, gamma) = (reference["beta"].as_f64().unwrap(), reference["gamma"].as_f64().unwrap());
    for result in reference["results"].as_array().unwrap() {
        let sft = result["sft"].as_f64().unwrap();
        let objective = Objective::Qrm(Preference { beta, gamma, label_smoothing: 0.0, sft });
        let name = result["checkpoint"].as_str().unwrap();
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
        let model = RewardModel::load_for_training(&dir, HeadKind::QVocab, &Method::Full, 0).unwrap();
        let mut gradients = Gradients::new(model.trained());
        // In two micro-batches, whose gradients add up.
        let mut loss = 0.0;
        for part in [&examples[..2], &examples[2..]] {
            let part: Vec<&Example> = part.iter().collect();
            let answers: Vec<_> = part.iter().flat_map(|e| e.answers.clone()).collect();
            let share = |outputs: &candle_core::Tensor| Ok(objective.loss(&part, outputs, 3.0)?.0);
            loss += f64::from(model.train(&answers, true, &mut gradients, share).unwrap());
        }
        let close = |what: &str, got: f64, want: f64, scale: f64| {
            assert!((got - want).abs() <= 1e-5 * scale, "{name} {what}: {got}, not {want}");
        };
        let want = result["loss"].as_f64().unwrap();
        close("loss", loss, want, want);
        for ((key, _), gradient) in model.trained().iter().zip(gradients.iter()) {
            let got: Vec<f32> = gradient.unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let want = &result["gradients"][key];
            let norm = want["norm"].as_f64().unwrap();
            let got_norm = got.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            close(key, got_norm, norm, norm);
            for (at, value) in ids(&want["at"]).into_iter().zip(want["values"].as_array().unwrap()) {
                close(key, f64::from(got[at as usize]), value.as_f64().unwrap(), norm);
            }
        }
        assert_eq!(model.trained().len(), result["gradients"].as_object().unwrap().len());
    }
}
