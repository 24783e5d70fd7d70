#!/usr/bin/env bash
# Set up, then send thousands of disturbed requests to a layered server at its request limit and check every answer.
# A hang, a late answer, a wrong token or a leak ends it with 1. Options go to test/soak/soak.py (--help lists them).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
PYTHONPATH=test exec .venv/bin/python test/soak/soak.py "$@"
