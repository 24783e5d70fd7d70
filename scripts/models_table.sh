#!/usr/bin/env bash
# Checks every model family against SGLang and Hugging Face and prints the table of docs/models.md.
# Options go to the check: --turns 20 is a long run.
set -euo pipefail
cd "$(dirname "$0")/.."
results=$(mktemp)
.venv/bin/python test/models/family_run.py "$results" "$@"
.venv/bin/python test/models/families_table.py "$results"
