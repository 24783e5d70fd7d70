#!/bin/sh
# First minute on the GPU host, after install.sh and ". TARGET/env.sh": does each kind of kernel load and compute?
exec python3 -m sglang_layered_lab.gpu.first_check
