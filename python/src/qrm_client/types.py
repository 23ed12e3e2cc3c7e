"""What goes in and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: Text, or token ids of the reward model's own tokenizer.
TextOrIds = str | Sequence[int]


@dataclass(frozen=True)
class Input:
    """A prompt with its response, or with a group of responses that share it.

    ``prompt`` is text, token ids, or a list of chat messages (``{"role", "content"}``), which go through the checkpoint's
    chat template. ``spans`` are byte ranges of the one response's UTF-8 text, for a policy with another tokenizer: see
    :func:`qrm_client.token_spans`.
    """

    prompt: TextOrIds | Sequence[Mapping[str, str]]
    responses: Sequence[TextOrIds]
    id: str | None = None
    spans: Sequence[tuple[int, int]] | None = None
    add_special_tokens: bool = False
    #: Where the response's steps end, for the reward ``step``: bytes of a text, tokens of ids.
    step_ends: Sequence[int] | None = None

    @classmethod
    def one(cls, prompt, response: TextOrIds, **rest: Any) -> Input:
        """A prompt with one response."""
        return cls(prompt=prompt, responses=[response], **rest)

    @property
    def is_chat(self) -> bool:
        """Whether the prompt is a list of messages."""
        return not isinstance(self.prompt, str) and len(self.prompt) > 0 and isinstance(self.prompt[0], Mapping)


@dataclass(frozen=True)
class Trajectory:
    """One scored response."""

    #: Place among the answers, and of its input in the request.
    index: int
    input: int
    #: ``[T]`` float32: one per response token, or per span; all finite.
    rewards: np.ndarray
    #: Mean of the rewards.
    score: float
    sum: float
    id: str | None = None
    token_ids: np.ndarray | None = None
    tokens: list[str] | None = None
    #: ``[T, 2]`` byte ranges of the response text.
    offsets: np.ndarray | None = None
    #: ``[T]`` float32 each, where they were asked for.
    logit: np.ndarray | None = None
    logsumexp: np.ndarray | None = None
    max: np.ndarray | None = None
    entropy: np.ndarray | None = None
    #: Name of the reward; none in a stream, which says it last.
    reward: str | None = None

    @property
    def length(self) -> int:
        return len(self.rewards)

    @property
    def answer_score(self) -> float:
        """One number for the whole answer, as its kind of model was trained to compare answers, and as the server's own
        whole-answer routes have it: an outcome, the worst step, the sum of ``dpo``'s log ratios, else the mean. A streamed
        trajectory does not know which it is."""
        match self.reward:
            case None:
                raise ValueError("a streamed trajectory has no reward's name to tell: use score (the mean), sum or rewards")
            case "outcome" | "dpo":
                return self.sum
            case "step":  # a token that ends none has 0; where none ends, none is wrong
                return float(self.rewards[self.rewards != 0].min()) if self.rewards.any() else 1.0
            case _:
                return self.score


@dataclass(frozen=True)
class Rewards(Sequence):
    """The answer to a request: its trajectories in order."""

    data: list[Trajectory]
    model: str
    #: Of the checkpoint's content; another after a reload.
    model_version: str
    #: Name of the reward.
    reward: str
    #: Mean and standard deviation over all response tokens, before ``normalize`` and ``scale``.
    mean: float
    std: float
    usage: Mapping[str, int] = field(default_factory=dict)
    #: Milliseconds.
    timing: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, at):
        return self.data[at]

    def padded(self, length: int | None = None, value: float = 0.0) -> np.ndarray:
        """``[B, length]`` float32: the rewards, padded on the right; ``length`` defaults to the longest."""
        length = max((t.length for t in self.data), default=0) if length is None else length
        out = np.full((len(self.data), length), value, dtype=np.float32)
        for row, trajectory in zip(out, self.data):
            row[: trajectory.length] = trajectory.rewards[:length]
        return out


class RewardError(Exception):
    """The server's refusal, or none at all."""

    def __init__(self, message: str, *, status: int | str | None = None, code: str = "", param: str | None = None,
                 retry_after: float | None = None):
        where = f" ({param})" if param else ""
        super().__init__(f"{message}{where}")
        #: HTTP status, or the name of gRPC's; none where no answer came.
        self.status = status
        #: The exact case: ``response_empty``, ``queue_full``, …
        self.code = code
        #: The request's field at fault.
        self.param = param
        #: Seconds.
        self.retry_after = retry_after


class InvalidRequest(RewardError):
    """The request cannot be served as it is: another try would end the same."""


class Unauthorized(RewardError):
    """A key is missing or wrong."""


class Unavailable(RewardError):
    """Too much load, a server that is starting or stopping, or none: worth another try."""
