#!/usr/bin/env bash
# Sets everything up, then: checks, and the tests of the runtime. With --lab: instead tests of the lab and those of the
# runtime that take long (servers of several ranks, kinds of weights and replicas, CUDA emulation, schedulers stepped a
# second time without SGLang's overlap, monitoring, soak), with --all: both. Other arguments go to pytest, and it runs once.
# With --sglang 0.5.23 before them: in that release's environment; without others what shows that it is served as well.
#
# A job is one pytest, or the checks. Three run side by side, on two cores: what serves waits a third of its time, for
# SGLang's own sleeps, clients and scrapes. One worker takes jobs from the front, where those with servers are: these
# run one after another, for the sake of memory. The others take jobs from the back.
set -euo pipefail
cd "$(dirname "$0")/.."

release=() python=.venv/bin/python
if [ "${1:-}" = --sglang ]; then
  release=("$1" "$2") python=.venv-$2/bin/python
  shift 2
fi

# Servers that are shared live as long as their pytest: those of five configurations are in one job, so that more
# servers at once never fill the memory.
sharing=$(printf 'test/e2e/test_%s.py ' bench_run equality faults feature_off fuzz)
several=$(printf 'test/e2e/test_%s.py ' parallel released_checkpoints scale_out) # ranks, kinds of weights, replicas
# Both read the same emulated runs, which live as long as their pytest.
emulated=$(printf 'test/cuda_emulation/test_%s.py ' equal_tokens stream_order)
played=$(printf 'test/lab/test_%s.py ' quickstart_run reproduce) # on servers
apart="test/models/test_families.py test/models/test_ranks.py" # of the other models
runtime_served=("test/e2e $(printf -- '--ignore=%s ' $sharing $several)" "$sharing")
runtime=(
  "test/unit test/kernels test/docker test/patches test/site"
  "$apart"
  "test/models $(printf -- '--ignore=%s ' $apart)"
  "test/runner"
  "scripts/check"
)
lab_served=("$several")
lab=(
  "test/lab test/gpu $(printf -- '--ignore=%s ' $played)"
  "test/cuda_emulation $(printf -- '--ignore=%s ' $emulated)"
  "$emulated"
  "test/monitoring test/soak $played" # a server or two at a time; last it would run alone
  "test/runner --without-overlap"
)
carried=( # by a release beside the default
  "$sharing"
  "test/e2e/test_features.py test/e2e/test_features_own_servers.py"
  "test/models/test_cuts.py test/models/test_speculative.py"
  "test/patches"
  "test/runner"
)
case "${release[*]:+carried}${1:-}" in
  "") jobs=("${runtime_served[@]}" "${runtime[@]}") ;;
  carried) jobs=("${carried[@]}") ;;
  --lab) jobs=("${lab_served[@]}" "${lab[@]}" "scripts/check") ;;
  --all) jobs=("${runtime_served[@]}" "${lab_served[@]}" "${lab[@]}" "${runtime[@]}") ;;
  *) jobs=("$*") ;;
esac

worker() { # runs the jobs that it is told of and that nobody has taken, in that order
  trap 'kill $! 2> /dev/null; exit 1' TERM
  local failed=0 job begun command
  for job; do
    mkdir "$taken/$job" 2> /dev/null || continue
    command="pytest ${jobs[job]}"
    [ "${jobs[job]}" != scripts/check ] || command=scripts/check
    echo "test: $command"
    begun=$SECONDS
    # shellcheck disable=SC2086
    ${command/#pytest/"$python" -m pytest} > "$taken/$job/log" 2>&1 &
    wait $! || failed=1
    echo "test: $((SECONDS - begun)) s: $command" >> "$taken/$job/log"
    flock "$taken" cat "$taken/$job/log"
  done
  exit "$failed"
}

scripts/setup.sh "${release[@]}"
if [ "${#jobs[@]}" = 1 ]; then
  [ -n "${release[*]}" ] || scripts/check
  exec "$python" -m pytest "$@"
fi
taken=$(mktemp -d)
failed=0 workers=()
forth=("${!jobs[@]}") back=()
for job in "${forth[@]}"; do back=("$job" "${back[@]}"); done
for order in "${forth[*]}" "${back[*]}" "${back[*]}"; do
  # shellcheck disable=SC2086
  worker $order &
  workers+=($!)
done
trap 'kill "${workers[@]}" 2> /dev/null || true; rm -rf "$taken"' EXIT
trap 'exit 130' INT TERM
for one in "${workers[@]}"; do wait "$one" || failed=1; done
exit "$failed"
