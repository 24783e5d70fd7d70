#!/usr/bin/env bash
# Sets everything up, then: checks, and every test that this machine can run; what steps the scheduler runs a second
# time without SGLang's overlap. With arguments: they go to pytest, and it runs once.
# Tests with real servers take turns in one process, since more servers at once do not fit into memory; the others run
# beside them in a second one, whose output comes afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
scripts/check
pytest=(.venv/bin/python -m pytest)
if [ $# -gt 0 ]; then
    exec "${pytest[@]}" "$@"
fi
with_servers=(test/e2e test/monitoring test/soak)
log=$(mktemp)
"${pytest[@]}" test "${with_servers[@]/#/--ignore=}" > "$log" 2>&1 &
others=$!
trap 'kill "$others" 2> /dev/null || true; rm -f "$log"' EXIT
failed=0
"${pytest[@]}" "${with_servers[@]}" || failed=1
wait "$others" || failed=1
cat "$log"
no_scheduler=(--ignore=test/runner/test_decode_graphs.py --ignore=test/runner/test_server_flags.py)
"${pytest[@]}" test/runner --without-overlap --numprocesses 2 --dist loadfile "${no_scheduler[@]}" || failed=1
exit "$failed"
