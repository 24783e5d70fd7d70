#!/bin/sh
# usage: docker/smoke.sh [SERVER [PROMETHEUS]], addresses as http://127.0.0.1:30000 and http://127.0.0.1:9090
# Waits for a server ($WAIT_S seconds, 1200), asks it for tokens beside others, and looks for layered steps in its
# metrics; with PROMETHEUS also for the server among its targets. Exits with 1 and the reason otherwise.
set -eu

server=${1:-http://127.0.0.1:30000}
has() { grep "$@" > /dev/null; } # to the end: a reader that stops early makes curl complain
fail() { echo "smoke: $1" >&2; exit 1; }
get() { curl --fail --silent --show-error --max-time 300 "$@"; }
ask() { # tokens of the prompt, tokens of the answer
  prompt=$(awk -v n="$1" 'BEGIN { for (i = 0; i < n; i++) printf "%s%d", i ? "," : "", 5 + i % 90 }')
  body="{\"input_ids\":[$prompt],\"sampling_params\":{\"temperature\":0,\"max_new_tokens\":$2,\"ignore_eos\":true}}"
  get --header 'Content-Type: application/json' --data "$body" "$server/generate"
}

left=${WAIT_S:-1200}
until curl --fail --silent --output /dev/null --max-time 10 "$server/health"; do
  left=$((left - 5))
  [ "$left" -gt 0 ] || fail "$server/health does not answer"
  sleep 5
done

get "$server/metrics" | has '^sglang:prefill_mode_info{.*mode="layered".*} 1' || fail "the server is not in layered mode"

decoding=$(mktemp)
ask 20 400 > "$decoding" & # so that the next prompt arrives beside a running request, and is cut into groups
sleep 1
ask 2000 4 | has '"output_ids"' || fail "$server/generate gives no tokens"
wait $! || fail "$server/generate fails for the request that was running"
has '"output_ids"' "$decoding" || fail "$server/generate gives no tokens to the request that was running"
rm "$decoding"

get "$server/metrics" | grep '^sglang:layered_steps_total{.*kind="layered"' | has -v ' 0\.0$' || fail "no step was layered"
if [ $# -gt 1 ]; then
  left=60
  until get "$2/api/v1/query?query=up%7Bjob%3D%22sglang%22%7D" | has '"1"\]'; do
    left=$((left - 5))
    [ "$left" -gt 0 ] || fail "$2 scrapes no server that answers"
    sleep 5
  done
fi
echo "smoke: tokens, layered steps${2:+, scraped}"
