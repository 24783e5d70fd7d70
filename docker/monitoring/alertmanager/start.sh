#!/bin/sh
# Alertmanager reads no environment: write the address of who hears of alerts into a copy of its configuration.
set -eu
made=${TMPDIR:-/tmp}/alertmanager.yml
if [ -z "${ALERT_WEBHOOK_URL:-}" ]; then
    echo "ALERT_WEBHOOK_URL is not set: alerts are shown on Alertmanager's page (port 9093) and reach nobody" >&2
fi
url=$(printf '%s' "${ALERT_WEBHOOK_URL:-http://alert-webhook.invalid/}" | sed 's/[&|\\]/\\&/g')
sed "s|http://alert-webhook.invalid/|$url|" "$(dirname "$0")/alertmanager.yml" > "$made"
exec alertmanager --config.file="$made" "$@"
