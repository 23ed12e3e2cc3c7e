"""JSON of the native route, there and back. Arrays come as base64 of little-endian f32: smaller, and exact."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .types import Input, InvalidRequest, Rewards, RewardError, Trajectory, Unauthorized, Unavailable

FLOATS = ("logit", "logsumexp", "max", "entropy")


def request(inputs: Iterable[Input], options: Mapping[str, Any]) -> dict[str, Any]:
    """The body of ``POST /v1/rewards``; ``options`` are its other fields."""
    return {"inputs": [_input(one) for one in inputs], "encoding_format": "base64", **options}


def _content(content):
    """Text, or ids as plain integers (tensors and arrays iterate as others)."""
    return content if isinstance(content, str) else [int(id) for id in content]


def _input(one: Input) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if one.is_chat:
        out["messages"] = [dict(message) for message in one.prompt]
    else:
        out["prompt"] = _content(one.prompt)
    if one.id is not None:
        out["id"] = one.id
    if one.add_special_tokens:
        out["add_special_tokens"] = True
    if one.spans is not None:
        out["spans"] = [[int(begin), int(end)] for begin, end in one.spans]
    if one.step_ends is not None:
        out["step_ends"] = [int(end) for end in one.step_ends]
    if len(one.responses) == 1:
        out["response"] = _content(one.responses[0])
    else:
        out["responses"] = [_content(response) for response in one.responses]
    return out


def _floats(value) -> np.ndarray | None:
    if value is None:
        return None
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value), dtype="<f4").astype(np.float32)
    return np.asarray(value, dtype=np.float32)


def trajectory(datum: Mapping[str, Any], reward: str | None = None) -> Trajectory:
    """One entry of ``data``, of a reward of that name."""
    ids, offsets = datum.get("token_ids"), datum.get("offsets")
    return Trajectory(
        index=datum["index"],
        input=datum["input"],
        rewards=_floats(datum["rewards"]),
        score=datum["score"],
        sum=datum["sum"],
        id=datum.get("id"),
        token_ids=None if ids is None else np.asarray(ids, dtype=np.int64),
        tokens=datum.get("tokens"),
        offsets=None if offsets is None else np.asarray(offsets, dtype=np.int64).reshape(-1, 2),
        **{name: _floats(datum.get(name)) for name in FLOATS},
        reward=reward,
    )


def response(body: Mapping[str, Any]) -> Rewards:
    """The whole answer."""
    stats = body["stats"]
    return Rewards(
        data=[trajectory(datum, body["reward"]) for datum in body["data"]],
        model=body["model"],
        model_version=body["model_version"],
        reward=body["reward"],
        mean=stats["mean"],
        std=stats["std"],
        usage=body["usage"],
        timing=body["timing"],
    )


def error(status: int, body: Any, retry_after: str | None) -> RewardError:
    """The refusal that an answer is."""
    detail = body.get("error") if isinstance(body, Mapping) else None
    detail = detail if isinstance(detail, Mapping) else {"message": f"status {status}"}
    kind = Unauthorized if status in (401, 403) else Unavailable if status in (408, 429, 502, 503) else InvalidRequest
    if status >= 500 and kind is InvalidRequest:
        kind = RewardError
    wait = float(retry_after) if retry_after and retry_after.replace(".", "", 1).isdigit() else None
    return kind(detail.get("message", ""), status=status, code=detail.get("code", ""), param=detail.get("param"), retry_after=wait)
