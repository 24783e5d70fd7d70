#!/usr/bin/env bash
# Sets everything up, then: tests of the lab, and those of the runtime that take long. See scripts/test.sh.
exec "$(dirname "$0")/test.sh" --lab
