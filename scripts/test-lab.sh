#!/usr/bin/env bash
# Sets everything up, then: tests of the lab, and those of the runtime that take long: monitoring, soak, scale-out.
# With arguments: they go to pytest, and it runs once.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lanes.sh
. scripts/lanes.sh
scripts/setup.sh
if [ $# -gt 0 ]; then
  exec "${pytest[@]}" "$@"
fi
# shellcheck disable=SC2034
servers=("test/monitoring test/soak test/lab/test_reproduce.py test/e2e/test_scale_out.py")
# shellcheck disable=SC2034
lab=("test/lab --ignore=test/lab/test_reproduce.py")
both_lanes servers lab
