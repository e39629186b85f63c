#!/bin/sh
# A Docker Engine for the tests.
#   docker_engine.sh install                    Debian's, with Compose and what makes a base image,
#                                               where something is missing and root may install
#   docker_engine.sh with COMMAND ...           runs it with the machine's own, which is started for it
#                                               where none answers, and stopped afterwards
#   docker_engine.sh start FOLDER [OPTION ...]  one of its own, everything below FOLDER; its address
#   docker_engine.sh bridge NAME ADDRESS        a bridge for one that runs beside another
set -eu

# Waits up to a minute until `"$@"` works; else shows the end of $log, and ends process $pid, too.
wait_for() {
    for _ in $(seq 600); do
        "$@" && return
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    tail -n 5 "$log" >&2
    kill "$pid" 2>/dev/null || true
    exit 70
}

answers() {
    docker version >/dev/null 2>&1
}

case $1 in
install)
    missing=
    command -v dockerd >/dev/null 2>&1 || missing="docker.io iptables"
    docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null 2>&1 ||
        missing="$missing docker-compose"
    command -v debootstrap >/dev/null 2>&1 || missing="$missing debootstrap"
    [ -n "$missing" ] || exit 0
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || {
        echo "missing (Debian, Ubuntu: apt install ...):" $missing >&2
        exit 69
    }
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -qq -y --no-install-recommends $missing >/dev/null 2>&1 ||
        { apt-get update -qq && apt-get install -qq -y --no-install-recommends $missing; } >&2
    ;;
with)
    shift
    pid=
    if ! answers; then
        [ "$(id -u)" = 0 ] && command -v dockerd >/dev/null 2>&1 || {
            echo "missing: a Docker Engine (tools/docker_engine.sh install)" >&2
            exit 69
        }
        log=${TMPDIR:-/tmp}/engineroom-dockerd.log
        dockerd >"$log" 2>&1 </dev/null &
        pid=$!
        wait_for answers
    fi
    code=0
    "$@" || code=$?
    if [ -n "$pid" ]; then
        kill "$pid"
        wait "$pid" || true
    fi
    exit "$code"
    ;;
start)
    folder=$2
    shift 2
    mkdir -p "$folder"
    address="unix://$folder/docker.sock" log=$folder/dockerd.log
    dockerd --host "$address" --data-root "$folder/data" --exec-root "$folder/exec" \
        --pidfile "$folder/docker.pid" "$@" >>"$log" 2>&1 </dev/null &
    pid=$!
    listens() { [ -S "$folder/docker.sock" ] && [ -s "$folder/docker.pid" ]; }
    wait_for listens
    echo "$address"
    ;;
bridge)
    # Without a bridge of its own it would take docker0, with `none` it would remove it: another's.
    ip link add "$2" type bridge
    ip addr add "$3" dev "$2"
    ip link set "$2" up
    ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 64
    ;;
esac
