"""A policy's tokens as byte ranges of its text."""

from __future__ import annotations

import random

import numpy as np
import pytest

from qrm_client import Client, Input, token_spans
from qrm_client.adapters.align import align

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["the", "answer", "is", "12", "naïve", "日本語", "🙂", "👩‍👩‍👧", "\n", "€3.50", "####", "ß"]


def texts(n: int) -> list[str]:
    rng = random.Random(1)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(n)]


@pytest.fixture(scope="module")
def policy():
    """GPT-2's kind, trained on little, so that characters fall apart into bytes."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=["<|end|>", "<|turn|>"], initial_alphabet=alphabet)
    backend.train_from_iterator([" ".join(WORDS[:4])] * 9, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


def test_ranges_cover_the_text(policy):
    for text in texts(300):
        ids = policy(text)["input_ids"] + [policy.eos_token_id]
        made, spans = token_spans(policy, ids)
        assert made == text + "<|end|>" and len(spans) == len(ids)
        assert spans[0][0] == 0 and spans[-1][1] == len(made.encode())
        assert all(a[1] == b[0] for a, b in zip(spans, spans[1:]))


def test_bytes_that_are_no_text(policy):
    rng = random.Random(2)
    for _ in range(300):
        ids = [rng.randrange(len(policy)) for _ in range(rng.randint(1, 20))]
        text, spans = token_spans(policy, ids)
        assert text == policy.decode(ids, clean_up_tokenization_spaces=False)
        assert spans[0][0] == 0 and spans[-1][1] == len(text.encode())
        assert all(a[0] <= a[1] == b[0] for a, b in zip(spans, spans[1:]))


def test_the_reward_model_reads_the_prompt_and_not_the_policys_template(policy):
    rendered, answer = policy("<s>user: naïve?")["input_ids"], policy("the answer")["input_ids"]
    chat = [{"role": "user", "content": "naïve?", "more": 1}]
    assert align(chat, rendered, answer, policy, "spans").input.prompt == [{"role": "user", "content": "naïve?"}]
    assert align("naïve?", rendered, answer, policy, "spans").input.prompt == "naïve?"
    image = [{"role": "user", "content": [{"type": "image"}]}]
    for absent in (None, "", [], image, [{"role": "assistant", "tool_calls": []}]):
        assert align(absent, rendered, answer, policy, "spans").input.prompt == "<s>user: naïve?"
    assert align(chat, rendered, answer, None, "ids") == (Input.one(rendered, answer), False)


def test_the_token_that_ends_an_answer_gets_the_reward_models_own_end(server, policy):
    answer, turn = policy("the answer is 12")["input_ids"], policy.convert_tokens_to_ids("<|turn|>")
    with Client(server.url) as client:
        ended = client.score([Input.one("Q: ", "the answer is 12")], append_eos=True)[0].rewards
        at_once = client.score([Input.one("Q: ", "")], append_eos=True)[0].rewards
        for end in (policy.eos_token_id, turn):
            one, append_eos = align("Q: ", None, [*answer, end], policy, "spans")
            assert append_eos and one.responses == ["the answer is 12"] and one.spans[-1] == (16, 16)
            rewards = client.score([one], append_eos=True)[0].rewards
            assert len(rewards) == len(answer) + 1 and rewards[-1] == ended[-1]
            one, append_eos = align("Q: ", None, [end], policy, "spans")
            assert append_eos and client.score([one], append_eos=True)[0].rewards.tolist() == at_once.tolist()
        one, append_eos = align("Q: ", None, answer, policy, "spans")  # cut before its end
        assert not append_eos and one.spans[-1][1] == 16 and one.spans[-1] != (16, 16)


def test_totals_are_kept(server, policy):
    rows, plain = [], []
    for text in texts(200):
        made, spans = token_spans(policy, policy(text)["input_ids"])
        rows.append(Input.one("Q: ", made, spans=spans))
        plain.append(Input.one("Q: ", made))
    with Client(server.url) as client:
        for of_spans, of_tokens, row in zip(client.score(rows), client.score(plain), rows):
            assert of_spans.length == len(row.spans)
            np.testing.assert_allclose(of_spans.rewards.sum(dtype=np.float64), of_tokens.rewards.sum(dtype=np.float64), rtol=1e-5, atol=1e-4)


def test_another_kind_of_tokenizer(tmp_path):
    """WordPiece knows nothing of bytes: it is decoded."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "two": 1, "and": 2, "naïve": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    text, spans = token_spans(tokenizer, [1, 2, 3])
    assert text == "two and naïve"
    assert [text.encode()[a:b].decode() for a, b in spans] == ["two", " and", " naïve"]


@pytest.fixture(scope="module")
def llama():
    """Llama 2's kind: a space is ▁, the first of a text goes, and what is not in the vocabulary is its bytes."""
    words = ["▁the", "▁answer", "▁", "is", "▁na", "ï", "ve", "\n", "</s>"]
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {word: 256 + at for at, word in enumerate(words)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], byte_fallback=True, fuse_unk=True))
    decoders = tokenizers.decoders
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def test_bytes_of_another_kind_of_tokenizer(llama):
    words = [*range(256, 265), *([byte] for byte in b"a "), *(list(c.encode()) for c in "日🙂ß")]
    rng = random.Random(3)
    for _ in range(300):
        ids = [id for word in rng.choices(words, k=rng.randint(1, 20)) for id in (word if isinstance(word, list) else [word])]
        text, spans = token_spans(llama, ids)
        assert text == llama.decode(ids, clean_up_tokenization_spaces=False)
        assert spans[0][0] == 0 and spans[-1][1] == len(text.encode()) and len(spans) == len(ids)
        assert all(a[0] <= a[1] == b[0] for a, b in zip(spans, spans[1:]))
    sun = list("日".encode())
    text, spans = token_spans(llama, [256, *sun, 263])
    assert [text.encode()[a:b].decode() for a, b in spans] == ["the", "", "", "日", "\n"]
    made, spans = token_spans(llama, [*sun, *sun])
    assert made == "日日" and [b for _, b in spans] == [0, 0, 3, 3, 3, 6]
    # The decoder takes 日 back when the byte after it turns out to be none of a character.
    with pytest.raises(ValueError, match="changes text"):
        token_spans(llama, [256, *sun, 0xFF, 263])


def test_a_token_that_ends_within_a_character_keeps_its_beginning():
    class Bytes:
        """Of tokens that are any bytes, as tiktoken's."""

        tokens = [b"a", b" \xe4\xbd", b"\xa0", b"b \xe4", b"\xbd\xa0c"]

        def decode(self, ids, **_):
            return b"".join(self.tokens[id] for id in ids).decode(errors="replace")

    text, spans = token_spans(Bytes(), [0, 1, 2, 3, 4, 0])
    assert text == "a 你b 你ca"
    assert [text.encode()[a:b].decode() for a, b in spans] == ["a", " ", "你", "b ", "你c", "a"]


def test_a_long_text_is_decoded_in_pieces(llama):
    decoded = 0

    class Counted:
        def decode(self, ids, **options):
            nonlocal decoded
            decoded += len(ids)
            return llama.decode(ids, **options)

    rng = random.Random(4)
    ids = rng.choices(range(256, 265), k=2000)
    text, _ = token_spans(Counted(), ids)
    assert text == llama.decode(ids, clean_up_tokenization_spaces=False) and decoded < 10 * len(ids)
