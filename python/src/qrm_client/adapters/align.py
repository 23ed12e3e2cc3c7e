"""The two ways that a policy's tokens and the rewards stay together."""

from __future__ import annotations

from collections.abc import Sequence

from ..spans import token_spans
from ..types import Input


def prompt_of(prompt) -> str | list[dict[str, str]]:
    """A framework's prompt as the server takes it: text, or chat messages."""
    return prompt if isinstance(prompt, str) else [{"role": m["role"], "content": m["content"]} for m in prompt]


def _is_text(prompt) -> bool:
    """Whether there is a prompt that is nothing but text (a message may hold images, or a tool's call instead)."""
    if prompt is None or isinstance(prompt, str):
        return bool(prompt)
    return len(prompt) > 0 and all(isinstance(m.get("content"), str) for m in prompt)


def align(prompt, prompt_ids: Sequence[int] | None, response_ids: Sequence[int], tokenizer, alignment: str) -> Input:
    """The input that gets one reward for each of ``response_ids``.

    By ``ids`` it is made of ids alone (``tokenizer`` is not needed). By ``spans`` the response is the text of ``response_ids``
    with their ranges, and the prompt is ``prompt``, the framework's own: its text as it is, or its messages through the reward
    model's template. Without one it is the decoded ``prompt_ids``: the reward model then reads the policy's template as text.
    """
    if alignment == "ids":
        return Input.one(list(prompt_ids), list(response_ids))
    if alignment != "spans":
        raise ValueError(f"alignment is {alignment!r}, neither 'ids' nor 'spans'")
    text, spans = token_spans(tokenizer, response_ids)
    prompt = prompt_of(prompt) if _is_text(prompt) else token_spans(tokenizer, prompt_ids)[0]
    return Input.one(prompt, text, spans=spans)
