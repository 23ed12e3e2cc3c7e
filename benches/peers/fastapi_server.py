"""What one would write to serve such rewards with FastAPI and transformers: fastapi_server.py MODEL --port N --threads N

POST /score {"prompt": [ids], "response": [ids]} → {"rewards": [log φ of each response token]}
"""

import argparse
import asyncio
from concurrent.futures import ThreadPoolExecutor

import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from transformers import AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--threads", type=int, required=True)
args = parser.parse_args()
torch.set_num_threads(args.threads)
model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
head = model.get_output_embeddings()
# One request at a time has all cores: several would only take them from each other. The event loop stays free meanwhile.
scoring = ThreadPoolExecutor(max_workers=1)
app = FastAPI()


class Request(BaseModel):
    prompt: list[int]
    response: list[int]


@app.get("/ready")
def ready() -> dict[str, str]:
    return {"status": "ready"}


@app.post("/score")
async def score(request: Request) -> JSONResponse:
    rewards = await asyncio.get_running_loop().run_in_executor(scoring, log_phi, request.prompt, request.response)
    return JSONResponse({"rewards": rewards})


@torch.inference_mode()
def log_phi(prompt: list[int], response: list[int]) -> list[float]:
    # Of the last token only the id is needed.
    hidden = model.base_model(torch.tensor([prompt + response[:-1]]), use_cache=False).last_hidden_state
    logits = head(hidden[0, len(prompt) - 1 :])
    return (logits.gather(1, torch.tensor(response)[:, None])[:, 0] - logits.logsumexp(-1)).tolist()


if __name__ == "__main__":
    uvicorn.run(app, port=args.port, log_level="warning")
