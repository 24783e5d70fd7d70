#!/usr/bin/env bash
# Makes .venv in the repository root: pinned packages, this package, patched SGLang. Safe to run again.
# With --packages-only: no more than the pinned packages, from requirements.lock alone (a layer of the Docker image).
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "setup: $1" >&2; exit 1; }

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3; do
    [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null \
      && { command -v "$candidate"; return; }
  done
  fail "Python 3.11 is needed and not found; install it (Debian 12: apt-get install python3 python3-venv) or set PYTHON"
}

stamp_now() { cat requirements.lock pyproject.toml patches/*/manifest.json | sha256sum | cut -d' ' -f1; }

check_disk() {
  local free_gib
  free_gib=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
  [ "$free_gib" -ge 11 ] || fail "about 11 GiB of disk are needed here and $free_gib GiB are free"
}

make_venv() {
  local python
  python=$(find_python)
  echo "setup: making .venv with $python"
  "$python" -m venv .venv || fail "python -m venv failed; on Debian: apt-get install python3-venv"
}

install_packages() {
  [ -d .venv/lib/python3.11/site-packages/torch ] || check_disk
  echo "setup: installing $(grep -vc '^#' requirements.lock) pinned packages (about 8.6 GB on disk, a few minutes)"
  .venv/bin/python -m pip install --no-deps --no-compile --no-warn-script-location -r requirements.lock
}

# pip would compile 34,000 files one after another, in two minutes. In a checkout Python compiles what it imports, once.
# Who runs an image cannot write what it compiles.
compile_all() { .venv/bin/python -m compileall -q -j 0 .venv/lib/python3.11/site-packages > /dev/null || true; }

install_project() { .venv/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .; }

apply_patches() {
  .venv/bin/sglang-layered patch apply && return
  echo "setup: .venv has an SGLang with other changes, such as an older patch set of ours; installing it anew"
  grep '^sglang==' requirements.lock > .venv/sglang.lock
  .venv/bin/python -m pip install --force-reinstall --no-deps --no-compile --no-warn-script-location -r .venv/sglang.lock
  .venv/bin/sglang-layered patch apply
}

exec 9>.setup.lock
flock 9

[ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null || make_venv
if [ "${1:-}" = --packages-only ]; then
  install_packages
  compile_all # some files are no Python, or another's: they are left out
  exit
fi
if [ "$(cat .venv/.setup-stamp 2>/dev/null)" != "$(stamp_now)" ]; then
  rm -f .venv/.setup-stamp
  install_packages
  install_project
  apply_patches
  .venv/bin/python -m compileall -q -j 0 .venv/lib/python3.11/site-packages/sglang python kernels
  stamp_now > .venv/.setup-stamp
fi
.venv/bin/sglang-layered patch verify
command -v g++ > /dev/null \
  || echo "setup: g++ is missing: SGLang's sampling penalties need it on CPU; remedy: apt-get install g++" >&2
