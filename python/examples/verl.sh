#!/usr/bin/env bash
# PPO in verl's legacy trainer with a reward for every token; what else the run needs comes as further arguments.
set -euo pipefail
export QRM_URL=${QRM_URL:-http://127.0.0.1:8080} QRM_ALIGNMENT=${QRM_ALIGNMENT:-ids}
# Ray's workers have to see them.
environment=()
for name in QRM_URL QRM_ALIGNMENT QRM_MODEL QRM_REWARD; do
  [ -z "${!name:-}" ] || environment+=("+ray_kwargs.ray_init.runtime_env.env_vars.$name=${!name}")
done
# Of a Q-RM a token is credited with its own reward; outcome and step rewards want verl's γ and λ, which are 1.
exec python3 -m verl.trainer.main_ppo \
  trainer.use_v1=False algorithm.adv_estimator=gae algorithm.gamma=0.0 algorithm.lam=0.0 \
  actor_rollout_ref.rollout.agent.agent_loop_manager_class=qrm_client.adapters.verl.TokenRewardManager \
  "${environment[@]}" \
  "$@"
