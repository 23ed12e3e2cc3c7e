"""What the environment says, for the frameworks that hand an adapter no arguments."""

from __future__ import annotations

import os

OPTIONS = {"url": "QRM_URL", "key": "QRM_KEY", "model": "QRM_MODEL", "reward": "QRM_REWARD"}


def client_options() -> dict[str, str]:
    """Of a client: where the server is, and which of its models and rewards to ask for (else those are the server's)."""
    return {option: os.environ[name] for option, name in OPTIONS.items() if os.environ.get(name)}


def alignment() -> str:
    """``ids`` or ``spans``."""
    return os.environ.get("QRM_ALIGNMENT", "ids")
