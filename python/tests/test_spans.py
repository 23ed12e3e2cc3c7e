"""A policy's tokens as byte ranges of its text."""

from __future__ import annotations

import random

import numpy as np
import pytest

from qrm_client import Client, Input, token_spans

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
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet)
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
