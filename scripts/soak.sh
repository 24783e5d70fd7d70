#!/usr/bin/env bash
# Set up, then send thousands of disturbed requests to a layered server and check every answer. Options go to test/soak/soak.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
exec .venv/bin/python test/soak/soak.py "$@"
