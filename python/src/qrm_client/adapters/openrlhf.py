"""OpenRLHF: a reward function for whole answers, and what it takes to train on rewards per token.

Whole answers need no adapter (``--reward.remote_url http://rewards:8080/get_reward``), or this file's function, in a file
of its own that is named there: ``from qrm_client.adapters.openrlhf import reward_func``.

The trainer's rewards are one number an answer. :func:`install` makes it take one a token as well: an executor asks the
server with the very ids that were sampled, the rewards travel in ``Experience.info``, and they stand where OpenRLHF would put
its one number at the last token; that number, the answer's score, is what it reports and evaluates. It has to run in every
process of the trainer: see ``examples/openrlhf``. By ``spans`` the reward model reads the policy's template as text: OpenRLHF
has applied it by then. Written for OpenRLHF 0.11.

A Q-RM's reward is an advantage, and a token is credited with its own: ``--algo.advantage.estimator reinforce`` (or ``gae``)
with ``--algo.advantage.gamma 0``. Outcome and step rewards are for what came before them too: there γ is 1, the default. The
other estimators set γ to 1 and take their baseline from one number an answer: rewards per token would keep none.

Environment: ``QRM_URL``, ``QRM_KEY``, ``QRM_MODEL``, ``QRM_REWARD`` (default: the server's), ``QRM_ALIGNMENT`` (``ids`` or
``spans``), ``QRM_TOKEN_WEIGHT`` (default 1).
"""

from __future__ import annotations

import os
from functools import lru_cache

import torch

from .. import AsyncClient, Client, Input
from . import environment
from .align import align

INFO = "token_rewards"
#: What takes rewards per token as they are, and has a γ.
ESTIMATORS = ("reinforce", "gae")


@lru_cache(maxsize=1)
def _client() -> Client:
    return Client(**environment.client_options())


def reward_func(queries, prompts, labels):
    """OpenRLHF's reward function: one query at a time, from many threads, which go together."""
    for query, prompt in zip(queries, prompts):
        if not query.startswith(prompt):  # cut, or other text after tokenising: what is prompt and what answer is not known
            raise ValueError(f"the query does not begin with its prompt: {query[:80]!r}, {prompt[:80]!r}")
    inputs = [Input.one(prompt, query.removeprefix(prompt)) for query, prompt in zip(queries, prompts)]
    scores = torch.tensor([_client().reward(one.prompt, one.responses[0]).answer_score for one in inputs])
    return {"rewards": scores, "scores": scores, "extra_logs": {}}


def agent_executor():
    """The class that a file for ``--train.agent_func_path`` has to call ``AgentExecutor``."""
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    class AgentExecutor(SingleTurnAgentExecutor):
        """Samples as always; then asks for a reward of every token that was sampled."""

        def __init__(self):
            super().__init__()
            options = environment.client_options()
            # The option is of a request, and concurrent answers go together in one.
            self._rewards = {append_eos: AsyncClient(**options, append_eos=append_eos) for append_eos in (False, True)}

        async def execute(self, prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images=None):
            out = await super().execute(prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images)
            ids, [(begin, end)] = out["observation_tokens"], out["action_ranges"]
            one, append_eos = align(None, ids[:begin], ids[begin:end], hf_tokenizer, environment.alignment())
            scored = await self._rewards[append_eos].reward(one.prompt, one.responses[0], spans=one.spans)
            score = scored.answer_score
            out.update(reward=score, scores=score, token_rewards=[0.0] * begin + scored.rewards.tolist())
            return out

    return AgentExecutor


def install() -> None:
    """Teaches this process's OpenRLHF about rewards per token. Twice is as good as once."""
    import openrlhf.trainer.ppo_utils.experience_maker as maker
    from openrlhf.trainer.ppo_utils import samples_generator

    patch(maker, maker.RemoteExperienceMaker, samples_generator.SamplesGenerator)


def patch(maker, experience_maker: type, generator: type) -> None:
    """What :func:`install` does, on the module and the two classes."""
    if getattr(maker, "qrm_installed", False):
        return
    maker.qrm_installed = True
    weight = float(os.environ.get("QRM_TOKEN_WEIGHT", "1"))
    read, shape = generator._process_response_into_experience, experience_maker.compute_advantages_and_returns

    def read_token_rewards(self, response, **kwargs):
        experience = read(self, response, **kwargs)
        if response.get(INFO) is not None:
            # As the action mask: of every token but the first, cut where the sequence is.
            rewards = torch.tensor(response[INFO][1 : experience.sequences.size(1)], dtype=torch.float32)
            experience.info[INFO] = rewards.unsqueeze(0)
        return experience

    def shape_token_rewards(self, experiences):
        rewards = [experience.info.pop(INFO, None) for experience in experiences]
        if self.advantage_estimator not in ESTIMATORS and any(tokens is not None for tokens in rewards):
            raise ValueError(f"--algo.advantage.estimator {self.advantage_estimator} leaves rewards per token without a baseline: "
                             "use reinforce or gae, for a Q-RM with --algo.advantage.gamma 0")
        own, last_only = iter(rewards), maker.compute_reward
        # All of the reward is in the tokens: the answer's score is there for the reports, and not added to them.
        reported = [(e, e.info["reward"]) for e, tokens in zip(experiences, rewards) if tokens is not None]
        for experience, _ in reported:
            experience.rewards = torch.zeros_like(experience.rewards)

        def compute_reward(*args, action_mask=None, **kwargs):  # called once for each experience, in order
            reward, tokens = last_only(*args, action_mask=action_mask, **kwargs), next(own)
            if tokens is None:
                return reward
            tokens = torch.nn.functional.pad(tokens, (0, reward.size(1) - tokens.size(1)))
            return reward + weight * tokens.to(reward) * action_mask

        maker.compute_reward = compute_reward
        try:
            shaped = shape(self, experiences)
        finally:
            maker.compute_reward = last_only
        for experience, score in reported:
            experience.info["reward"] = score
        return shaped

    generator._process_response_into_experience = read_token_rewards
    experience_maker.compute_advantages_and_returns = shape_token_rewards
