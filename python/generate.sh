#!/usr/bin/env bash
# Makes src/qrm_client/reward.desc from proto/qrm/v1/reward.proto; needs grpcio-tools. A test compares.
set -euo pipefail
cd "$(dirname "$0")"
"${PYTHON:-python3}" -m grpc_tools.protoc -I ../proto/qrm/v1 --descriptor_set_out="${1:-src/qrm_client/reward.desc}" reward.proto
