"""The gRPC client, blocking and for asyncio: ``pip install qrm-client[grpc]``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import grpc
import numpy as np

from . import pb
from .batching import AsyncBatcher, Batcher
from .retry import Retry
from .trace import traced
from .types import Input, InvalidRequest, Rewards, RewardError, TextOrIds, Trajectory, Unauthorized, Unavailable
from .wire import FLOATS

LIMIT = 256 << 20
CHANNEL = [("grpc.max_receive_message_length", LIMIT), ("grpc.max_send_message_length", LIMIT)]
#: What a refusal is, by its status; a :class:`RewardError` else.
KINDS = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: InvalidRequest,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Unavailable,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: Unauthorized,
}
#: The statuses by their numbers (google.rpc.Code).
STATUSES = {status.value[0]: status for status in grpc.StatusCode}


def _metadata(key: str | None) -> Callable[[], list[tuple[str, str]]]:
    """Of each call its own, since it carries its caller's trace."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return lambda: list(traced(headers).items())


def _input(one: Input) -> pb.Input:
    out = pb.Input(id=one.id or "", add_special_tokens=one.add_special_tokens)
    if one.is_chat:
        out.messages.messages.extend(pb.Message(**message) for message in one.prompt)
    elif isinstance(one.prompt, str):
        out.prompt = one.prompt
    else:
        out.prompt_ids.ids.extend(int(id) for id in one.prompt)
        out.prompt_ids.SetInParent()
    for response in one.responses:
        if isinstance(response, str):
            out.responses.add(text=response)
        else:
            out.responses.add(ids=pb.TokenIds(ids=[int(id) for id in response]))
    out.spans.extend(pb.Range(begin=int(begin), end=int(end)) for begin, end in one.spans or ())
    out.step_ends.extend(int(end) for end in one.step_ends or ())
    return out


def _options(options: dict[str, Any]) -> pb.Options:
    if "timeout_ms" in options or "encoding_format" in options:
        raise TypeError("a gRPC call has its own deadline and encoding: use timeout")
    return pb.Options(**options)


def _trajectory(one: pb.Trajectory, reward: str | None = None) -> Trajectory:
    floats = {name: np.array(getattr(one, name), dtype=np.float32) for name in FLOATS if getattr(one, name)}
    offsets = np.array([(o.begin, o.end) for o in one.offsets], dtype=np.int64) if one.offsets else None
    return Trajectory(
        index=one.index,
        input=one.input,
        rewards=np.array(one.rewards, dtype=np.float32),
        score=one.score,
        sum=one.sum,
        id=one.id or None,
        token_ids=np.array(one.token_ids, dtype=np.int64) if one.token_ids else None,
        tokens=list(one.tokens) or None,
        offsets=offsets,
        **floats,
        reward=reward,
    )


def _numbers(message) -> dict[str, Any]:
    return {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}


def _rewards(answer: pb.ScoreResponse) -> Rewards:
    summary = answer.summary
    return Rewards(
        data=[_trajectory(one, summary.reward) for one in answer.data],
        model=summary.model,
        model_version=summary.model_version,
        reward=summary.reward,
        mean=summary.stats.mean,
        std=summary.stats.std,
        usage=_numbers(summary.usage),
        timing=_numbers(summary.timing),
    )


def _error(call: grpc.RpcError) -> RewardError:
    status, notes = call.code(), dict(call.trailing_metadata() or ())
    wait = notes.get("retry-after")
    return KINDS.get(status, RewardError)(
        call.details() or status.name, status=status.name, code=notes.get("qrm-code", ""),
        param=notes.get("qrm-param"), retry_after=float(wait) if wait else None)


def _streamed(message: pb.ScoreStreamResponse) -> Trajectory | RewardError | None:
    """A trajectory, the refusal of one input, or none: the summary."""
    match message.WhichOneof("result"):
        case "trajectory":
            return _trajectory(message.trajectory)
        case "error":
            error = message.error
            status = STATUSES.get(error.status, grpc.StatusCode.UNKNOWN)
            kind = KINDS.get(status, RewardError)
            refusal = kind(error.message, status=status.name, code=error.code, param=error.param or None)
            refusal.input, refusal.id = error.input, error.id or None
            return refusal
    return None


class GrpcClient:
    """Blocking; may be shared among threads.

    ``timeout`` is of one try, in seconds; a stream has none, since it lasts as long as its inputs do. ``stream`` gives
    trajectories as they are scored and, in their place, a :class:`RewardError` (an :class:`InvalidRequest` mostly; with
    ``input``, its place) for each input that could not be scored; closing the iterator cancels what is left.
    ``credentials`` are grpc's channel credentials; without them the channel is plain.
    """

    def __init__(self, target: str = "127.0.0.1:8081", *, key: str | None = None, timeout: float = 600.0,
                 retry: Retry = Retry(), batch_window: float = 0.002, credentials=None, **options: Any):
        self._channel = (grpc.secure_channel(target, credentials, options=CHANNEL) if credentials
                         else grpc.insecure_channel(target, options=CHANNEL))
        self._stub = pb.Stub(self._channel)
        self._metadata, self._timeout = _metadata(key), timeout
        self._retry, self._options = retry, options
        self._batcher = Batcher(lambda inputs: self.score(inputs).data, batch_window)

    def __enter__(self) -> GrpcClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def score(self, inputs: Iterable[Input], **options: Any) -> Rewards:
        """Scores all in one call."""
        options = _options({**self._options, **options})
        request = pb.ScoreRequest(options=options, inputs=[_input(one) for one in inputs])
        return _rewards(self._unary(self._stub.Score, request))

    def reward(self, prompt, response: TextOrIds, **rest: Any) -> Trajectory:
        """Scores one response; calls of several threads go together."""
        return self._batcher.score(Input.one(prompt, response, **rest))

    def stream(self, inputs: Iterable[Input], **options: Any) -> Iterator[Trajectory | RewardError]:
        """Sends inputs as the server takes them."""
        first = pb.ScoreStreamRequest(options=_options({**self._options, **options}))

        def requests():
            yield first
            for one in inputs:
                yield pb.ScoreStreamRequest(input=_input(one))

        call = self._stub.ScoreStream(requests(), metadata=self._metadata())
        try:
            for message in call:
                if (one := _streamed(message)) is not None:
                    yield one
        except grpc.RpcError as error:
            raise _error(error) from error
        finally:
            call.cancel()

    def tokenize(self, prompt: str, **rest: Any) -> pb.TokenizeResponse:
        """The tokens that a prompt becomes."""
        return self._unary(self._stub.Tokenize, pb.TokenizeRequest(prompt=prompt, **rest))

    def info(self) -> pb.InfoResponse:
        """What is served, and its limits."""
        return self._unary(self._stub.Info, pb.InfoRequest())

    def _unary(self, method, request):
        waits = self._retry.waits()
        while True:
            try:
                return method(request, timeout=self._timeout, metadata=self._metadata())
            except grpc.RpcError as call:
                error, wait = _error(call), next(waits, None)
                if not isinstance(error, Unavailable) or wait is None:
                    raise error from call
                time.sleep(self._retry.after(wait, error))


class AsyncGrpcClient:
    """The same for asyncio; of one event loop."""

    def __init__(self, target: str = "127.0.0.1:8081", *, key: str | None = None, timeout: float = 600.0,
                 retry: Retry = Retry(), batch_window: float = 0.002, credentials=None, **options: Any):
        self._channel = (grpc.aio.secure_channel(target, credentials, options=CHANNEL) if credentials
                         else grpc.aio.insecure_channel(target, options=CHANNEL))
        self._stub = pb.Stub(self._channel)
        self._metadata, self._timeout = _metadata(key), timeout
        self._retry, self._options = retry, options

        async def together(inputs):
            return (await self.score(inputs)).data

        self._batcher = AsyncBatcher(together, batch_window)

    async def __aenter__(self) -> AsyncGrpcClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    async def score(self, inputs: Iterable[Input], **options: Any) -> Rewards:
        """Scores all in one call."""
        options = _options({**self._options, **options})
        request = pb.ScoreRequest(options=options, inputs=[_input(one) for one in inputs])
        return _rewards(await self._unary(self._stub.Score, request))

    async def reward(self, prompt, response: TextOrIds, **rest: Any) -> Trajectory:
        """Scores one response; concurrent calls go together."""
        return await self._batcher.score(Input.one(prompt, response, **rest))

    async def stream(self, inputs: AsyncIterable[Input] | Iterable[Input], **options: Any) -> AsyncIterator[Trajectory | RewardError]:
        """Sends inputs as the server takes them."""
        first = pb.ScoreStreamRequest(options=_options({**self._options, **options}))

        async def requests():
            yield first
            if isinstance(inputs, AsyncIterable):
                async for one in inputs:
                    yield pb.ScoreStreamRequest(input=_input(one))
            else:
                for one in inputs:
                    yield pb.ScoreStreamRequest(input=_input(one))

        call = self._stub.ScoreStream(requests(), metadata=self._metadata())
        try:
            async for message in call:
                if (one := _streamed(message)) is not None:
                    yield one
        except grpc.aio.AioRpcError as error:
            raise _error(error) from error
        finally:
            call.cancel()

    async def tokenize(self, prompt: str, **rest: Any) -> pb.TokenizeResponse:
        """The tokens that a prompt becomes."""
        return await self._unary(self._stub.Tokenize, pb.TokenizeRequest(prompt=prompt, **rest))

    async def info(self) -> pb.InfoResponse:
        """What is served, and its limits."""
        return await self._unary(self._stub.Info, pb.InfoRequest())

    async def _unary(self, method, request):
        waits = self._retry.waits()
        while True:
            try:
                return await method(request, timeout=self._timeout, metadata=self._metadata())
            except grpc.aio.AioRpcError as call:
                error, wait = _error(call), next(waits, None)
                if not isinstance(error, Unavailable) or wait is None:
                    raise error from call
                await asyncio.sleep(self._retry.after(wait, error))
