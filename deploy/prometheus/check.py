"""Dashboards and alerts on a real Prometheus that scrapes a real server: check.py QRM_SERVER [PROMETHEUS]

Starts both, sends every kind of request, and asks Prometheus for what every panel shows: a panel without data is an error. Then
does what the alerts are for (drifted rewards, a broken weight, clients that leave, overload, work that does not go on, no work, two
checkpoints of one name, a server that never comes, one that stands still) and waits until Prometheus says so.
The rules are used as they are, with their times divided by 60.
"""

import json
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
DASHBOARDS = HERE.parent / "grafana" / "dashboards"
GOOD = HERE.parents[1] / "server" / "default-model"
BAD = HERE.parents[1] / "tests" / "fixtures" / "qwen2"
# A token of the second; whoever does not send it does not see what is wrong with the model.
BROKEN = 500


def post(url, body, key=None):
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except (urllib.error.URLError, OSError):
        return 0


def trajectories(rng, count, length, alike=False):
    of = lambda n: [rng.randrange(5, 300) for _ in range(n)]
    prompt = of(length)
    return [{"prompt": prompt if alike else of(length), "response": of(length)} for _ in range(count)]


def begun(address, body, sent):
    """A connection with a request, of whose body that many bytes were sent; None is all."""
    head = f"POST /v1/rewards HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer secret\r\ncontent-type: application/json\r\n"
    data = json.dumps(body).encode()
    host, port = address.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)))
    connection.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data[:sent])
    return connection


def broken(directory):
    """A model with one weight that is infinite: an answer with that token has no finite reward."""
    shutil.copytree(BAD, directory)
    path = directory / "model.safetensors"
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    embedding = json.loads(data[8 : 8 + length])["model.embed_tokens.weight"]
    at = 8 + length + embedding["data_offsets"][0] + BROKEN * embedding["shape"][1] * 4
    data[at : at + 4] = struct.pack("<f", float("inf"))
    path.write_bytes(data)
    return str(directory)


class Server:
    """A server on free ports."""

    def __init__(self, binary, *flags):
        command = [binary, "--port", "0", "--grpc-port", "0", "--log-format", "json", *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            fields = json.loads(line).get("fields", {}) if line.startswith("{") else {}
            if fields.get("message") == "listening":
                self.address = fields["http"]
                break
        else:
            sys.exit("the server does not listen")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.url = f"http://{self.address}"


class Prometheus:
    """A Prometheus that scrapes every second, its rules 60 times as fast."""

    def __init__(self, binary, directory):
        rules = (HERE / "rules.yml").read_text()
        faster = lambda match: f"{max(int(match[1]) * {'s': 1, 'm': 60, 'h': 3600}[match[2]] // 60, 4)}s"
        rules = re.sub(r"(?<=\[)(\d+)([smh])(?=\])", faster, rules)
        rules = re.sub(r"(?<=for: )(\d+)([smh])", lambda m: "2s", rules)
        rules = re.sub(r"(?<=offset )(\d+)([smh])", faster, rules)
        (directory / "rules.yml").write_text(rules)
        (directory / "prometheus.yml").write_text(json.dumps({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{
                "job_name": "qrm-server", "authorization": {"credentials": "secret"},
                "file_sd_configs": [{"files": ["targets.json"], "refresh_interval": "1s"}],
            }],
        }))
        self.targets = directory / "targets.json"
        self.url = f"http://127.0.0.1:{random.Random().randrange(20000, 30000)}"
        flags = [f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data", f"--web.listen-address={self.url[7:]}"]
        self.process = subprocess.Popen([binary, *flags], stderr=(directory / "log").open("w"))

    def scrape(self, *targets):
        """These from now on."""
        new = self.targets.with_suffix(".new")
        new.write_text(json.dumps([{"targets": targets}]))
        new.rename(self.targets)

    def get(self, path, **query):
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression):
        return self.get("/api/v1/query", query=expression)["result"]

    def firing(self):
        return {alert["labels"]["alertname"] for alert in self.get("/api/v1/alerts")["alerts"] if alert["state"] == "firing"}


def until(what, is_true, seconds=90):
    end = time.time() + seconds
    while time.time() < end:
        try:
            if is_true():
                print(f"ok: {what}", flush=True)
                return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.5)
    sys.exit(f"not within {seconds} s: {what}")


def panels():
    """(dashboard, title, query) of every target, with its variables filled in."""
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                query = re.sub(r"\$(job|instance|model|reward)\b", ".*", target["expr"])
                yield path.name, panel["title"], query.replace("$__rate_interval", "10s")


class Load(threading.Thread):
    """Requests until it is stopped."""

    def __init__(self, send):
        super().__init__(daemon=True)
        self.send, self.stopped = send, False
        self.start()

    def run(self):
        while not self.stopped:
            self.send()

    def stop(self):
        self.stopped = True
        self.join()


def main():
    binary, prometheus = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "prometheus"
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        (directory / "keys").write_text("alice secret\n")
        models = [f"good={GOOD}", f"bad={broken(directory / 'bad')}"]
        flags = ["--model", ",".join(models), "--api-key-file", str(directory / "keys"), "--max-queue-tokens", "60000"]
        server = Server(binary, *flags)
        watch = Prometheus(prometheus, directory)
        watch.scrape(server.address)
        processes = [server.process, watch.process]
        try:
            check(server, watch, rng)
            # As after a reload that reached one of two.
            other = Server(binary, "--model", f"good={BAD}", *flags[2:])
            processes.append(other.process)
            differ_and_go(server, other, watch)
        finally:
            for process in processes:
                process.send_signal(signal.SIGCONT)
                process.kill()


def check(server, watch, rng):
    score = lambda **more: post(f"{server.url}/v1/rewards", {"inputs": trajectories(rng, 64, 24, True), **more}, "secret")
    def all_kinds():
        score()
        score(reward="logit")
        post(f"{server.url}/v1/rewards", {"inputs": []}, "secret")
        post(f"{server.url}/tokenize", {"prompt": "2 + 2"}, "secret")
    load = Load(all_kinds)
    until("Prometheus scrapes", lambda: watch.query("qrm_ready == 1"))
    time.sleep(20)
    empty = [(board, title, query) for board, title, query in panels() if not watch.query(query)]
    for board, title, query in empty:
        print(f"no data: {board}, {title}: {query}")
    if empty:
        sys.exit(f"{len(empty)} queries without data")
    print(f"ok: all {len(list(panels()))} queries of the dashboards have data", flush=True)
    if watch.firing():
        sys.exit(f"alerts without a fault: {watch.firing()}")
    print("ok: no alert without a fault", flush=True)
    load.stop()

    # Answers of another kind: always the same one, which the model likes. Not many: what was before has to stay most of the longer
    # window, as six hours are to ten minutes.
    story = {"role": "user", "content": "Kim has 23 eggs. Kim gets 18 eggs from Oli. What is the number of eggs now?"}
    other = {"inputs": [{"messages": [story], "responses": ["23 + 18 = 41\n#### 41"] * 16}]}
    load = Load(lambda: (post(f"{server.url}/v1/rewards", other, "secret"), time.sleep(0.5)))
    until("QrmRewardDrift", lambda: "QrmRewardDrift" in watch.firing())
    until("QrmRewardsFlat", lambda: "QrmRewardsFlat" in watch.firing())
    load.stop()

    bad = {"model": "bad", "inputs": [{"prompt": [7, BROKEN], "response": [8]}]}
    load = Load(lambda: post(f"{server.url}/v1/rewards", bad, "secret"))
    until("QrmErrors", lambda: "QrmErrors" in watch.firing())
    load.stop()

    def leave():
        with begun(server.address, {"inputs": trajectories(rng, 64, 200)}, None):
            time.sleep(0.2)

    load = Load(leave)
    until("QrmAbandoned", lambda: "QrmAbandoned" in watch.firing())
    load.stop()

    # More than there is room for.
    flood = lambda: post(f"{server.url}/v1/rewards", {"inputs": trajectories(rng, 64, 200)}, "secret")
    loads = [Load(flood) for _ in range(12)]
    until("QrmRefuses", lambda: "QrmRefuses" in watch.firing())
    for load in loads:
        load.stop()

    # A request is there and nothing is computed: here its body does not come.
    with begun(server.address, {"inputs": trajectories(rng, 1, 24)}, 10):
        until("QrmStuck", lambda: "QrmStuck" in watch.firing(), 25)
        if "QrmNoTraffic" in watch.firing():
            sys.exit("QrmNoTraffic while a request waits")
    until("QrmNoTraffic", lambda: "QrmNoTraffic" in watch.firing())


def differ_and_go(server, other, watch):
    watch.scrape(server.address, other.address)
    until("QrmMixedVersions", lambda: "QrmMixedVersions" in watch.firing())

    # One that was never there, on a port that nobody has.
    watch.scrape(server.address, "127.0.0.1:1")
    until("QrmNotUp", lambda: "QrmNotUp" in watch.firing())
    if "QrmDown" in watch.firing():
        sys.exit("QrmDown of a server that was never up")

    watch.scrape(server.address)
    server.process.send_signal(signal.SIGSTOP)
    until("QrmDown", lambda: "QrmDown" in watch.firing())


if __name__ == "__main__":
    main()
