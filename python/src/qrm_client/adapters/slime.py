"""slime: a custom reward that keeps the rewards of all tokens, and the advantage function that uses them.

    --custom-rm-path qrm_client.adapters.slime.reward --reward-key score
    --custom-advantage-function-path qrm_client.adapters.slime.advantages

The rewards travel from the rollout to the trainer in ``teacher_log_probs``: the one per-token field that slime carries
there and that a run without a teacher does not use. By ``spans`` the reward model reads the sample's prompt: messages
through its own template, text as it is (which is the policy's template where slime has applied it). Environment: ``QRM_URL``,
``QRM_KEY``, ``QRM_MODEL``, ``QRM_REWARD`` (default: the server's), ``QRM_ALIGNMENT`` (``ids`` or ``spans``),
``QRM_SEQUENCE_WEIGHT`` (of the sample's own reward, default 0), ``QRM_TOKEN_WEIGHT`` (default 1).
"""

from __future__ import annotations

import os
from functools import lru_cache

from .. import AsyncClient
from . import environment
from .align import align


@lru_cache(maxsize=2)
def _client(append_eos: bool) -> AsyncClient:
    """The option is of a request, and concurrent samples go together in one."""
    return AsyncClient(**environment.client_options(), append_eos=append_eos)


async def reward(args, sample, **_):
    """slime's ``--custom-rm-path``: of one sample. Its ids are prompt and response in one; concurrent samples go together."""
    tokens, length = list(sample.tokens), sample.response_length
    if not length:  # aborted before its first token: nothing to judge, and nothing that would learn from it
        sample.teacher_log_probs = []
        return {"score": 0.0, "sum": 0.0}
    alignment = environment.alignment()
    tokenizer = _tokenizer(args.hf_checkpoint) if alignment == "spans" else None
    one, append_eos = align(sample.prompt, tokens[:-length], tokens[-length:], tokenizer, alignment)
    scored = await _client(append_eos).reward(one.prompt, one.responses[0], spans=one.spans)
    sample.teacher_log_probs = scored.rewards.tolist()
    return {"score": scored.answer_score, "sum": scored.sum}


def advantages(args, rollout_data) -> None:
    """slime's ``--custom-advantage-function-path``: ``A_t = sequence_weight · R + token_weight · (r_t − μ)/σ``, μ and σ over
    the tokens that the policy wrote, of all ranks."""
    import torch

    sequence, token = (float(os.environ.get(f"QRM_{name}_WEIGHT", default)) for name, default in (("SEQUENCE", 0), ("TOKEN", 1)))
    rewards = [torch.as_tensor(r, dtype=torch.float32) for r in rollout_data["teacher_log_probs"]]
    mean, std = _moments(torch.cat(rewards).double(), torch.cat(_own_masks(args, rollout_data)).double())
    own = [sequence * float(r) + token * (t - mean) / std for r, t in zip(rollout_data["rewards"], rewards)]
    rollout_data["advantages"] = own
    rollout_data["returns"] = own


def _own_masks(args, rollout_data) -> list:
    """The loss masks of this rank's tokens: slime cuts the rewards for context parallelism, and leaves the masks whole."""
    from slime.backends.megatron_utils.cp_utils import slice_log_prob_with_cp

    masks, padded = rollout_data["loss_masks"], getattr(args, "qkv_format", "thd") == "bshd"
    layouts = [("bshd", length) for length in rollout_data["max_seq_lens"]] if padded else [()] * len(masks)
    rows = zip(masks, rollout_data["total_lengths"], rollout_data["response_lengths"], layouts)
    return [slice_log_prob_with_cp(mask, total, response, *layout) for mask, total, response, layout in rows]


def _moments(rewards, mask):
    """μ and σ. A rank that holds no token of any response asks as well: the others wait for it."""
    import torch
    from megatron.core import mpu

    sums = torch.stack([mask.sum(), (rewards * mask).sum(), (rewards.square() * mask).sum()])
    torch.distributed.all_reduce(sums, group=mpu.get_data_parallel_group(with_context_parallel=True))
    count, total, squares = sums
    mean = total / count.clamp(min=1)
    return mean, (squares / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt().clamp(min=1e-8)


@lru_cache(maxsize=1)
def _tokenizer(path: str):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)
