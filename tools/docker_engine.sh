#!/bin/sh
# `docker_engine.sh COMMAND...` runs it with a Docker Engine that answers: the one that is there, else
# one that is started for it, where dockerd is installed and we are root, and stopped afterwards.
set -eu
pid=
if ! docker version >/dev/null 2>&1; then
    if [ "$(id -u)" != 0 ] || ! command -v dockerd >/dev/null; then
        echo "missing: a Docker Engine (Debian, Ubuntu: apt install docker.io docker-compose)" >&2
        exit 69
    fi
    log=${TMPDIR:-/tmp}/engineroom-dockerd.log
    dockerd >"$log" 2>&1 &
    pid=$!
    waited=0
    until docker version >/dev/null 2>&1; do
        waited=$((waited + 1))
        if [ "$waited" -gt 60 ] || ! kill -0 "$pid" 2>/dev/null; then
            tail -n 5 "$log" >&2
            exit 69
        fi
        sleep 1
    done
fi
code=0
"$@" || code=$?
if [ -n "$pid" ]; then
    kill "$pid"
    wait "$pid" || true
fi
exit "$code"
