#!/bin/sh
# A Docker Engine for the tests.
#   docker_engine.sh install                    what is missing of Debian's, where root may install: an
#                                               engine where none answers, its client, Compose, and
#                                               what makes a base image where none can be pulled
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

have() {
    command -v "$1" >/dev/null 2>&1
}

# Installs packages, or ends with their names where we may not.
get() {
    [ "$(id -u)" = 0 ] && have apt-get || {
        echo "missing (Debian, Ubuntu: apt install ...): $*" >&2
        exit 69
    }
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -qq -y --no-install-recommends "$@" >/dev/null 2>&1 ||
        { apt-get update -qq && apt-get install -qq -y --no-install-recommends "$@"; } >&2
}

case $1 in
install)
    missing=
    answers || have dockerd || missing="docker.io iptables"
    # Where the client is a package of its own, that of the engine does not bring it.
    cli=$(apt-cache pkgnames docker-cli 2>/dev/null | grep -x docker-cli || true)
    have docker || missing="docker.io iptables $cli"
    docker compose version >/dev/null 2>&1 || have docker-compose || missing="$missing docker-compose"
    # shellcheck disable=SC2086 - several words
    [ -z "$missing" ] || get $missing
    have debootstrap || sh "$0" with sh "$(dirname "$0")/base_image.sh" pulled >/dev/null || get debootstrap
    ;;
with)
    shift
    pid= child=
    ended() {
        [ -z "$child" ] || { kill -INT "$child" && wait "$child"; } 2>/dev/null || true
        [ -z "$pid" ] || { kill "$pid" && wait "$pid"; } 2>/dev/null || true
        [ -z "$pid" ] || rm -f "$log"
    }
    trap ended EXIT
    trap 'exit 129' HUP
    trap 'wait "$child" || true; child=; exit 130' INT # from a terminal it has heard of it, too
    trap 'exit 143' TERM
    if ! answers; then
        [ "$(id -u)" = 0 ] && have dockerd || {
            echo "missing: a Docker Engine (tools/docker_engine.sh install)" >&2
            exit 69
        }
        log=$(mktemp "${TMPDIR:-/tmp}/engineroom-dockerd.XXXXXX")
        setsid dockerd >"$log" 2>&1 </dev/null & # a terminal's signals are not for it
        pid=$!
        wait_for answers
    fi
    code=0
    # In the foreground a signal to us would wait for its end; what is put behind ignores some.
    env --default-signal=INT,QUIT "$@" <&0 &
    child=$!
    wait "$child" || code=$?
    child=
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
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 64
    ;;
esac
