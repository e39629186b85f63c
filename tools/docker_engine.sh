#!/bin/sh
# A Docker Engine for the tests.
#   docker_engine.sh install                    Debian's, where dockerd is missing and root may install
#   docker_engine.sh start FOLDER [OPTION ...]  one of its own, everything below FOLDER; its address
#   docker_engine.sh bridge NAME ADDRESS        a bridge for one that runs beside another
set -eu

case $1 in
install)
    command -v dockerd >/dev/null 2>&1 && exit 0
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || {
        echo "missing: dockerd (Debian, Ubuntu: apt install docker.io)" >&2
        exit 69
    }
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -qq -y --no-install-recommends docker.io iptables >/dev/null 2>&1 ||
        { apt-get update -qq && apt-get install -qq -y --no-install-recommends docker.io iptables; } >&2
    ;;
start)
    folder=$2
    shift 2
    mkdir -p "$folder"
    address="unix://$folder/docker.sock"
    dockerd --host "$address" --data-root "$folder/data" --exec-root "$folder/exec" \
        --pidfile "$folder/docker.pid" "$@" >>"$folder/dockerd.log" 2>&1 </dev/null &
    for _ in $(seq 600); do
        [ -S "$folder/docker.sock" ] && [ -s "$folder/docker.pid" ] && break
        kill -0 $! 2>/dev/null || { tail -3 "$folder/dockerd.log" >&2 && exit 70; }
        sleep 0.1
    done
    echo "$address"
    ;;
bridge)
    # Without a bridge of its own it would take docker0, with `none` it would remove it: another's.
    ip link add "$2" type bridge
    ip addr add "$3" dev "$2"
    ip link set "$2" up
    ;;
esac
