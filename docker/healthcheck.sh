#!/bin/sh
# Exits with 0 when the server or the router of this container answers.
exec curl --fail --silent --output /dev/null --max-time 8 "http://127.0.0.1:${PORT:-30000}/health"
