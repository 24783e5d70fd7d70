# Sourced: two lanes of tests side by side, one pytest after another in each.
pytest=(.venv/bin/python -m pytest)

lane() { # takes the arguments of each pytest as one string
  trap 'kill $! 2> /dev/null; exit 1' TERM
  local failed=0 tests
  for tests in "$@"; do
    # shellcheck disable=SC2086
    "${pytest[@]}" $tests &
    wait $! || failed=1
  done
  exit "$failed"
}

both_lanes() { # takes the names of two arrays; what the second one printed comes afterwards
  local -n one=$1 two=$2
  local log failed=0
  log=$(mktemp)
  lane "${one[@]}" &
  first=$!
  lane "${two[@]}" > "$log" 2>&1 &
  second=$!
  trap 'kill "$first" "$second" 2> /dev/null || true' EXIT
  trap 'exit 130' INT TERM
  wait "$first" || failed=1
  wait "$second" || failed=1
  cat "$log"
  rm -f "$log"
  return "$failed"
}
