#!/bin/sh
# Build step of docker/Dockerfile on SGLang's own image, as root: this package, the patches, the user that serves.
# Nothing of the image's Python packages is changed: what this package asks for is there, or the build fails.
set -eu

python=${PYTHON:-python3}
held=$(mktemp)
"$python" -m pip freeze --exclude-editable | grep '==' > "$held"
# The image's Python is the system's own, which Debian's pip leaves alone unless it is told.
PIP_BREAK_SYSTEM_PACKAGES=1 "$python" -m pip install --no-cache-dir --constraint "$held" .
rm "$held"

sglang-layered patch apply
sglang-layered patch verify

useradd --uid 10001 --create-home --shell /usr/sbin/nologin layered
install -d -o layered -g layered /models /results /home/layered/.cache
