"""OpenRLHF's own executor, experience and advantages. What samples there (vLLM) is not installed: an engine of three lines
stands for it, and empty modules for vLLM and flash-attn, which these classes import and do not use here."""

from __future__ import annotations

import asyncio
import sys
import types
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("openrlhf")
transformers = pytest.importorskip("transformers")

from qrm_client import Client, Input  # noqa: E402
from qrm_client.adapters import openrlhf as adapter  # noqa: E402

from ..conftest import FIXTURES  # noqa: E402


class Absent(types.ModuleType):
    """A package that is not here: whatever is imported from it is a class without content."""

    __path__: list[str] = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@pytest.fixture(scope="module")
def trainer():
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name.split(".")[0] in ("vllm", "flash_attn", "deepspeed"):
                return ModuleSpec(name, Finder, is_package=True)

        @staticmethod
        def create_module(spec):
            return Absent(spec.name)

        @staticmethod
        def exec_module(module):
            pass

    sys.meta_path.append(Finder)
    try:
        import openrlhf.trainer.ppo_utils.experience_maker as maker
        from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
    except Exception as error:
        pytest.skip(f"OpenRLHF's trainer does not import here: {error!r}")
    finally:
        sys.meta_path.remove(Finder)
    return maker, SamplesGenerator


@pytest.fixture
def url(server, monkeypatch):
    monkeypatch.setenv("QRM_URL", server.url)
    adapter._client.cache_clear()
    return server.url


def tokenizer():
    """The server's own: `AutoTokenizer` makes a Qwen2 tokenizer of it, which splits digits otherwise."""
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(FIXTURES / "qwen2" / "tokenizer.json"))


class Engine:
    """Samples the same ids always."""

    def __init__(self, ids):
        self.ids = ids

    async def generate(self, prompt_ids, params, multi_modal_data=None):
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=self.ids, finish_reason="stop", logprobs=None, text="")])


def sampled(ids, prompt="Ada has 3 pens and buys 4."):
    executor = adapter.agent_executor()()
    params = SimpleNamespace(max_tokens=32, logprobs=None)
    return asyncio.run(executor.execute(prompt, "7", params, 256, tokenizer(), Engine(ids)))


@pytest.mark.parametrize("alignment", ["ids", "spans"])
def test_the_executor_asks_with_the_ids_it_sampled(url, monkeypatch, alignment):
    monkeypatch.setenv("QRM_ALIGNMENT", alignment)
    ids = tokenizer()("She has 7 pens.")["input_ids"] + [2]
    out = sampled(ids)
    begin, end = out["action_ranges"][0]
    assert out["token_rewards"][:begin] == [0.0] * begin and end - begin == len(ids)
    with Client(url) as client:
        direct = client.score([Input.one(out["observation_tokens"][:begin], ids)])[0]
    assert out["token_rewards"][begin:] == pytest.approx(direct.rewards.tolist(), abs=1e-5)
    assert out["reward"] == out["scores"] == pytest.approx(direct.answer_score, abs=1e-5) != 0.0  # what is reported


def test_the_reward_function(url):
    answer = adapter.reward_func(["Two? Two."], ["Two?"], ["2"])
    with Client(url) as client:
        assert answer["rewards"].tolist() == [pytest.approx(client.score([Input.one("Two?", " Two.")])[0].score)]


@pytest.mark.parametrize("alignment", ["ids", "spans"])
def test_an_unfinished_answer_is_asked_without_an_end(url, monkeypatch, alignment):
    monkeypatch.setenv("QRM_ALIGNMENT", alignment)
    ids = tokenizer()("She has 7 pens.")["input_ids"]
    out = sampled(ids)
    with Client(url) as client:
        direct = client.score([Input.one(out["observation_tokens"][: -len(ids)], ids)])[0]
    assert out["token_rewards"][-len(ids) :] == pytest.approx(direct.rewards.tolist(), abs=1e-5)


def shape(trainer, estimator: str, gamma: float):
    """What OpenRLHF makes of two answers: they, their experience as it was, and as it is with advantages."""
    maker, generator = trainer
    adapter.patch(maker, maker.RemoteExperienceMaker, generator)
    from openrlhf.trainer.ppo_utils.experience import Experience

    responses = [sampled(tokenizer()(text)["input_ids"]) for text in ("She has 7 pens.", "8")]
    make = generator.__new__(generator)
    experiences = [generator._process_response_into_experience(make, r, max_len=256) for r in responses]
    joined = Experience.concat_experiences(experiences, 0)
    joined.index, joined.kl = [0, 1], torch.zeros(joined.action_mask.shape)
    joined.values = None
    args = SimpleNamespace(
        rollout=SimpleNamespace(n_samples_per_prompt=1), reward=SimpleNamespace(clip_range=None, overlong=None),
        algo=SimpleNamespace(advantage=SimpleNamespace(estimator=estimator, gamma=gamma, lambd=1.0, no_std_norm=True)))
    experience_maker = maker.RemoteExperienceMaker.__new__(maker.RemoteExperienceMaker)
    experience_maker.strategy = SimpleNamespace(args=args)
    experience_maker.kl_ctl = SimpleNamespace(value=0.0)
    experience_maker.advantage_estimator = estimator
    (shaped,) = experience_maker.compute_advantages_and_returns([joined])
    return responses, joined, shaped


@pytest.mark.parametrize("estimator", ["rloo", "reinforce_baseline", "group_norm", "dr_grpo", "flash_reinforce"])
def test_an_estimator_that_would_leave_tokens_without_a_baseline_is_refused(url, trainer, estimator):
    with pytest.raises(ValueError, match=f"{estimator} .*reinforce or gae"):
        shape(trainer, estimator, 1.0)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_advantages_are_of_token_rewards(url, trainer, gamma):
    responses, joined, shaped = shape(trainer, "reinforce", gamma)
    assert adapter.INFO not in shaped.info
    assert shaped.info["reward"].tolist() == pytest.approx([r["scores"] for r in responses])
    for row, response in enumerate(responses):
        begin, end = response["action_ranges"][0]
        rewards = torch.tensor(response["token_rewards"][begin:end])
        # With γ = 0 a token's return is its own reward, with γ = 1 the sum of those from it on.
        expected = rewards.flip(0).cumsum(0).flip(0) if gamma else rewards
        mask = joined.action_mask[row].bool()
        torch.testing.assert_close(shaped.returns[row][mask], expected, atol=1e-4, rtol=1e-4)
