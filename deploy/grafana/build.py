"""Writes the dashboards: build.py [--check]. Everything that they show is said here once.

With --check nothing is written, and a dashboard that is not what this would write is an error.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent / "dashboards"
# What every query of a rate looks back over.
RATE = "[$__rate_interval]"
# Routes that score, not probes and scrapes.
SCORES = 'dialect!=""'
FAILED = 'status=~"500|Internal|DataLoss|Unknown"'
ABANDONED = 'status=~"499|Cancelled"'


def rate(metric, labels=""):
    return f'rate({metric}{{job=~"$job",instance=~"$instance"{"," + labels if labels else ""}}}{RATE})'


def share(status):
    """Of the requests that score."""
    return f'(sum({rate("qrm_requests_total", SCORES + "," + status)}) or vector(0)) / sum({rate("qrm_requests_total", SCORES)})'


def gauge(metric, labels=""):
    return f'{metric}{{job=~"$job",instance=~"$instance"{"," + labels if labels else ""}}}'


def quantile(q, metric, by="", labels=""):
    return f'histogram_quantile({q}, sum by (le{"," + by if by else ""}) ({rate(metric + "_bucket", labels)}))'


def quantiles(metric, by="", labels=""):
    legend = " {{" + by + "}}" if by else ""
    return [(quantile(q, metric, by, labels), f"p{round(q * 100)}{legend}") for q in (0.5, 0.95, 0.99)]


def signed(metric, by, labels=""):
    """The mean of what has both signs: the sum of a histogram must not fall."""
    total = f'(sum by ({by}) ({rate(metric + "_gains_total", labels)}) - sum by ({by}) ({rate(metric + "_losses_total", labels)}))'
    return f'{total} / sum by ({by}) ({rate(metric + "_count", labels)})'


def mean(metric, by, labels=""):
    return f'sum by ({by}) ({rate(metric + "_sum", labels)}) / sum by ({by}) ({rate(metric + "_count", labels)})'


def deviation(metric, by, labels=""):
    count = f'sum by ({by}) ({rate(metric + "_count", labels)})'
    squares = f'sum by ({by}) ({rate(metric + "_squares_total", labels)})'
    return f"sqrt(clamp_min({squares} / {count} - ({signed(metric, by, labels)})^2, 0))"


# (title, what it is for, unit, [(query, legend)]); a string begins a row.
HEALTH = [
    "Requests",
    ("Requests", "Answered, by dialect.", "reqps", [(f'sum by (dialect) ({rate("qrm_requests_total", SCORES)})', "{{dialect}}")]),
    ("Requests by model and status", "Refusals have statuses of their own.", "reqps", [
        (f'sum by (model, status) ({rate("qrm_requests_total")})', "{{model}} {{status}}")]),
    ("Errors", "Share of requests that the server failed on, and that their clients left, of those that score.", "percentunit", [
        (share(FAILED), "failed"), (share(ABANDONED), "left")]),
    ("Time to the answer", "From a request's head to its answer.", "s", quantiles("qrm_request_seconds", "route")),
    ("In flight", "Requests not yet answered.", "short", [(f'sum by (route) ({gauge("qrm_requests_in_flight")})', "{{route}}")]),
    ("By key", "Tokens read, by the name of their key; nothing where there are no keys.", "short", [
        (f'sum by (key) ({rate("qrm_key_tokens_total")})', "{{key}} tokens/s"),
        (f'sum by (key) ({rate("qrm_requests_total")})', "{{key}} requests/s")]),
    "Saturation",
    ("Queue, tokens", "Of trajectories not yet in a batch. What to scale on.", "short", [
        (f'sum by (instance) ({gauge("qrm_queue_tokens")})', "{{instance}}")]),
    ("Queue, requests", "With trajectories not yet in a batch.", "short", [
        (f'sum by (instance) ({gauge("qrm_queue_requests")})', "{{instance}}")]),
    ("Refused", "For want of room.", "reqps", [(f'sum by (instance) ({rate("qrm_queue_refused_total")})', "{{instance}}")]),
    ("Where the time goes", "Of a request: tokenising, waiting; of a batch: computing.", "s", [
        (quantile(0.5, "qrm_tokenize_seconds"), "tokenise p50"), (quantile(0.99, "qrm_tokenize_seconds"), "tokenise p99"),
        (quantile(0.5, "qrm_queue_seconds"), "wait p50"), (quantile(0.99, "qrm_queue_seconds"), "wait p99"),
        (quantile(0.5, "qrm_compute_seconds"), "compute p50"), (quantile(0.99, "qrm_compute_seconds"), "compute p99")]),
    ("Busy", "Share of the time in which a worker computes.", "percentunit", [
        (f'sum by (instance) ({rate("qrm_compute_seconds_sum")})', "{{instance}}")]),
    ("Batches", "What a batch costs, of what it may; and its unique tokens.", "short", [
        (mean("qrm_batch_fill", "instance"), "fill {{instance}}"), (quantile(0.5, "qrm_batch_tokens"), "tokens p50")]),
    "Tokens",
    ("Tokens", "The decoder ran the computed ones; the others were paid for already. Shared ones include the prefix cache's.", "short", [
        (f'sum({rate("qrm_computed_tokens_total")})', "computed"), (f'sum({rate("qrm_shared_tokens_total")})', "shared"),
        (f'sum({rate("qrm_prefix_cache_hit_tokens_total")})', "prefix cache"),
        (f'sum({rate("qrm_joined_tokens_total")})', "joined")]),
    ("Prefix cache", "Keys and values that are kept.", "bytes", [(f'sum by (instance) ({gauge("qrm_prefix_cache_bytes")})', "{{instance}}")]),
    ("Prefix cache, evicted", "Tokens dropped for newer ones.", "short", [
        (f'sum by (instance) ({rate("qrm_prefix_cache_evicted_tokens_total")})', "{{instance}}")]),
    "Process",
    ("Ready", "1 while requests are taken; and by model whether its worker lives.", "short", [
        (f'min by (instance) ({gauge("qrm_ready")})', "{{instance}}"),
        (f'min by (model) ({gauge("qrm_worker_alive")})', "worker of {{model}}")]),
    ("Failures", "Worker restarts, batches that were halved, trajectories given up.", "short", [
        (f'sum by (instance) ({rate("qrm_worker_restarts_total")})', "restarts {{instance}}"),
        (f'sum by (instance) ({rate("qrm_failed_batches_total")})', "batches {{instance}}"),
        (f'sum by (instance) ({rate("qrm_failed_trajectories_total")})', "trajectories {{instance}}")]),
    ("Checkpoints", "What is served: a reload shows as another version.", "short", [
        (f'sum by (model, version, architecture, head) ({gauge("qrm_model_info")})', "{{model}} {{head}} {{version}}"),
        (f'sum by (model, result) ({rate("qrm_reloads_total")})', "{{model}} reloads {{result}}")]),
    ("Memory", "Resident, and bodies of requests and answers under way.", "bytes", [
        (f'sum by (instance) ({gauge("process_resident_memory_bytes")})', "resident {{instance}}"),
        (f'sum by (instance) ({gauge("qrm_request_bytes")})', "bodies {{instance}}")]),
    ("CPU", "Cores in use.", "short", [(f'sum by (instance) ({rate("process_cpu_seconds_total")})', "{{instance}}")]),
    ("Connections", "Open files, and tasks of the server.", "short", [
        (f'sum by (instance) ({gauge("process_open_fds")})', "files {{instance}}"),
        (f'sum by (instance) ({gauge("qrm_tasks")})', "tasks {{instance}}")]),
]

OF = 'model=~"$model"'
REWARD = 'model=~"$model",reward=~"$reward"'
BOTH = "model, reward"
LEGEND = "{{model}} {{reward}}"
REWARDS = [
    "Rewards",
    ("Score", "Mean of trajectories' scores: what the policy is paid.", "short", [(signed("qrm_trajectory_score", BOTH, REWARD), LEGEND)]),
    ("Score, spread", "Standard deviation over trajectories. Near 0 there is nothing to learn from.", "short", [
        (deviation("qrm_trajectory_score", BOTH, REWARD), LEGEND)]),
    ("Drift", "Mean score of the last 10 minutes, from that of 6 hours, in their standard deviations.", "short", [
        ('qrm:trajectory_score:drift_sigmas{job=~"$job",model=~"$model",reward=~"$reward"}', LEGEND)]),
    ("Token reward", "Mean over tokens.", "short", [(signed("qrm_token_reward", BOTH, REWARD), LEGEND)]),
    ("Token reward, spread", "Standard deviation over tokens.", "short", [(deviation("qrm_token_reward", BOTH, REWARD), LEGEND)]),
    ("Clamped", "Share of rewards that rounding had put above 0.", "percentunit", [
        (f'sum by ({BOTH}) ({rate("qrm_token_reward_clamped_total", REWARD)}) / sum by ({BOTH}) ({rate("qrm_token_reward_count", REWARD)})', LEGEND)]),
    ("Scores", "How they are spread.", "heatmap", [(f'sum by (le) ({rate("qrm_trajectory_score_bucket", REWARD)})', "{{le}}")]),
    ("Token rewards", "How they are spread.", "heatmap", [(f'sum by (le) ({rate("qrm_token_reward_bucket", REWARD)})', "{{le}}")]),
    "Answers",
    ("Response length", "Tokens. Answers that grow with the reward are a warning.", "short",
        quantiles("qrm_response_tokens", "model", OF) + [(mean("qrm_response_tokens", "model", OF), "mean {{model}}")]),
    ("Entropy", "Of the model's distribution at the policy's tokens: high where it is asked what it does not know.", "short", [
        (mean("qrm_token_entropy_nats", "model", OF), "{{model}}")]),
    ("Min-entropy", "logsumexp - max: how little sure the model is of its favourite.", "short", [
        (mean("qrm_token_min_entropy_nats", "model", OF), "{{model}}")]),
    ("Trajectories", "Scored.", "short", [(f'sum by ({BOTH}) ({rate("qrm_trajectory_score_count", REWARD)})', LEGEND)]),
]


def variable(name, query):
    return {
        "name": name, "type": "query", "query": {"query": query, "refId": name}, "datasource": {"type": "prometheus", "uid": "prometheus"},
        "includeAll": True, "multi": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}, "refresh": 2, "sort": 1,
    }


def panel(number, spec, x, y):
    title, description, unit, queries = spec
    heat = unit == "heatmap"
    targets = [
        {"refId": chr(ord("A") + i), "expr": query, "legendFormat": legend, "format": "heatmap" if heat else "time_series"}
        for i, (query, legend) in enumerate(queries)
    ]
    body = {
        "id": number, "title": title, "description": description, "type": "heatmap" if heat else "timeseries",
        "datasource": {"type": "prometheus", "uid": "prometheus"}, "gridPos": {"x": x, "y": y, "w": 8, "h": 8}, "targets": targets,
    }
    if heat:
        body["options"] = {"calculate": False, "color": {"scheme": "Blues", "mode": "scheme"}, "yAxis": {"unit": "short"}}
    else:
        body["fieldConfig"] = {"defaults": {"unit": unit, "custom": {"fillOpacity": 8, "showPoints": "never"}}, "overrides": []}
        body["options"] = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    return body


def dashboard(uid, title, specs, variables):
    panels, x, y = [], 0, 0
    for spec in specs:
        number = len(panels) + 1
        if isinstance(spec, str):
            y += 8 if x else 0
            panels.append({"id": number, "type": "row", "title": spec, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}, "panels": []})
            x, y = 0, y + 1
            continue
        panels.append(panel(number, spec, x, y))
        x, y = (x + 8, y) if x < 16 else (0, y + 8)
    return {
        "uid": uid, "title": title, "tags": ["qrm"], "schemaVersion": 39, "editable": True, "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"}, "templating": {"list": variables}, "panels": panels,
    }


def main():
    everywhere = [variable("job", "label_values(qrm_ready, job)"), variable("instance", 'label_values(qrm_ready{job=~"$job"}, instance)')]
    by_model = [*everywhere, variable("model", "label_values(qrm_model_info, model)"), variable("reward", "label_values(qrm_trajectory_score_count, reward)")]
    boards = {
        "health.json": dashboard("qrm-health", "qrm-server: health", HEALTH, everywhere),
        "rewards.json": dashboard("qrm-rewards", "qrm-server: rewards", REWARDS, by_model),
    }
    for name, board in boards.items():
        text, path = json.dumps(board, indent=1) + "\n", HERE / name
        if "--check" not in sys.argv:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{path.name} is not what build.py writes")


if __name__ == "__main__":
    main()
