//! Every fixture checkpoint against the f64 values beside it.

mod common;

use common::{FIXTURES, fixture};
use qrm_model::reward::TokenScores;
use qrm_model::text::Message;
use qrm_model::{RewardModel, Trajectory};
use serde_json::Value;

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn close(what: &str, got: &[f32], want: &Value) {
    let want: Vec<f64> = serde_json::from_value(want.clone()).unwrap();
    assert_eq!(got.len(), want.len(), "{what}");
    for (g, w) in got.iter().zip(&want) {
        let error = (f64::from(*g) - w).abs();
        assert!(error <= f64::max(2e-4, 1e-4 * w.abs()), "{what}: {g}, not {w}");
    }
}

fn check(name: &str, got: &TokenScores, case: &Value) {
    if case.get("score").is_some() {
        return close(name, &got.logit, &case["score"]);
    }
    close(name, &got.logit, &case["logit"]);
    close(name, &got.logsumexp, &case["logsumexp"]);
    close(name, &got.max, &case["max"]);
    close(name, &got.entropy, &case["entropy"]);
    close(name, &got.rewards(qrm_model::RewardKind::Advantage), &case["log_phi"]);
}

#[test]
fn fixtures_match_their_golden_values() {
    for name in FIXTURES {
        let dir = fixture(name);
        let golden: Value = serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
        let model = RewardModel::load(&dir).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        let batch: Vec<_> = cases
            .iter()
            .map(|c| Trajectory {
                prompt_ids: ids(&c["prompt_ids"]).into(),
                response_ids: ids(&c["response_ids"]).into(),
            })
            .collect();
        let together = model.score(&batch).unwrap();
        for (i, case) in cases.iter().enumerate() {
            check(name, &together.scores[i], case);
            let alone = model.score(&batch[i..=i]).unwrap();
            assert_eq!(alone.scores[0], together.scores[i], "{name}: the batch changed bits");
        }
        let total: usize = batch.iter().map(Trajectory::len).sum();
        assert!(together.computed_tokens.iter().sum::<usize>() <= total);
    }
}

#[test]
fn text_becomes_the_golden_ids() {
    for name in FIXTURES {
        let dir = fixture(name);
        let golden: Value = serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
        let model = RewardModel::load(&dir).unwrap();
        let text = &golden["text"];
        let messages: Vec<Message> = serde_json::from_value(text["messages"].clone()).unwrap();
        let prompt = model.text().render(&messages).unwrap();
        assert_eq!(model.text().encode(&prompt, false).unwrap().ids, ids(&text["prompt_ids"]));
        let response = text["response"].as_str().unwrap();
        let encoded = model.text().encode(response, false).unwrap();
        assert_eq!(encoded.ids, ids(&text["response_ids"]));
        let covered: String = encoded.offsets.iter().map(|[a, b]| &response[*a..*b]).collect();
        assert_eq!(covered, response);
    }
}
