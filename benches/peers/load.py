"""HTTP clients that send one request after the other, and how long each took."""

import http.client
import threading
import time
from typing import NamedTuple


class Load(NamedTuple):
    """What one measurement found."""

    rate: float  # requests/s
    latencies: list[float]  # s, of every request


def connect(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=120)


def ready(port: int) -> bool:
    connection = connect(port)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def ask(connection: http.client.HTTPConnection, route: str, body: bytes) -> bytes:
    connection.request("POST", route, body, {"content-type": "application/json"})
    answer = connection.getresponse()
    read = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{route}: {answer.status}: {read[:300]!r}")
    return read


def load(port: int, route: str, bodies: list[bytes], clients: int) -> Load:
    """Every client has a connection that stays open, and sends its next request when the last one is answered. The answers are
    not parsed: what the client costs, it takes from the server."""
    latencies: list[float] = []

    def client(share: list[bytes]) -> None:
        connection = connect(port)
        for body in share:
            start = time.perf_counter()
            ask(connection, route, body)
            latencies.append(time.perf_counter() - start)
        connection.close()

    threads = [threading.Thread(target=client, args=(bodies[i::clients],)) for i in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    if len(latencies) != len(bodies):
        raise RuntimeError(f"{len(bodies) - len(latencies)} of {len(bodies)} requests to {route} were not answered")
    return Load(len(bodies) / seconds, latencies)
