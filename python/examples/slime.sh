#!/usr/bin/env bash
# slime with a reward for every token; what else the run needs comes as further arguments.
set -euo pipefail
export QRM_URL=${QRM_URL:-http://127.0.0.1:8080} QRM_ALIGNMENT=${QRM_ALIGNMENT:-ids}
exec python3 train.py \
  --custom-rm-path qrm_client.adapters.slime.reward --reward-key score \
  --custom-advantage-function-path qrm_client.adapters.slime.advantages \
  "$@"
