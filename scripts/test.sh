#!/usr/bin/env bash
# Sets everything up, then: checks, and every test that this machine can run; what steps the scheduler runs a second
# time without SGLang's overlap. With arguments: they go to pytest, and it runs once.
# Two lanes side by side, one pytest after another in each. Servers that are shared live as long as their pytest:
# those of five configurations are in the first one, so that more servers at once never fill the memory. What the
# second lane printed comes afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
scripts/check
pytest=(.venv/bin/python -m pytest)
if [ $# -gt 0 ]; then
    exec "${pytest[@]}" "$@"
fi
lane() { # in the background; takes the arguments of each pytest as one string
    trap 'kill $! 2> /dev/null; exit 1' TERM
    failed=0
    for tests in "$@"; do
        # shellcheck disable=SC2086
        "${pytest[@]}" $tests &
        wait $! || failed=1
    done
    exit "$failed"
}
sharing=$(printf 'test/e2e/test_%s.py ' bench_run equality faults feature_off fuzz)
beside='test/monitoring test/soak test/e2e/test_reproduce.py'
log=$(mktemp)
failed=0
lane "$sharing" "test/e2e $(printf -- '--ignore=%s ' $sharing $beside)" &
first=$!
lane "test --ignore=test/e2e --ignore=test/monitoring --ignore=test/soak" "$beside" > "$log" 2>&1 &
second=$!
trap 'kill "$first" "$second" 2> /dev/null || true; rm -f "$log"' EXIT
trap 'exit 130' INT TERM
wait "$first" || failed=1
wait "$second" || failed=1
cat "$log"
no_scheduler=(--ignore=test/runner/test_decode_graphs.py --ignore=test/runner/test_server_flags.py)
"${pytest[@]}" test/runner --without-overlap --numprocesses 2 --dist loadfile "${no_scheduler[@]}" || failed=1
exit "$failed"
