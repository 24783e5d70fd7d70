#!/usr/bin/env bash
# Set up, then serve one model in three modes and compare them. Options go to `sglang-layered quickstart`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
exec .venv/bin/sglang-layered quickstart "$@"
