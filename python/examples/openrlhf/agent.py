"""For --train.agent_func_path: samples, then asks for a reward of every token."""

from qrm_client.adapters.openrlhf import agent_executor

AgentExecutor = agent_executor()
