"""What PyTorch makes of PPO, REINFORCE and GRPO, for tests/reference.rs: reference.py > pytorch.json

Written from the papers and from the released Q-RM code's conventions, on its own: padded tensors with masks and autograd,
where the Rust code has lists and a fused head.
"""

import json

import torch

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
LENGTHS = [5, 1, 7, 3, 4, 6]
GROUP = 2
N, T, V = len(LENGTHS), max(LENGTHS), 11
MASK = torch.arange(T)[None, :] < torch.tensor(LENGTHS)[:, None]
LAST = torch.tensor(LENGTHS) - 1


def ragged(x):
    return [[round(v, 8) for v in x[i, :n].tolist()] for i, n in enumerate(LENGTHS)]


def normalize(x, where, how):
    if how == "none":
        return x
    picked = x[where]
    mean = picked.mean() if how == "standard" else 0.0
    return torch.where(where, (x - mean) / picked.std(unbiased=False), x)


def penalty(kind, log_pi, log_ref):
    d = log_pi - log_ref
    return {"k1": d, "k2": d.square() / 2, "k3": (-d).exp() - 1 + d, "absolute": d.abs()}[kind]


def gae(rewards, values, gamma, lam):
    advantages, last = torch.zeros_like(rewards), torch.zeros(N)
    for t in reversed(range(T)):
        inside = MASK[:, t + 1].double() if t + 1 < T else torch.zeros(N)
        ahead = values[:, t + 1] * inside if t + 1 < T else torch.zeros(N)
        delta = rewards[:, t] + gamma * ahead - values[:, t]
        last = delta + gamma * lam * last * inside
        advantages[:, t] = last
    return advantages * MASK, (advantages + values) * MASK


def returns(rewards, gamma):
    out, last = torch.zeros_like(rewards), torch.zeros(N)
    for t in reversed(range(T)):
        last = rewards[:, t] * MASK[:, t] + gamma * last
        out[:, t] = last
    return out * MASK


dense = torch.randn(N, T) * 2 - 0.5
dense[~MASK] = 0
sparse = torch.zeros(N, T).scatter(1, LAST[:, None], torch.randn(N, 1))
values = torch.randn(N, T)
logits = torch.randn(N, T, V)
actions = torch.randint(V, (N, T))
log_pi = logits.log_softmax(-1).gather(-1, actions[..., None])[..., 0]
old = log_pi + 0.3 * torch.randn(N, T)
reference = log_pi + 0.5 * torch.randn(N, T)

# After all that was drawn before: a verifier's and a step model's rewards.
AT_END = torch.zeros_like(MASK).scatter(1, LAST[:, None], True)
right = AT_END * torch.tensor([1.0, 0, 0, 1, 1, 0])[:, None]
steps = torch.where(torch.rand(N, T) < 0.4, torch.randn(N, T).tanh(), 0.0) * MASK

pushes = []
for algorithm in ["reinforce", "ppo", "ppo, whitened", "grpo"]:
    for reward, given in [("logit", dense), ("outcome", sparse), ("verifier", right), ("step", steps), ("dpo", dense)]:
        for how in ["none", "std", "standard"]:
            for kind in ["k1", "k2", "k3", "absolute"] if reward in ["logit", "outcome"] else ["absolute"]:
                gamma, lam, kl_coef, critic_weight = 0.9, 0.8, 0.05, 0.01
                # DPO's log-ratio is a token's own reward in REINFORCE only.
                immediate = reward == "logit" or (reward == "dpo" and algorithm == "reinforce")
                there = {"outcome": AT_END, "verifier": AT_END, "step": steps != 0}.get(reward, MASK)
                r = normalize(given, there, how)
                if algorithm == "reinforce" and immediate:
                    mean = (r * MASK).sum(1) / MASK.sum(1)
                    r = r.scatter(1, LAST[:, None], mean[:, None])
                kl = penalty(kind, old, reference)
                if algorithm != "grpo":
                    r = (r - kl_coef * kl) * MASK
                targets = None
                if algorithm == "grpo":
                    score = given.sum(1) / (MASK.sum(1) if immediate else 1)
                    groups = score.view(-1, GROUP)
                    spread = groups.std(1, unbiased=False, keepdim=True) + 1e-4
                    a = ((groups - groups.mean(1, keepdim=True)) / spread).view(-1, 1).expand(N, T) * MASK
                elif algorithm.startswith("ppo") and immediate:
                    a, targets = r - critic_weight * values / values[MASK].std(unbiased=False), r
                elif algorithm.startswith("ppo"):
                    a, targets = gae(r, values, gamma, lam)
                    if algorithm == "ppo, whitened":
                        a = torch.where(MASK, (a - a[MASK].mean()) / a[MASK].std(unbiased=False), 0.0)
                else:
                    a = r if immediate else returns(r, gamma)
                pushes.append({
                    "algorithm": algorithm, "reward": reward, "normalize": how, "kl_form": kind,
                    "advantages": ragged(a), "returns": ragged(targets) if targets is not None else [],
                    "kl": kl[MASK].mean().item(),
                })

# The losses, from logits to their gradient in the head's outputs: z of the action, logsumexp, entropy.
advantages = torch.randn(N, T)
z = logits.gather(-1, actions[..., None])[..., 0][MASK]
lse = logits.logsumexp(-1)[MASK]
entropy = torch.distributions.Categorical(logits=logits).entropy()[MASK]
outputs = torch.stack([z, lse, entropy], 1).requires_grad_()
lp, a, o, f = outputs[:, 0] - outputs[:, 1], advantages[MASK], old[MASK], reference[MASK]
ratio = (lp - o).exp()
v = values[MASK].clone().requires_grad_()
target, before = torch.randn(len(a)), values[MASK] + 0.5 * torch.randn(len(a))
near = before + (v - before).clamp(-0.2, 0.2)
losses = {
    "reinforce": (-(a * lp).mean(), outputs),
    "clipped": (-torch.min(ratio * a, ratio.clamp(0.8, 1.2) * a).mean(), outputs),
    "kl": (((f - lp).exp() - 1 - (f - lp)).mean(), outputs),
    "entropy": (outputs[:, 2].mean(), outputs),
    "value": (0.5 * (v - target).square().mean(), v),
    "value_clipped": (0.5 * torch.max((v - target).square(), (near - target).square()).mean(), v),
}
losses = {
    name: {"loss": loss.item(), "gradient": torch.autograd.grad(loss, leaf, retain_graph=True)[0].flatten().tolist()}
    for name, (loss, leaf) in losses.items()
}

print(json.dumps({
    "group": GROUP, "dense": ragged(dense), "sparse": ragged(sparse), "right": ragged(right), "steps": ragged(steps), "values": ragged(values),
    "old": ragged(old), "reference": ragged(reference), "pushes": pushes,
    "outputs": outputs.detach().flatten().tolist(), "advantages": a.tolist(),
    "critic": {"values": v.tolist(), "targets": target.tolist(), "old": before.tolist()},
    "losses": losses,
}))
