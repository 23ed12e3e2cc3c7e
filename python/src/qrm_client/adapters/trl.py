"""TRL: a reward function for GRPO, and a GRPO trainer whose advantages are per token.

    from qrm_client import Client
    from qrm_client.adapters.trl import TokenGRPOTrainer, reward_function

    client = Client("http://rewards:8080")
    trainer = TokenGRPOTrainer(client=client, reward_funcs=reward_function(client), model=…, args=…, train_dataset=…)

Written for TRL 1.16: what it relies on are ``reward_funcs``, ``_generate_and_score_completions`` and that advantages may
be ``(B, T)``.
"""

from __future__ import annotations

import torch
from trl import GRPOTrainer

from .. import Client, Input
from .align import align
from .messages import final_text, prompt_of
from .rollout import score, score_aligned


def reward_function(client: Client, **options):
    """A function for ``reward_funcs``: one number for each completion's text. TRL passes no prompt ids here, so this one is
    of text; the trainer below is of ids. A text has no end of sequence: a model that was trained with one (outcome and step
    models are read there) wants ``append_eos=True`` among the ``options``. An empty text (the policy ended at once) has
    nothing to score without it and gets none: TRL leaves it out. What is judged of a completion with tools is its last text,
    after their calls and results; one that ends with a tool gets none."""

    def judged(prompt, completion) -> Input | None:
        text = final_text(completion)
        if text is None or not (text or options.get("append_eos")):
            return None
        before = [] if isinstance(completion, str) else completion[:-1]
        return Input.one(prompt_of([*prompt, *before] if before else prompt), text)

    def qrm(prompts, completions, **_):
        inputs = [judged(prompt, completion) for prompt, completion in zip(prompts, completions)]
        scored = score(client, [one for one in inputs if one], **options)
        return [next(scored).answer_score if one else None for one in inputs]

    return qrm


class TokenGRPOTrainer(GRPOTrainer):
    """GRPO with ``A_t = sequence_weight · A + token_weight · r̂_t``.

    ``A`` is GRPO's own advantage of the completion, ``r̂_t`` the server's reward of its token t over all processes'
    completions: ``(r − μ)/σ`` (``standard``), ``r/σ`` (``std``, as the released Q-RM code has it) or ``r`` (``none``).
    ``alignment`` is ``ids`` or ``spans``; by ``spans`` the reward model reads the example's ``prompt``, messages through its
    own template. The rewards as they came are in the batch as ``token_rewards``, ``(B, T)``.
    """

    def __init__(self, *args, client: Client, sequence_weight: float = 1.0, token_weight: float = 1.0,
                 normalize: str = "standard", alignment: str = "ids", **kwargs):
        super().__init__(*args, **kwargs)
        if normalize not in ("none", "std", "standard"):
            raise ValueError(f"normalize is {normalize!r}, none of 'none', 'std', 'standard'")
        self._client, self._alignment, self._normalize = client, alignment, normalize
        self._sequence_weight, self._token_weight = sequence_weight, token_weight

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        mask = batch["completion_mask"]
        if "tool_mask" in batch:
            mask = mask * batch["tool_mask"]
        rewards = self._token_rewards(batch, inputs).to(mask.device)
        batch["token_rewards"] = rewards
        tokens = self._token_weight * self._normalized(rewards, mask)
        batch["advantages"] = (self._sequence_weight * batch["advantages"].unsqueeze(1) + tokens) * mask
        return batch

    def _token_rewards(self, batch, inputs) -> torch.Tensor:
        """``(B, T)`` float32, zero where there is no completion."""
        # An environment adds to its example's prompt: what the policy read is in the ids alone.
        prompts = [None if self.environments else example["prompt"] for example in inputs]
        rows = zip(prompts, batch["prompt_ids"], batch["prompt_mask"], batch["completion_ids"], batch["completion_mask"])
        lengths, asked = [], []
        for own, prompt, prompt_mask, completion, completion_mask in rows:
            ids = completion[completion_mask.bool()].tolist()
            lengths.append(len(ids))
            if ids:
                prompt = prompt[prompt_mask.bool()].tolist()
                asked.append(align(own, prompt, ids, self.processing_class, self._alignment))
        scored = iter(score_aligned(self._client, asked))
        out = torch.zeros(batch["completion_ids"].shape, dtype=torch.float32)
        for row, length in zip(out, lengths):
            if length:
                row[:length] = torch.from_numpy(next(scored).rewards)
        return out

    def _normalized(self, rewards: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self._normalize == "none":
            return rewards
        own = (rewards * mask).double()
        moments = torch.stack([mask.sum().double(), own.sum(), own.square().sum()])
        count, total, squares = self.accelerator.gather(moments.unsqueeze(0)).sum(dim=0)
        mean = total / count.clamp(min=1)
        std = (squares / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt().clamp(min=1e-8)
        return ((rewards - mean * (self._normalize == "standard")) / std).to(rewards.dtype)
