"""The two ways that a policy's tokens and the rewards stay together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..spans import token_spans
from ..types import Input
from .messages import is_text, prompt_of


class Aligned(NamedTuple):
    """What to ask, to get one reward for each of a policy's tokens."""

    input: Input
    #: Whether the reward model's own end of sequence belongs to it: the request's option of that name.
    append_eos: bool


def align(prompt, prompt_ids: Sequence[int] | None, response_ids: Sequence[int], tokenizer, alignment: str) -> Aligned:
    """What gets one reward for each of ``response_ids``.

    By ``ids`` it is made of ids alone (``tokenizer`` is not needed). By ``spans`` the response is the text of ``response_ids``
    with their ranges, and the prompt is ``prompt``, the framework's own: its text as it is, or its messages through the reward
    model's template. Without one it is the decoded ``prompt_ids``: the reward model then reads the policy's template as text.

    The special token that ended the answer would be ordinary text to a reward model that does not have it. It is left out,
    with an empty range at the end: what the server puts there is its own model's end of sequence, and that one's reward.
    """
    if alignment == "ids":
        return Aligned(Input.one(list(prompt_ids), list(response_ids)), append_eos=False)
    if alignment != "spans":
        raise ValueError(f"alignment is {alignment!r}, neither 'ids' nor 'spans'")
    ends = _is_special(tokenizer, response_ids[-1])
    text, spans = token_spans(tokenizer, response_ids[:-1] if ends else response_ids)
    if ends:
        length = len(text.encode())
        spans.append((length, length))
    prompt = prompt_of(prompt) if is_text(prompt) else token_spans(tokenizer, prompt_ids)[0]
    return Aligned(Input.one(prompt, text, spans=spans), append_eos=ends)


def _is_special(tokenizer, id: int) -> bool:
    """Not the end of sequence alone: many a chat model ends its turn with another special token."""
    token = tokenizer.added_tokens_decoder.get(int(id))
    return id == tokenizer.eos_token_id or (token is not None and token.special)
