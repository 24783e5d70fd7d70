#!/bin/sh
# Options start a server with them, `router` and options the router; anything else runs as a command.
# Both listen on all addresses of the container, on $PORT; options given later win.
set -eu

# The first process of a container has orphans to reap. SGLang's own image has no tini; `docker run --init` has another.
if [ $$ -eq 1 ] && command -v tini > /dev/null; then
  exec tini -- "$0" "$@"
fi

[ $# -gt 0 ] || set -- --help
case "$1" in
  -*) exec sglang serve --host 0.0.0.0 --port "${PORT:-30000}" "$@" ;;
  router)
    shift
    exec sglang-router launch --host 0.0.0.0 --port "${PORT:-30000}" "$@"
    ;;
  *) exec "$@" ;;
esac
