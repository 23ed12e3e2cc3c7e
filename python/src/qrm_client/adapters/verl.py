"""verl: a reward function for whole answers, and an agent-loop manager that delivers rewards per token.

Whole answers (any advantage estimator)::

    reward.custom_reward_function.path=pkg://qrm_client.adapters.verl
    reward.custom_reward_function.name=compute_score

Per token (``gae``, ``reinforce_plus_plus``: estimators that read every token's reward and have a γ)::

    trainer.use_v1=False
    algorithm.gamma=0.0
    algorithm.lam=0.0
    actor_rollout_ref.rollout.agent.agent_loop_manager_class=qrm_client.adapters.verl.TokenRewardManager

With γ = 0 a token is credited with its own reward, as a Q-RM's wants it, which is an advantage: the advantage is then
r_t − V(s_t), whitened. Outcome and step rewards are for what came before them too: there leave verl's γ and λ.

This needs verl's legacy trainer. The V1 trainer, its default, is not supported: there a manager returns nothing and its
workers put every answer into a TransferQueue, where this one would never see them.

Environment: ``QRM_URL``, ``QRM_KEY``, ``QRM_MODEL``, ``QRM_REWARD`` (default: the server's), ``QRM_ALIGNMENT`` (``ids`` or
``spans``), ``QRM_OUTCOME_WEIGHT`` (of the score that verl's own reward function put at the last token, which with γ = 0 is
that token's alone; default 0), ``QRM_APPEND_EOS`` (1: whole answers, which are text here, are scored with their end of
sequence, as outcome and step models want it). By ``spans`` the reward model reads the rows' ``raw_prompt`` through its own
template. Written for verl 0.9.
"""

from __future__ import annotations

import os
from functools import lru_cache

import torch

from .. import AsyncClient, Client, Input
from . import environment
from .align import align
from .messages import is_text, prompt_of
from .rollout import score_aligned

try:  # the manager needs ray and verl's rollout; the reward function does not
    from verl.experimental.agent_loop.agent_loop import AgentLoopManager
    from verl.utils.ray_utils import auto_await
except ImportError:
    AgentLoopManager = object

    def auto_await(function):
        """There is no verl whose trainer would call it."""
        return function


@lru_cache(maxsize=1)
def _async_client() -> AsyncClient:
    return AsyncClient(**environment.client_options(), append_eos=os.environ.get("QRM_APPEND_EOS") == "1")


async def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    """verl's ``custom_reward_function``: one number for the decoded answer. Its prompt are the messages that the policy got,
    where verl passes them on (``raw_prompt``), else ``extra_info``'s ``prompt`` (text or messages) or its ``question``, which
    is a user's message. Calls of one worker go together. An empty answer (the policy ended at once) is scored with its end of
    sequence whatever ``QRM_APPEND_EOS`` says: it has no other token, and verl wants a number."""
    prompt = prompt_of(_asked(extra_info or {}))
    if solution_str:
        scored = await _async_client().reward(prompt, solution_str)
    else:
        [scored] = await _async_client().score([Input.one(prompt, "")], append_eos=True)
    return {"score": scored.answer_score}


def _asked(extra_info):
    for name in ("raw_prompt", "prompt", "question"):
        if is_text(prompt := extra_info.get(name)):
            bare = name == "question" and isinstance(prompt, str)
            return [{"role": "user", "content": prompt}] if bare else prompt
    raise KeyError("extra_info has no text as 'raw_prompt', 'prompt' or 'question': the reward model has to see what was asked")


def token_rewards(batch, client: Client, tokenizer=None, alignment: str = "ids", raw_prompts=None) -> torch.Tensor:
    """``(B, response_length)`` float32 for a ``DataProto``'s tensors: the server's reward at every token that the policy
    wrote (``response_mask``), zero elsewhere. ``raw_prompts`` are the rows' messages."""
    prompts, responses, attention = batch["prompts"], batch["responses"], batch["attention_mask"].bool()
    width = prompts.size(1)
    written = batch["response_mask"] if "response_mask" in batch.keys() else attention[:, width:]
    own = [None] * len(prompts) if raw_prompts is None else raw_prompts
    asked, places = [], []
    for row, (prompt, response, mask) in enumerate(zip(prompts, responses, attention)):
        ids = response[mask[width:]].tolist()
        if ids:
            asked.append(align(own[row], prompt[mask[:width]].tolist(), ids, tokenizer, alignment))
            places.append((row, mask[width:]))
    out = torch.zeros(responses.shape, dtype=torch.float32)
    for (row, mask), scored in zip(places, score_aligned(client, asked)):
        out[row][mask.cpu()] = torch.from_numpy(scored.rewards)
    return out.to(responses.device) * written


class TokenRewardManager(AgentLoopManager):
    """Fills ``rm_scores`` once all answers of a step are there: for verl's legacy trainer (``trainer.use_v1=False``)."""

    @auto_await  # as verl's own: its trainer calls it and does not await
    async def generate_sequences(self, prompts):
        output = await super().generate_sequences(prompts)
        alignment, raw = environment.alignment(), output.non_tensor_batch.get("raw_prompt")
        tokenizer = self._tokenizer() if alignment == "spans" else None
        with Client(**environment.client_options()) as client:
            rewards = token_rewards(output.batch, client, tokenizer, alignment, raw)
        weight = float(os.environ.get("QRM_OUTCOME_WEIGHT", "0"))
        if weight and "rm_scores" in output.batch.keys():
            rewards = rewards + weight * output.batch["rm_scores"]
        output.batch["rm_scores"] = rewards
        output.meta_info.setdefault("reward_extra_keys", [])
        return output

    def _tokenizer(self):
        from transformers import AutoTokenizer

        model = self.model_config
        return AutoTokenizer.from_pretrained(model.get("tokenizer_path") or model.path)
