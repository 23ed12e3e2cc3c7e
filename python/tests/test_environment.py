"""What an adapter takes from the environment."""

from __future__ import annotations

from qrm_client import Client, Input
from qrm_client.adapters import environment

from .conftest import FIXTURES


def test_a_model_and_a_reward_are_named(start, monkeypatch):
    server = start(None, "--model", f"first={FIXTURES / 'qwen2'}", "--model", f"second={FIXTURES / 'llama-tied'}")
    for name in environment.OPTIONS.values():
        monkeypatch.delenv(name, raising=False)
    assert environment.client_options() == {} and environment.alignment() == "ids"
    monkeypatch.setenv("QRM_URL", server.url)

    def asked():
        with Client(**environment.client_options()) as client:
            scored = client.score([Input.one([5, 6], [7, 8])])
        return scored.model, scored.reward

    assert asked() == ("first", "advantage")
    monkeypatch.setenv("QRM_MODEL", "second")
    monkeypatch.setenv("QRM_REWARD", "logit")
    assert asked() == ("second", "logit")
    monkeypatch.setenv("QRM_REWARD", "")  # as a shell script passes on what is not set
    assert asked() == ("second", "advantage")
