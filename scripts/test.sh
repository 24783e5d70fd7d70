#!/usr/bin/env bash
# Sets everything up, then: checks, and every test that this machine can run. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
scripts/check
exec .venv/bin/python -m pytest "$@"
