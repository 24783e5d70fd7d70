#!/usr/bin/env bash
# Sets everything up, then: checks, and every test that this machine can run; what steps the scheduler runs a second
# time without SGLang's overlap. With arguments: they go to pytest, and it runs once.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
scripts/check
if [ $# -gt 0 ]; then
    exec .venv/bin/python -m pytest "$@"
fi
.venv/bin/python -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder
no_scheduler=(--ignore=test/runner/test_decode_graphs.py --ignore=test/runner/test_server_flags.py)
exec .venv/bin/python -m pytest test/runner --without-overlap --numprocesses 2 --dist loadfile "${no_scheduler[@]}"
