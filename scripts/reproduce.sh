#!/usr/bin/env bash
# Set up, then measure the paper's tables and figures. Options go to `sglang-layered reproduce`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
exec .venv/bin/sglang-layered reproduce "$@"
