#!/bin/sh
# Build step of docker/Dockerfile, as root: what the base image lacks, and the user that serves.
# Debian 12 and Ubuntu 24.04; on an image of NVIDIA's (CUDA_VERSION is set there) also the compiler of that version.
set -eu

# libpython3-stdlib: the libraries that Python's own modules are linked with, under the base's names for them.
packages="ca-certificates curl g++ libnuma1 libpython3-stdlib tini"
if [ -n "${CUDA_VERSION:-}" ]; then
  packages="$packages cuda-minimal-build-$(echo "$CUDA_VERSION" | cut -d. -f1,2 | tr . -)"
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update
# shellcheck disable=SC2086  # a list
apt-get install --yes --no-install-recommends $packages
rm -rf /var/lib/apt/lists/*

ldconfig # finds the libpython of /usr/local
useradd --uid 10001 --create-home --shell /usr/sbin/nologin layered
install -d -o layered -g layered /models /results /home/layered/.cache
