"""The two ways that a policy's tokens and the rewards stay together."""

from __future__ import annotations

from collections.abc import Sequence

from ..spans import token_spans
from ..types import Input


def align(prompt, prompt_ids: Sequence[int] | None, response_ids: Sequence[int], tokenizer, alignment: str) -> Input:
    """The input that gets one reward for each of ``response_ids``.

    By ``ids`` it is made of ids alone (``tokenizer`` is not needed). By ``spans`` the prompt is ``prompt`` (text, or chat
    messages for the reward model's own template) or, without one, the decoded ``prompt_ids``; the response is the text of
    ``response_ids`` with their ranges.
    """
    if alignment == "ids":
        return Input.one(list(prompt_ids), list(response_ids))
    if alignment != "spans":
        raise ValueError(f"alignment is {alignment!r}, neither 'ids' nor 'spans'")
    text, spans = token_spans(tokenizer, response_ids)
    if prompt is None:
        prompt = token_spans(tokenizer, prompt_ids)[0]
    return Input.one(prompt, text, spans=spans)
