#!/usr/bin/env bash
# Sets everything up, then: checks, and every test of the runtime that this machine can run; what steps the scheduler
# runs a second time without SGLang's overlap. With arguments: they go to pytest, and it runs once.
# The lab's tests and those that take long: scripts/test-lab.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lanes.sh
. scripts/lanes.sh
scripts/setup.sh
scripts/check
if [ $# -gt 0 ]; then
  exec "${pytest[@]}" "$@"
fi
# Servers that are shared live as long as their pytest: those of five configurations are in the first one, so that
# more servers at once never fill the memory.
sharing=$(printf 'test/e2e/test_%s.py ' bench_run equality faults feature_off fuzz)
# shellcheck disable=SC2034
servers=("$sharing" "test/e2e $(printf -- '--ignore=%s ' $sharing test/e2e/test_scale_out.py)")
# shellcheck disable=SC2034
rest=(
  "test/runner"
  "test/unit test/kernels test/docker test/models test/patches"
  "test/runner --without-overlap --ignore=test/runner/test_decode_graphs.py --ignore=test/runner/test_server_flags.py"
)
both_lanes servers rest
