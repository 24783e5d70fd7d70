#!/usr/bin/env bash
# Makes .venv in the repository root: pinned packages, this package, patched SGLang. Safe to run again.
# With --sglang 0.5.23: .venv-0.5.23 instead, from requirements-0.5.23.lock, with that release of SGLang.
# With --packages-only: no more than the pinned packages, from the lock alone (a layer of the Docker image).
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "setup: $1" >&2; exit 1; }

release=0.5.17 venv=.venv lock=requirements.lock packages_only=
while [ $# -gt 0 ]; do
  case $1 in
    --packages-only) packages_only=1 ;;
    --sglang)
      [ $# -gt 1 ] || fail "--sglang needs a release, as in --sglang 0.5.23"
      [ "$2" = "$release" ] || { venv=.venv-$2 lock=requirements-$2.lock; }
      [ -f "$lock" ] || fail "there is no $lock; --sglang takes $release $(ls requirements-*.lock 2>/dev/null \
        | sed -E 's/requirements-(.*)\.lock/or \1/' | tr '\n' ' ')"
      release=$2
      shift ;;
    *) fail "$1 is not known; give --sglang RELEASE, --packages-only or nothing" ;;
  esac
  shift
done
python=$venv/bin/python site=$venv/lib/python3.11/site-packages

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3; do
    [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null \
      && { command -v "$candidate"; return; }
  done
  fail "Python 3.11 is needed and not found; install it (Debian 12: apt-get install python3 python3-venv) or set PYTHON"
}

stamp_now() { cat "$lock" pyproject.toml "patches/$release/manifest.json" | sha256sum | cut -d' ' -f1; }

check_disk() {
  local free_gib
  free_gib=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
  [ "$free_gib" -ge 11 ] || fail "about 11 GiB of disk are needed here and $free_gib GiB are free"
}

make_venv() {
  local base
  base=$(find_python)
  echo "setup: making $venv with $base"
  "$base" -m venv "$venv" || fail "python -m venv failed; on Debian: apt-get install python3-venv"
}

install_packages() {
  [ -d "$site/torch" ] || check_disk
  echo "setup: installing $(grep -vc '^#' "$lock") pinned packages (about 8.6 GB on disk, a few minutes)"
  "$python" -m pip install --no-deps --no-warn-script-location -r "$lock"
}

install_project() { "$python" -m pip install --quiet --no-deps --no-build-isolation -e .; }

apply_patches() {
  "$venv/bin/sglang-layered" patch apply && return
  echo "setup: $venv has an SGLang with other changes, such as an older patch set of ours; installing it anew"
  grep '^sglang==' "$lock" > "$venv/sglang.lock"
  "$python" -m pip install --force-reinstall --no-deps --no-warn-script-location -r "$venv/sglang.lock"
  "$venv/bin/sglang-layered" patch apply
}

exec 9>.setup.lock
flock 9

[ -x "$python" ] && "$python" -c '' 2>/dev/null || make_venv
if [ -n "$packages_only" ]; then
  install_packages
  exit
fi
if [ "$(cat "$venv/.setup-stamp" 2>/dev/null)" != "$(stamp_now)" ]; then
  rm -f "$venv/.setup-stamp"
  install_packages
  install_project
  apply_patches
  "$python" -m compileall -q "$site/sglang/srt" python kernels
  stamp_now > "$venv/.setup-stamp"
fi
"$venv/bin/sglang-layered" patch verify
command -v g++ > /dev/null \
  || echo "setup: g++ is missing: SGLang's sampling penalties need it on CPU; remedy: apt-get install g++" >&2
