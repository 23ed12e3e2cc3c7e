"""One trace from a caller's own span through either client and the server's queue to the batch, as a collector gets it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from qrm_client import AsyncClient, Client, Input
from qrm_client.grpc import AsyncGrpcClient, GrpcClient

INPUTS = [Input.one([1, 2, 3], [4, 5])]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans of all services over OTLP."""

    def __init__(self):
        self.spans, self.lock = [], threading.Lock()
        self.server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self.server)
        self.url = f"http://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def Export(self, request, context):
        with self.lock:
            for resource in request.resource_spans:
                of = {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"]
                self.spans += [(of, span) for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def trace(self, of: int) -> dict:
        """(service, name): span of one trace, once its batch is there."""
        for _ in range(300):
            with self.lock:
                found = {(s, span.name): span for s, span in self.spans if int.from_bytes(span.trace_id) == of}
            if ("qrm-server", "batch") in found:
                return found
            time.sleep(0.1)
        raise AssertionError(f"no batch in {list(found)}")


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.server.stop(None)


async def test_a_rollout_is_followed_into_its_batch(start, collector):
    server = start("qwen2", "--otlp-endpoint", collector.url)
    provider = TracerProvider(resource=Resource.create({"service.name": "trainer"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(collector.url, insecure=True)))
    tracer = provider.get_tracer("trainer")

    async def check(route, score):
        with tracer.start_as_current_span("rollout") as span:
            await score()
        context = span.get_span_context()
        spans = collector.trace(context.trace_id)
        assert int.from_bytes(spans["qrm-server", route].parent_span_id) == context.span_id
        for part in ("tokenize", "queue", "batch"):
            assert spans["qrm-server", part].parent_span_id == spans["qrm-server", route].span_id
        assert ("trainer", "rollout") in spans

    async def blocking(client):
        with client:
            client.score(INPUTS)

    async def waiting(client):
        async with client:
            await client.score(INPUTS)

    for route, clients in (
        ("POST /v1/rewards", (Client(server.url), AsyncClient(server.url))),
        ("qrm.v1.RewardService/Score", (GrpcClient(server.grpc), AsyncGrpcClient(server.grpc))),
    ):
        await check(route, lambda: blocking(clients[0]))
        await check(route, lambda: waiting(clients[1]))
    provider.shutdown()
