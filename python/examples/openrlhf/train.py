"""OpenRLHF's trainer with rewards per token: python train.py ARGUMENTS OF openrlhf.cli.train_ppo_ray

The trainer is an actor of Ray: every process of the job runs `install` when it starts.
"""

import os
import runpy
import sys

import ray

names = ("QRM_URL", "QRM_KEY", "QRM_MODEL", "QRM_REWARD", "QRM_ALIGNMENT", "QRM_TOKEN_WEIGHT")
ray.init(runtime_env={
    "worker_process_setup_hook": "qrm_client.adapters.openrlhf.install",
    "env_vars": {name: os.environ[name] for name in names if name in os.environ},
})
# Of a Q-RM a token is credited with its own reward; outcome and step rewards want a γ of 1 among the arguments.
sys.argv[1:1] = ["--algo.advantage.estimator", "reinforce", "--algo.advantage.gamma", "0"]
runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__")
