"""One small file for each RL framework. Each says how a policy's tokens stay aligned with the rewards:

``ids``    the policy has the reward model's tokenizer: its ids go to the server as they are.
``spans``  it has another: its ids become text once, and their byte ranges go along (see :mod:`qrm_client.spans`).

Text that a framework has decoded before the adapter sees it gives whole-answer scores only.

- :mod:`.trl`, :mod:`.verl`, :mod:`.openrlhf`, :mod:`.slime`.
- :mod:`.align`: the two ways, for all of them. :mod:`.messages`: chat messages as the server takes them.
- :mod:`.rollout`: many answers, in as many requests as it takes.
- :mod:`.environment`: settings of those that get none from their framework.
"""
