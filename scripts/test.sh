#!/usr/bin/env bash
# Sets everything up, then: checks, and the tests of the runtime. With --lab: instead tests of the lab and those of the
# runtime that take long (servers of several ranks, kinds of weights and replicas, CUDA emulation, schedulers stepped a
# second time without SGLang's overlap, monitoring, soak), with --all: both. Other arguments go to pytest, and it runs once.
#
# A job is one pytest; two run side by side, each takes the next one when it has ended one.
set -euo pipefail
cd "$(dirname "$0")/.."

# Servers that are shared live as long as their pytest: those of five configurations are in one job, so that more
# servers at once never fill the memory.
sharing=$(printf 'test/e2e/test_%s.py ' bench_run equality faults feature_off fuzz)
several=$(printf 'test/e2e/test_%s.py ' parallel released_checkpoints scale_out) # ranks, kinds of weights, replicas
# Both read the same emulated runs, which live as long as their pytest.
emulated=$(printf 'test/cuda_emulation/test_%s.py ' equal_tokens stream_order)
played=$(printf 'test/lab/test_%s.py ' quickstart_run reproduce) # on servers
# The longest first, so that none runs alone at the end; the shared servers when those of e2e have ended.
runtime=(
  "test/e2e $(printf -- '--ignore=%s ' $sharing $several)"
  "test/runner"
  "test/models"
  "test/unit test/kernels test/docker test/patches test/site"
  "$sharing"
)
lab=(
  "$several"
  "test/monitoring test/soak $played"
  "$emulated"
  "test/cuda_emulation $(printf -- '--ignore=%s ' $emulated)"
  "test/runner --without-overlap"
  "test/lab test/gpu $(printf -- '--ignore=%s ' $played)"
)
case "${1:-}" in
  "") jobs=("${runtime[@]}") ;;
  --lab) jobs=("${lab[@]}") ;;
  --all) jobs=("${runtime[@]}" "${lab[@]}") ;;
  *) jobs=("$*") ;;
esac

worker() { # runs jobs that nobody has taken, until none is left
  trap 'kill $! 2> /dev/null; exit 1' TERM
  local failed=0 job begun
  for job in "${!jobs[@]}"; do
    mkdir "$taken/$job" 2> /dev/null || continue
    echo "test: pytest ${jobs[job]}"
    begun=$SECONDS
    # shellcheck disable=SC2086
    .venv/bin/python -m pytest ${jobs[job]} > "$taken/$job/log" 2>&1 &
    wait $! || failed=1
    echo "test: $((SECONDS - begun)) s: pytest ${jobs[job]}" >> "$taken/$job/log"
    flock "$taken" cat "$taken/$job/log"
  done
  exit "$failed"
}

scripts/setup.sh
scripts/check
[ "${#jobs[@]}" -gt 1 ] || exec .venv/bin/python -m pytest "$@"
taken=$(mktemp -d)
failed=0
worker &
first=$!
worker &
second=$!
trap 'kill "$first" "$second" 2> /dev/null || true; rm -rf "$taken"' EXIT
trap 'exit 130' INT TERM
wait "$first" || failed=1
wait "$second" || failed=1
exit "$failed"
