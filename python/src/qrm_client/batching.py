"""Concurrent calls become one request: the server batches well by itself, but a request costs both sides more than a row."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future

from .types import Input, InvalidRequest, Trajectory

#: Of one request.
MOST = 256


class AsyncBatcher:
    """Gathers what comes within ``window`` seconds, on one event loop."""

    def __init__(self, score: Callable[[Sequence[Input]], Awaitable[Sequence[Trajectory]]], window: float):
        self._score, self._window = score, window
        self._waiting: list[tuple[Input, asyncio.Future]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._running: set[asyncio.Task] = set()

    async def score(self, one: Input) -> Trajectory:
        """The trajectory of an input with one response."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._waiting.append((one, future))
        if len(self._waiting) >= MOST:
            self._send()
        elif self._timer is None:
            self._timer = loop.call_later(self._window, self._send)
        return await future

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = [(one, future) for one, future in self._waiting if not future.cancelled()]
        self._waiting = []
        if batch:
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._running.add(task)  # a task that nobody holds may be collected
            task.add_done_callback(self._running.discard)

    async def _run(self, batch: list[tuple[Input, asyncio.Future]]) -> None:
        try:
            scored = await self._score([one for one, _ in batch])
        except InvalidRequest as error:
            if len(batch) == 1:
                _fail([batch[0][1]], error)
            else:  # one caller's mistake is not the others'
                await asyncio.gather(*(self._run([each]) for each in batch))
        except BaseException as error:  # also a cancellation: nobody may wait for ever
            _fail([future for _, future in batch], error)
        else:
            for (_, future), trajectory in zip(batch, scored):
                if not future.done():
                    future.set_result(trajectory)


class Batcher:
    """The same among threads: the first to come waits ``window`` seconds and sends for all."""

    def __init__(self, score: Callable[[Sequence[Input]], Sequence[Trajectory]], window: float):
        self._score, self._window = score, window
        self._lock = threading.Lock()
        self._waiting: list[tuple[Input, Future]] = []
        self._full = threading.Event()

    def score(self, one: Input) -> Trajectory:
        """The trajectory of an input with one response."""
        future: Future = Future()
        with self._lock:
            self._waiting.append((one, future))
            leads = len(self._waiting) == 1
            if len(self._waiting) >= MOST:
                self._full.set()
        if leads:
            try:
                self._full.wait(self._window)
            except BaseException as error:  # Ctrl-C: those who came meanwhile have nobody else to send for them
                _fail([future for _, future in self._take()], error)
                raise
            self._run(self._take())
        return future.result()

    def _take(self) -> list[tuple[Input, Future]]:
        with self._lock:
            batch, self._waiting = self._waiting, []
            self._full.clear()
        return batch

    def _run(self, batch: list[tuple[Input, Future]]) -> None:
        try:
            scored = self._score([one for one, _ in batch])
        except InvalidRequest as error:
            if len(batch) == 1:
                _fail([batch[0][1]], error)
            else:
                for each in batch:
                    self._run([each])
        except BaseException as error:
            _fail([future for _, future in batch], error)
        else:
            for (_, future), trajectory in zip(batch, scored):
                future.set_result(trajectory)


def _fail(futures, error: BaseException) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
