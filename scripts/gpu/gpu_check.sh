#!/bin/sh
# First minute on the GPU host, after install.sh and ". TARGET/env.sh": does each kind of kernel load and compute?
exec python3 "$(dirname "$0")/../../test/gpu/first_check.py"
