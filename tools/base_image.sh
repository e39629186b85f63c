#!/bin/sh
# Prints the name of a Python image to build on: $PYTHON_IMAGE, else what is here already, else what
# can be pulled, else one that is made here of Debian's packages, from the mirror that this machine's
# apt uses and with the certificates that this machine trusts. `base_image.sh pulled` makes none.
set -eu
public=python:3.11-slim
local=engineroom-test/python:3.11
suite=${SUITE:-bookworm}
if [ -n "${PYTHON_IMAGE:-}" ]; then
    echo "$PYTHON_IMAGE"
    exit
fi
for image in "$public" "$local"; do
    if docker image inspect "$image" >/dev/null 2>&1; then
        echo "$image"
        exit
    fi
done
if timeout 120 docker pull "$public" >&2; then
    echo "$public"
    exit
fi
if [ "${1:-}" = pulled ]; then
    exit 69
fi
if [ "$(id -u)" != 0 ] || ! command -v debootstrap >/dev/null; then
    echo "missing: debootstrap, and to be root (no registry has $public for us)" >&2
    exit 69
fi
# Others' lists are no mirrors of Debian; where none is, debootstrap takes its own.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' \
    "Codename: $suite" 'Component: main' | head -n 1)
root=$(mktemp -d "${TMPDIR:-/tmp}/engineroom-base.XXXXXX")
trap 'rm -rf "$root"' EXIT
echo "making $local ..." >&2
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip \
    "$suite" "$root" ${mirror:+"$mirror"} >"$root.log" 2>&1 || {
    tail -n 5 "$root.log" >&2
    exit 69
}
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/doc/* \
    "$root"/usr/share/man/* "$root"/usr/share/locale/* "$root.log"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
tar -C "$root" -c . | docker import \
    -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8' \
    -c 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt' \
    -c 'CMD ["python3"]' - "$local" >&2
echo "$local"
