//! Rewards for a policy with another tokenizer: one per token of the policy, nothing lost, nothing counted twice.

use qrm_tests::{Rng, Server, doubles, fixture};
use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, TokenizerBuilder, TokenizerImpl};

type Policy = TokenizerImpl<BPE, NormalizerWrapper, ByteLevel, PostProcessorWrapper, DecoderWrapper>;

/// English, CJK, accents, emoji of one and of several code points.
fn text(rng: &mut Rng) -> String {
    let pieces = [
        "The answer",
        " is ",
        "42",
        ". ",
        "naïve café",
        "日本語の文",
        "漢字",
        "한국어",
        "Ωμέγα",
        "🙂",
        "👩‍👩‍👧",
        "🇩🇪",
        "e\u{301}",
        " the",
        " of",
        "\n",
        "  ",
        "x = y²",
        "🏳️‍🌈",
        "…",
        "привет",
        "ة",
        "\t",
    ];
    (0..1 + rng.below(12)).map(|_| rng.pick(&pieces)).collect()
}

/// A byte-level BPE as GPT-2's, trained on such texts, so that its tokens end within characters.
fn policy(texts: &[String]) -> Policy {
    let mut policy: Policy = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None)
        .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
        .with_post_processor(None)
        .with_decoder(None)
        .build()
        .expect("a tokenizer");
    let mut trainer = BpeTrainer::builder()
        .vocab_size(300)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    policy.train(&mut trainer, texts.iter()).expect("trained");
    policy
}

/// The byte range of every token: a byte-level token has a character per byte.
fn spans(policy: &Policy, text: &str) -> Vec<[usize; 2]> {
    let mut end = 0;
    let encoding = policy.encode(text, false).expect("encoded");
    let next = |token: &String| {
        let from = end;
        end += token.chars().count();
        [from, end]
    };
    let spans: Vec<_> = encoding.get_tokens().iter().map(next).collect();
    assert_eq!(end, text.len());
    spans
}

#[test]
fn nothing_is_lost_or_counted_twice() {
    let mut rng = Rng::new(1);
    let texts: Vec<String> = (0..1000).map(|_| text(&mut rng)).collect();
    let policy = policy(&texts[..200]);
    let server = Server::start(&fixture("qwen2"), &[]);
    let client = server.client();
    let mut cut = 0;
    for texts in texts.chunks(50) {
        let all: Vec<_> = texts.iter().map(|text| spans(&policy, text)).collect();
        let inputs = |with_spans: bool| {
            let input = |(text, spans): (&String, &Vec<[usize; 2]>)| match with_spans {
                true => json!({"prompt": "Say ", "response": text, "spans": spans}),
                false => json!({"prompt": "Say ", "response": text}),
            };
            texts.iter().zip(&all).map(input).collect::<Vec<_>>()
        };
        let mut request = json!({"inputs": inputs(false), "include": ["offsets"], "append_eos": true});
        let tokens = client.rewards(&request).ok();
        request["inputs"] = json!(inputs(true));
        let sums = client.rewards(&request).ok();
        request["span_reduce"] = json!("last");
        let lasts = client.rewards(&request).ok();
        for (i, (text, spans)) in texts.iter().zip(&all).enumerate() {
            cut += spans.iter().filter(|[_, end]| !text.is_char_boundary(*end)).count();
            let (token, span, last) = (&tokens["data"][i], &sums["data"][i], &lasts["data"][i]);
            let rewards = doubles(&token["rewards"]);
            let offsets: Vec<[usize; 2]> = serde_json::from_value(token["offsets"].clone()).expect("ranges");
            let (total, kept) = (rewards.iter().sum::<f64>(), doubles(&span["rewards"]).iter().sum::<f64>());
            assert!((total - kept).abs() <= 1e-5 * total.abs().max(1.0), "{text:?}: {total} became {kept}");
            // Each span has the tokens that begin in it; the last one the appended end of sequence as well.
            let end = |k: usize| if k + 1 == spans.len() { usize::MAX } else { spans[k][1] };
            for (k, [from, _]) in spans.iter().enumerate() {
                let own = offsets.iter().zip(&rewards).filter(|(o, _)| *from <= o[0] && o[0] < end(k));
                let own: Vec<f64> = own.map(|(_, r)| *r).collect();
                let expected = own.iter().sum::<f64>();
                let got = span["rewards"][k].as_f64().expect("a number");
                assert!((got - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{text:?}, span {k}");
                assert_eq!(last["rewards"][k].as_f64(), Some(own.last().copied().unwrap_or(0.0)));
            }
            assert_eq!(span["length"].as_u64(), Some(spans.len() as u64));
        }
    }
    assert!(cut > 1000, "only {cut} spans end within a character");
    server.assert_quiet();
}
