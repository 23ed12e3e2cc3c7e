//! Text in, token ids, byte offsets and rendered conversations out: against golden values, written-out templates and
//! arbitrary strings.

mod common;

use std::sync::LazyLock;

use common::fixture;
use proptest::prelude::*;
use qrm_model::text::{Message, TextError, TextProcessor};
use serde_json::{Value, json};
use tempfile::TempDir;

static QWEN2: LazyLock<TextProcessor> = LazyLock::new(|| TextProcessor::load(&fixture("qwen2")).unwrap());

/// A checkpoint directory with a fixture's tokenizer and the given files.
fn checkpoint(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("qwen2").join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn with_template(template: &str) -> TextProcessor {
    let config = json!({
        "bos_token": {"content": "<s>", "lstrip": false},
        "eos_token": "<|im_end|>",
        "pad_token": null,
        "chat_template": template,
    });
    let dir = checkpoint(&[("tokenizer_config.json", &config.to_string())]);
    TextProcessor::load(dir.path()).unwrap()
}

fn chat(turns: &[(&str, &str)]) -> Vec<Message> {
    turns.iter().map(|(role, content)| Message { role: (*role).into(), content: (*content).into() }).collect()
}

fn render(template: &str, turns: &[(&str, &str)]) -> String {
    with_template(template).render(&chat(turns)).unwrap()
}

fn refusal(template: &str, turns: &[(&str, &str)]) -> String {
    match with_template(template).render(&chat(turns)) {
        Err(TextError::Template(message)) => message,
        other => panic!("not refused: {other:?}"),
    }
}

const USER: &[(&str, &str)] = &[("user", "hi")];

#[test]
fn golden_conversation() {
    let mut seen = 0;
    for entry in std::fs::read_dir(fixture("")).unwrap() {
        let dir = entry.unwrap().path();
        let golden: Value = serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
        let Some(case) = golden.get("text").filter(|case| !case.is_null()) else { continue };
        let text = TextProcessor::load(&dir).unwrap();
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let prompt = text.encode(&text.render(&messages).unwrap(), false).unwrap();
        let response = text.encode(case["response"].as_str().unwrap(), false).unwrap();
        assert_eq!(json!(prompt.ids), case["prompt_ids"], "{}", dir.display());
        assert_eq!(json!(response.ids), case["response_ids"], "{}", dir.display());
        seen += 1;
    }
    assert!(seen > 0);
}

#[test]
fn special_tokens_in_text_are_one_token() {
    let encoded = QWEN2.encode("<|im_start|>a<|im_end|>", false).unwrap();
    assert_eq!((encoded.ids[0], encoded.ids[2]), (1, 2));
    assert_eq!(encoded.offsets, [[0, 12], [12, 13], [13, 23]]);
    assert_eq!(QWEN2.decode(&encoded.ids, false).unwrap(), "<|im_start|>a<|im_end|>");
    assert_eq!(QWEN2.decode(&encoded.ids, true).unwrap(), "a");
}

#[test]
fn tokens_and_eos() {
    assert_eq!(QWEN2.eos_token_id(), Some(2));
    assert_eq!(QWEN2.token(2).as_deref(), Some("<|im_end|>"));
    assert_eq!(QWEN2.token(u32::MAX), None);
    assert_eq!(QWEN2.decode(&[u32::MAX, 2, 100_000], false).unwrap(), "<|im_end|>");
    assert_eq!(with_template("").eos_token_id(), Some(2));
    assert_eq!(TextProcessor::load(checkpoint(&[]).path()).unwrap().eos_token_id(), None);
    let empty = QWEN2.encode("", true).unwrap();
    assert!(empty.ids.is_empty() && empty.offsets.is_empty());
}

#[test]
fn llamas_class_has_its_own_ends_where_it_says_so() {
    let tokenizer = std::fs::read_to_string(fixture("qwen2").join("tokenizer.json")).unwrap();
    let of = |config: Value| {
        let dir =
            checkpoint(&[("tokenizer.json", &tokenizer), ("tokenizer_config.json", &config.to_string())]);
        TextProcessor::load(dir.path()).unwrap()
    };
    let config = json!({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": true, "add_eos_token": true,
        "bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>"});
    let text = of(config.clone());
    let encoded = text.encode("a", true).unwrap();
    assert_eq!((encoded.ids[0], encoded.ids[2], encoded.ids.len()), (1, 2, 3));
    assert_eq!(encoded.offsets, [[0, 0], [0, 1], [1, 1]]);
    assert_eq!(text.encode("a", false).unwrap().ids, [encoded.ids[1]]);
    let mut other = config;
    other["tokenizer_class"] = json!("Qwen2Tokenizer");
    assert_eq!(of(other).encode("a", true).unwrap().ids, [encoded.ids[1]]);
}

/// The tokenizer of a fixture with some of its settings replaced.
fn edited(edit: impl Fn(&mut Value)) -> TextProcessor {
    let path = fixture("qwen2").join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    edit(&mut tokenizer);
    let dir = checkpoint(&[("tokenizer.json", &tokenizer.to_string())]);
    TextProcessor::load(dir.path()).unwrap()
}

#[test]
fn truncation_and_padding_are_off() {
    let text = edited(|tokenizer| {
        tokenizer["truncation"] =
            json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
        tokenizer["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
    });
    let sentence = "Chidi has 44 pens and finds 5 more.";
    assert_eq!(text.encode(sentence, false).unwrap(), QWEN2.encode(sentence, false).unwrap());
}

#[test]
fn added_special_tokens_hold_no_text() {
    let text = edited(|tokenizer| {
        tokenizer["post_processor"] = json!({"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            {"type": "TemplateProcessing",
             "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                        {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}],
             "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
             "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]},
                                "<|im_end|>": {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]}}}]});
    });
    let with = text.encode("a b", true).unwrap();
    assert_eq!((with.ids.first(), with.ids.last()), (Some(&1), Some(&2)));
    assert_eq!((with.offsets.first(), with.offsets.last()), (Some(&[0, 0]), Some(&[3, 3])));
    // The post-processor would trim the space from " b"; the token holds it all the same.
    let without = text.encode("a b", false).unwrap();
    assert_eq!(without, QWEN2.encode("a b", false).unwrap());
    assert_eq!(without.offsets[1][0], 1);
    assert_eq!(with.offsets[1..with.offsets.len() - 1], without.offsets);
}

#[test]
fn a_character_in_several_tokens_is_shared_out() {
    let smile = "a🙂é";
    let encoded = QWEN2.encode(smile, false).unwrap();
    assert!(encoded.ids.len() > 3, "the fixture's vocabulary has no emoji of its own");
    let joined: Vec<usize> = encoded.offsets.iter().flat_map(|[start, end]| *start..*end).collect();
    assert_eq!(joined, (0..smile.len()).collect::<Vec<_>>());
}

#[test]
fn a_normalizer_keeps_offsets_in_the_original_text() {
    let text = edited(|tokenizer| tokenizer["normalizer"] = json!({"type": "NFC"}));
    let original = "cafe\u{301} 1";
    let encoded = text.encode(original, false).unwrap();
    assert_eq!(text.decode(&encoded.ids, false).unwrap(), "café 1");
    assert_eq!(encoded.offsets.last().unwrap()[1], original.len());
    let starts: Vec<_> = encoded.offsets.iter().map(|[start, _]| *start).collect();
    assert!(
        starts.is_sorted() && starts.contains(&3),
        "the accented letter begins where the text has it: {starts:?}"
    );
}

#[test]
fn sentencepiece_offsets() {
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": null, "post_processor": null,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "merges": [["▁", "a"]],
            "vocab": {"<unk>": 0, "▁": 1, "a": 2, "▁a": 3, "<0xC3>": 4, "<0xA9>": 5}},
    });
    let dir = checkpoint(&[("tokenizer.json", &tokenizer.to_string())]);
    let encoded = TextProcessor::load(dir.path()).unwrap().encode("a aé", false).unwrap();
    assert_eq!(encoded.ids, [3, 3, 4, 5]);
    assert_eq!(encoded.offsets, [[0, 1], [1, 3], [3, 4], [4, 5]]);
}

#[test]
fn files_missing_or_broken() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(TextProcessor::load(dir.path()), Err(TextError::Missing("tokenizer.json"))));
    let broken = |file: &'static str, text| match TextProcessor::load(checkpoint(&[(file, text)]).path()) {
        Err(TextError::File { file: named, .. }) => assert_eq!(named, file),
        _ => panic!("{file} was taken"),
    };
    broken("tokenizer.json", "{\"version\": \"1.0\"");
    broken("tokenizer.json", "{}");
    broken("tokenizer_config.json", "[]");
    broken("chat_template.json", "x");
    let none = TextProcessor::load(checkpoint(&[]).path()).unwrap();
    assert!(matches!(none.render(&chat(USER)), Err(TextError::Missing("chat template"))));
}

#[test]
fn template_is_found_in_every_layout() {
    let found = |files: &[(&str, &str)]| {
        TextProcessor::load(checkpoint(files).path()).unwrap().render(&chat(USER)).unwrap()
    };
    let in_config = ("tokenizer_config.json", r#"{"chat_template": "config"}"#);
    let named = r#"{"chat_template": [{"name": "tool_use", "template": "tool"}, {"name": "default", "template": "named"}]}"#;
    assert_eq!(found(&[in_config]), "config");
    assert_eq!(found(&[("tokenizer_config.json", named)]), "named");
    assert_eq!(found(&[("chat_template.jinja", "file\n"), in_config]), "file");
    assert_eq!(found(&[("chat_template.json", r#"{"chat_template": "json"}"#)]), "json");
}

// The expected strings below agree with jinja2's ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).

#[test]
fn whitespace_and_special_tokens() {
    let template = "\
{{ bos_token }}
    {% for m in messages %}
  [{{ m.role | upper }}] {{ m['content'].strip() }}
    {%- if not loop.last %}, {% endif %}
    {% endfor %}
{{ eos_token }}{{ pad_token }}|{{ true }} {{ none }} {{ tools is none }}
";
    let out = render(template, &[("user", " a "), ("assistant", "<b>&")]);
    assert_eq!(out, "<s>\n  [USER] a,   [ASSISTANT] <b>&<|im_end|>|True None True");
}

#[test]
fn default_system_prompt_and_string_building() {
    let template = "\
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = 'Be ' ~ 'kind.' %}
    {%- set rest = messages %}
{%- endif %}
{{- '<|im_start|>system\\n' + system + '<|im_end|>\\n' }}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate: ' + message.role) }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}";
    let tail = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(render(template, USER), format!("<|im_start|>system\nBe kind.<|im_end|>\n{tail}"));
    let turns = [("system", " S\n"), ("user", "hi")];
    assert_eq!(render(template, &turns), format!("<|im_start|>system\nS<|im_end|>\n{tail}"));
    let twice = [("user", "a"), ("user", "b")];
    assert_eq!(refusal(template, &twice), "Roles must alternate: user");
}

#[test]
fn thinking_is_cut_from_earlier_turns() {
    let template = "\
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == 'user' and not (message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.reasoning_content is string %}
        {{- raise_exception('unexpected') }}
    {%- elif '</think>' in content %}
        {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- if loop.index0 > ns.last %}
            {{- '[' + thought.strip('\\n') + ']' }}
        {%- endif %}
    {%- endif %}
    {{- message.role ~ ':' ~ content ~ ';' }}
    {%- if message.tool_calls %}{{- 'tools' }}{%- endif %}
{%- endfor %}
{%- if enable_thinking is defined and enable_thinking is false %}no{% endif %}";
    let turns = [
        ("user", "q"),
        ("assistant", "<think>\nold\n</think>\n\nA"),
        ("user", "r"),
        ("assistant", "<think>\nnew\n</think>\n\nB"),
        ("user", "<tool>x</tool>"),
    ];
    assert_eq!(render(template, &turns), "user:q;assistant:A;user:r;[new]assistant:B;user:<tool>x</tool>;");
}

#[test]
fn tojson_writes_as_python_does() {
    let template = "{{ messages[0] | tojson }}|{{ messages | tojson(indent=2) }}|{{ [1, 1.0, none, true, 'é'] | tojson }}";
    let out = render(template, &[("user", "<a> & 'b' \"é\"\n")]);
    let content = r#"<a> & 'b' \"é\"\n"#;
    assert_eq!(
        out,
        format!(
            "{{\"role\": \"user\", \"content\": \"{content}\"}}|[\n  {{\n    \"role\": \"user\",\n    \"content\": \
             \"{content}\"\n  }}\n]|[1, 1.0, null, true, \"é\"]"
        )
    );
}

#[test]
fn python_methods_macros_and_tests() {
    assert_eq!(
        render("{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}", USER),
        "role=user;content=hi;"
    );
    assert_eq!(render("{{ messages[0].get('name', 'x') }}{{ 'name' in messages[0] }}", USER), "xFalse");
    assert_eq!(
        render("{% macro m(x, y='!') %}<{{ x }}{{ y }}>{% endmacro %}{{ m(messages[0].content) }}", USER),
        "<hi!>"
    );
    let select =
        "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(',') }}";
    assert_eq!(render(select, &[("user", "a"), ("assistant", "b"), ("user", "c")]), "a,c");
    assert_eq!(render("{{ messages[0].content is mapping }}{{ messages is iterable }}", USER), "FalseTrue");
    assert_eq!(render("{{ strftime_now('%Y') | length }}", USER), "4");
}

#[test]
fn generation_tags_print_nothing() {
    let template = "\
{% for m in messages %}
{% if m.role == 'assistant' %}
{% generation %}
{{ m.content }}
{% endgeneration %}
{%- else -%}
    {{ m.content }}
{% endif %}
{% endfor %}
{%- generation -%} x {%- endgeneration -%}";
    assert_eq!(render(template, &[("user", "q"), ("assistant", "a")]), "q\na\nx");
}

#[test]
fn failing_templates_say_why() {
    assert_eq!(refusal("{{ raise_exception('No tools here') }}", USER), "No tools here");
    for template in
        ["{% for %}", "{{ messages[0].x.y }}", "{{ 1 + 'a' }}", "{{ nothing() }}", "{{ 'a' | no_filter }}"]
    {
        assert!(!refusal(template, USER).is_empty(), "{template}");
    }
    // Recursion without an end is an error and not a stack overflow.
    assert!(!refusal("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", USER).is_empty());
}

#[test]
fn loops_may_be_left_early() {
    let template = "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}\
        {% if loop.index0 == 1 %}{% break %}{% endif %}{% endfor %}";
    assert_eq!(render(template, &[("system", "s"), ("user", "a"), ("user", "b")]), "a");
}

#[test]
fn a_template_without_end_is_stopped() {
    let template = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}\
        {% endfor %}{% endfor %}";
    let began = std::time::Instant::now();
    assert!(refusal(template, USER).contains("fuel"));
    assert!(began.elapsed().as_secs() < 60);
}

#[test]
fn a_long_conversation_does_not_run_out() {
    let template = "{% for m in messages %}{% for other in messages %}{% if other.role == m.role %}{% endif %}{% endfor %}\
        {{ m.content }}{% endfor %}";
    assert_eq!(render(template, &[("user", "x"); 1000]), "x".repeat(1000));
}

#[test]
fn a_panic_inside_the_tokenizer_is_an_error() {
    // Oniguruma gives up on this pattern's backtracking, and its wrapper panics.
    let text = edited(|tokenizer| {
        tokenizer["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "(?:a|a|aa)+$"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
    });
    assert!(text.encode("aaa", false).is_ok());
    let stuck = format!("{}c", "a".repeat(60));
    assert!(matches!(text.encode(&stuck, false), Err(TextError::Tokenize(_))));
    assert!(text.encode("aaa", false).is_ok());
}

#[test]
fn many_threads_share_one_processor() {
    let expected = QWEN2.encode("Chidi has 44 pens", false).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                (0..50).for_each(|_| assert_eq!(QWEN2.encode("Chidi has 44 pens", false).unwrap(), expected))
            });
        }
    });
}

/// Any text, and text that is likely to meet special tokens, runs of space and characters of many bytes.
fn any_text() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        any::<String>(),
        "[ \\t\\n]{0,6}",
        "[a-zA-Z0-9 .,']{0,20}",
        Just("<|im_end|>".to_owned()),
        Just("👩‍👩‍👧 e\u{301} 日本".to_owned()),
    ];
    proptest::collection::vec(pieces, 0..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn offsets_partition_the_text(text in any_text()) {
        let encoded = QWEN2.encode(&text, false).unwrap();
        prop_assert_eq!(encoded.ids.len(), encoded.offsets.len());
        let mut at = 0;
        for [start, end] in encoded.offsets {
            prop_assert_eq!(start, at);
            prop_assert!(end > start);
            at = end;
        }
        prop_assert_eq!(at, text.len());
    }

    #[test]
    fn decode_undoes_encode(text in any_text()) {
        let ids = QWEN2.encode(&text, false).unwrap().ids;
        prop_assert_eq!(QWEN2.decode(&ids, false).unwrap(), text);
    }

    #[test]
    fn any_ids_decode(ids in proptest::collection::vec(any::<u32>().prop_map(|id| id % 600), 0..40)) {
        prop_assert!(QWEN2.decode(&ids, false).is_ok());
    }
}
