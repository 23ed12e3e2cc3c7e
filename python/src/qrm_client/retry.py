"""What is tried again, and when: only what a later try can mend, after as long as the server asks for."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from .types import Unavailable


@dataclass(frozen=True)
class Retry:
    """Waits of ``first · 2ⁿ`` seconds, at most ``longest``, each shortened at random by up to half; never less than the
    server's ``Retry-After``. The default goes on for about five minutes: a reload or a restart of the server passes."""

    tries: int = 20
    first: float = 0.25
    longest: float = 30.0

    def waits(self) -> Iterator[float]:
        """Seconds before each further try, without the server's wish."""
        for n in range(self.tries - 1):
            yield min(self.first * 2**n, self.longest) * random.uniform(0.5, 1.0)

    @staticmethod
    def after(wait: float, error: Unavailable) -> float:
        """Seconds to wait, given the refusal."""
        return max(wait, error.retry_after or 0.0)
