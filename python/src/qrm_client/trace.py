"""Traces go on in the server: where OpenTelemetry's API is installed, every call carries the current span (W3C traceparent)."""

from __future__ import annotations

try:
    from opentelemetry.propagate import inject
except ImportError:

    def inject(carrier: dict[str, str]) -> None:
        """There is no trace to go on with."""


def traced(headers: dict[str, str]) -> dict[str, str]:
    """The headers and those of the span that the caller is in, if it is in one."""
    headers = dict(headers)
    inject(headers)
    return headers
