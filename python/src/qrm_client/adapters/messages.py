"""A framework's chat messages as the server takes them: a role and a text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence


def prompt_of(prompt) -> str | list[dict[str, str]]:
    """A framework's prompt as the server takes it: text, or chat messages."""
    return prompt if isinstance(prompt, str) else [{"role": m["role"], "content": _content(m)} for m in prompt]


def is_text(prompt) -> bool:
    """Whether there is a prompt that is nothing but text (a message may hold images, or a tool's call instead)."""
    if prompt is None or isinstance(prompt, str):
        return bool(prompt)
    return len(prompt) > 0 and all(isinstance(m.get("content"), str) for m in prompt)


def final_text(completion: str | Sequence[Mapping]) -> str | None:
    """What the policy said last; none where it ended with a tool instead."""
    if isinstance(completion, str):
        return completion
    last = completion[-1]
    text = last.get("content") if last.get("role") == "assistant" else None
    return text if text or not last.get("tool_calls") else None


def _content(message: Mapping):
    """Its text; a tool's result that is none, and the calls that ask for results, as JSON."""
    content = message.get("content")
    if message["role"] == "tool" and not isinstance(content, str):
        content = json.dumps(content)
    calls = [json.dumps(call.get("function", call)) for call in message.get("tool_calls") or ()]
    return "\n".join(part for part in (content, *calls) if part) if calls else content
