"""HTTP clients that send one request after the other, and how long each took. They share the machine with the server: sockets and a
request as one write cost a tenth of what `http.client` takes of it."""

import re
import socket
import threading
import time
from typing import NamedTuple

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Load(NamedTuple):
    """What one measurement found."""

    rate: float  # requests/s
    latencies: list[float]  # s, of every request


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=120)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def ready(port: int) -> bool:
    try:
        with connect(port) as connection:
            exchange(connection, b"GET /ready HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            return True
    except (OSError, RuntimeError):
        return False


def request(route: str, body: bytes) -> bytes:
    head = f"POST {route} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def exchange(connection: socket.socket, message: bytes) -> bytes:
    """The body of the answer to a whole request; RuntimeError if it is not one of status 200 that says how long it is."""
    connection.sendall(message)
    answer = received(connection)
    while (end := answer.find(b"\r\n\r\n")) < 0:
        answer += received(connection)
    head, body = answer[: end + 2], answer[end + 4 :]
    length = LENGTH.search(head)
    if not head.startswith(b"HTTP/1.1 200") or length is None:
        raise RuntimeError(f"not an answer to read: {answer[:300]!r}")
    while len(body) < int(length[1]):
        body += received(connection)
    return body


def received(connection: socket.socket) -> bytes:
    part = connection.recv(1 << 16)
    if not part:
        raise RuntimeError("the connection was closed before the end of an answer")
    return part


def load(port: int, route: str, bodies: list[bytes], clients: int) -> Load:
    """Every client has a connection that stays open, and sends its next request when the last one is answered. The answers are
    not parsed: what the client costs, it takes from the server."""
    latencies: list[float] = []

    def client(share: list[bytes]) -> None:
        with connect(port) as connection:
            for message in share:
                start = time.perf_counter()
                exchange(connection, message)
                latencies.append(time.perf_counter() - start)

    messages = [request(route, body) for body in bodies]
    threads = [threading.Thread(target=client, args=(messages[i::clients],)) for i in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    if len(latencies) != len(bodies):
        raise RuntimeError(f"{len(bodies) - len(latencies)} of {len(bodies)} requests to {route} were not answered")
    return Load(len(bodies) / seconds, latencies)
