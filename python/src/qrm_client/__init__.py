"""Client of the token-reward scoring server: one reward per response token, as numpy arrays.

- :mod:`qrm_client.types`: what goes in and what comes out.
- :mod:`qrm_client.http`: :class:`Client` and :class:`AsyncClient`.
- :mod:`qrm_client.grpc`: :class:`GrpcClient` and :class:`AsyncGrpcClient` (``pip install qrm-client[grpc]``).
- :mod:`qrm_client.batching`: concurrent calls become one request.
- :mod:`qrm_client.retry`: what is tried again, and when.
- :mod:`qrm_client.wire`, ``pb``: both fronts' formats. :mod:`qrm_client.trace`: traces that go on in the server.
- :mod:`qrm_client.spans`: a policy's tokens as byte ranges of its text.
- :mod:`qrm_client.adapters`: verl, OpenRLHF, TRL, slime.
"""

from .http import AsyncClient, Client
from .retry import Retry
from .spans import token_spans
from .types import Input, InvalidRequest, Rewards, RewardError, Trajectory, Unauthorized, Unavailable

__all__ = [
    "AsyncClient",
    "Client",
    "Input",
    "InvalidRequest",
    "Retry",
    "RewardError",
    "Rewards",
    "Trajectory",
    "Unauthorized",
    "Unavailable",
    "token_spans",
]
