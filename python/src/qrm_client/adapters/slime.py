"""slime: a custom reward that keeps the rewards of all tokens, and the advantage function that uses them.

    --custom-rm-path qrm_client.adapters.slime.reward --reward-key score
    --custom-advantage-function-path qrm_client.adapters.slime.advantages

The rewards travel from the rollout to the trainer in ``teacher_log_probs``: the one per-token field that slime carries
there and that a run without a teacher does not use. By ``spans`` the reward model reads the sample's prompt: messages
through its own template, text as it is (which is the policy's template where slime has applied it). Environment: ``QRM_URL``,
``QRM_KEY``, ``QRM_ALIGNMENT`` (``ids`` or ``spans``), ``QRM_SEQUENCE_WEIGHT`` (of the sample's own reward, default 0),
``QRM_TOKEN_WEIGHT`` (default 1).
"""

from __future__ import annotations

import os
from functools import lru_cache

from .. import AsyncClient
from .align import align


@lru_cache(maxsize=1)
def _client() -> AsyncClient:
    return AsyncClient(os.environ.get("QRM_URL", "http://127.0.0.1:8080"), key=os.environ.get("QRM_KEY"))


async def reward(args, sample, **_):
    """slime's ``--custom-rm-path``: of one sample. Its ids are prompt and response in one; concurrent samples go together."""
    tokens, length = list(sample.tokens), sample.response_length
    if not length:  # aborted before its first token: nothing to judge, and nothing that would learn from it
        sample.teacher_log_probs = []
        return {"score": 0.0, "sum": 0.0}
    alignment = os.environ.get("QRM_ALIGNMENT", "ids")
    tokenizer = _tokenizer(args.hf_checkpoint) if alignment == "spans" else None
    one = align(sample.prompt, tokens[:-length], tokens[-length:], tokenizer, alignment)
    scored = await _client().reward(one.prompt, one.responses[0], spans=one.spans)
    sample.teacher_log_probs = scored.rewards.tolist()
    return {"score": scored.answer_score, "sum": scored.sum}


def advantages(args, rollout_data) -> None:
    """slime's ``--custom-advantage-function-path``: ``A_t = sequence_weight · R + token_weight · (r_t − μ)/σ``, μ and σ over
    the tokens of this rank's samples."""
    import torch

    sequence, token = (float(os.environ.get(f"QRM_{name}_WEIGHT", default)) for name, default in (("SEQUENCE", 0), ("TOKEN", 1)))
    rewards = [torch.as_tensor(r, dtype=torch.float32) for r in rollout_data["teacher_log_probs"]]
    every = torch.cat(rewards)
    mean, std = every.mean(), every.std(unbiased=False).clamp(min=1e-8)
    own = [sequence * float(r) + token * (t - mean) / std for r, t in zip(rollout_data["rewards"], rewards)]
    rollout_data["advantages"] = own
    rollout_data["returns"] = own


@lru_cache(maxsize=1)
def _tokenizer(path: str):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)
