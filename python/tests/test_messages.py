"""Chat messages of frameworks, with tools and without."""

from __future__ import annotations

from qrm_client.adapters.messages import final_text, is_text, prompt_of

CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 3}}}]}


def test_calls_and_results_are_text():
    said = prompt_of([CALL, {"role": "tool", "name": "add", "content": "7"}, {"role": "tool", "name": "find", "content": ["a", 2]}])
    call = '{"name": "add", "arguments": {"a": 3}}'
    assert said == [{"role": "assistant", "content": call}, {"role": "tool", "content": "7"}, {"role": "tool", "content": '["a", 2]'}]
    for content, text in ((None, call), ("Let me add.", f"Let me add.\n{call}")):
        assert prompt_of([{**CALL, "content": content}]) == [{"role": "assistant", "content": text}]
    assert prompt_of("text") == "text"


def test_what_was_said_last():
    assert final_text("7") == "7" and final_text([CALL, {"role": "tool", "content": "7"}, {"role": "assistant", "content": "7!"}]) == "7!"
    assert final_text([{"role": "assistant", "content": ""}]) == ""
    assert final_text([{**CALL, "content": "Let me add."}]) == "Let me add."
    for unsaid in (CALL, {**CALL, "content": None}, {"role": "tool", "content": "7"}, {"role": "assistant", "content": None}):
        assert final_text([unsaid]) is None


def test_what_is_text():
    assert is_text("a") and is_text([{"role": "user", "content": ""}])
    assert not any(is_text(prompt) for prompt in (None, "", [], [CALL | {"content": None}], [{"role": "user", "content": [{"type": "image"}]}]))
