"""The HTTP client, blocking and for asyncio."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2 as httpx

from . import wire
from .batching import AsyncBatcher, Batcher
from .retry import Retry
from .trace import traced
from .types import Input, Rewards, RewardError, TextOrIds, Trajectory, Unavailable

NDJSON = {"accept": "application/x-ndjson"}


def _settings(url: str, key: str | None, timeout: float, verify) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
    return {"base_url": url.rstrip("/"), "headers": headers, "timeout": timeout, "limits": limits, "verify": verify, "auth": _traced}


def _traced(request: httpx.Request) -> httpx.Request:
    request.headers.update(traced({}))
    return request


def _checked(response: httpx.Response) -> Any:
    try:
        body = response.json()
    except ValueError:
        body = None
    if response.is_success and body is not None:
        return body
    raise wire.error(response.status_code, body, response.headers.get("retry-after"))


@contextmanager
def _reached() -> Iterator[None]:
    """A server that does not answer, or not to the end, is :class:`Unavailable`."""
    try:
        yield
    except httpx.TransportError as error:
        raise Unavailable(f"no answer: {error!r}") from error


#: What a refusal in the middle of an answer would have been before it began.
_STATUS = {"overloaded_error": 503, "timeout_error": 504, "server_error": 500}


class _Lines:
    """The trajectories of a streamed answer, whose last line has none. Lines end at ``\\n`` only: what else ends a line in
    Unicode may stand in the JSON as it is."""

    def __init__(self):
        self._rest = b""

    def read(self, chunk: bytes) -> Iterator[Trajectory]:
        """Those that the chunk completes."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for body in map(json.loads, lines):
            if "error" in body:
                raise wire.error(_STATUS.get(body["error"]["type"], 422), body, None)
            if "rewards" in body:
                yield wire.trajectory(body)


class Client:
    """Blocking; may be shared among threads.

    ``options`` of the calls are the other fields of ``POST /v1/rewards``: ``reward``, ``scale``, ``normalize``, ``include``,
    ``append_eos``, ``truncate_prompt``, ``span_reduce``, ``priority``, ``timeout_ms``, ``model``. ``timeout`` is of one try,
    in seconds; ``batch_window`` how long :meth:`reward` waits for company; ``verify`` is httpx's: an ``ssl.SSLContext`` with
    the authorities to trust and perhaps a certificate of the client.
    """

    def __init__(self, url: str = "http://127.0.0.1:8080", *, key: str | None = None, timeout: float = 600.0,
                 retry: Retry = Retry(), batch_window: float = 0.002, verify: Any = True, **options: Any):
        self._http = httpx.Client(**_settings(url, key, timeout, verify))
        self._retry, self._options = retry, options
        self._batcher = Batcher(lambda inputs: self.score(inputs).data, batch_window)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def score(self, inputs: Iterable[Input], **options: Any) -> Rewards:
        """Scores all in one request."""
        body = wire.request(inputs, {**self._options, **options})
        return wire.response(self._call("POST", "/v1/rewards", json=body))

    def reward(self, prompt, response: TextOrIds, **rest: Any) -> Trajectory:
        """Scores one response; calls of several threads go together."""
        return self._batcher.score(Input.one(prompt, response, **rest))

    def stream(self, inputs: Iterable[Input], **options: Any) -> Iterator[Trajectory]:
        """The trajectories as they are scored, in the order of their completion."""
        body = wire.request(inputs, {**self._options, **options})
        with _reached(), self._http.stream("POST", "/v1/rewards", json=body, headers=NDJSON) as response:
            if not response.is_success:
                response.read()
                _checked(response)
            lines = _Lines()
            for chunk in response.iter_bytes():
                yield from lines.read(chunk)

    def tokenize(self, prompt: str, **rest: Any) -> dict[str, Any]:
        """``POST /tokenize``."""
        return self._call("POST", "/tokenize", json={"prompt": prompt, **rest})

    def info(self) -> dict[str, Any]:
        """``GET /info``."""
        return self._call("GET", "/info")

    def _call(self, method: str, path: str, **body: Any) -> Any:
        waits = self._retry.waits()
        while True:
            try:
                with _reached():
                    return _checked(self._http.request(method, path, **body))
            except Unavailable as error:
                wait = next(waits, None)
                if wait is None:
                    raise
                time.sleep(self._retry.after(wait, error))


class AsyncClient:
    """The same for asyncio; of one event loop."""

    def __init__(self, url: str = "http://127.0.0.1:8080", *, key: str | None = None, timeout: float = 600.0,
                 retry: Retry = Retry(), batch_window: float = 0.002, verify: Any = True, **options: Any):
        self._http = httpx.AsyncClient(**_settings(url, key, timeout, verify))
        self._retry, self._options = retry, options

        async def together(inputs):
            return (await self.score(inputs)).data

        self._batcher = AsyncBatcher(together, batch_window)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def score(self, inputs: Iterable[Input], **options: Any) -> Rewards:
        """Scores all in one request."""
        body = wire.request(inputs, {**self._options, **options})
        return wire.response(await self._call("POST", "/v1/rewards", json=body))

    async def reward(self, prompt, response: TextOrIds, **rest: Any) -> Trajectory:
        """Scores one response; concurrent calls go together."""
        return await self._batcher.score(Input.one(prompt, response, **rest))

    async def stream(self, inputs: Iterable[Input], **options: Any) -> AsyncIterator[Trajectory]:
        """The trajectories as they are scored, in the order of their completion."""
        body = wire.request(inputs, {**self._options, **options})
        with _reached():
            async with self._http.stream("POST", "/v1/rewards", json=body, headers=NDJSON) as response:
                if not response.is_success:
                    await response.aread()
                    _checked(response)
                lines = _Lines()
                async for chunk in response.aiter_bytes():
                    for trajectory in lines.read(chunk):
                        yield trajectory

    async def tokenize(self, prompt: str, **rest: Any) -> dict[str, Any]:
        """``POST /tokenize``."""
        return await self._call("POST", "/tokenize", json={"prompt": prompt, **rest})

    async def info(self) -> dict[str, Any]:
        """``GET /info``."""
        return await self._call("GET", "/info")

    async def _call(self, method: str, path: str, **body: Any) -> Any:
        waits = self._retry.waits()
        while True:
            try:
                with _reached():
                    return _checked(await self._http.request(method, path, **body))
            except Unavailable as error:
                wait = next(waits, None)
                if wait is None:
                    raise
                await asyncio.sleep(self._retry.after(wait, error))
