"""Groups of sampled answers to word problems, as a GRPO rollout sends them, until it is stopped: load.py URL [GROUPS_PER_SECOND]"""

import http.client
import json
import random
import sys
import time
import urllib.request


def group(rng):
    """Eight answers to one problem, of which one in two is wrong."""
    a, b = rng.randrange(11, 100), rng.randrange(11, 100)
    prompt = f"Kim has {a} eggs. Kim gets {b} eggs from Oli. What is the number of eggs now?"
    answers = [a + b + rng.choice([0, 0, 0, 10, -10, 1]) for _ in range(8)]
    responses = [f"{a} + {b} = {answer}\n#### {answer}" for answer in answers]
    return {"messages": [{"role": "user", "content": prompt}], "responses": responses}


def main():
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    url, rate = sys.argv[1], float(sys.argv[2]) if len(sys.argv) == 3 else 10.0
    rng = random.Random(0)
    while True:
        start = time.monotonic()
        body = json.dumps({"inputs": [group(rng)]}).encode()
        request = urllib.request.Request(f"{url}/v1/rewards", body, {"content-type": "application/json"})
        try:
            urllib.request.urlopen(request, timeout=60).read()
        except (OSError, http.client.HTTPException) as error:
            # It is busy or starts again.
            print(error, flush=True)
            time.sleep(1)
        # Arrivals are as random as those of many clients.
        time.sleep(max(0.0, rng.expovariate(rate) - (time.monotonic() - start)))


if __name__ == "__main__":
    main()
