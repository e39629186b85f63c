#!/bin/sh
# Makes .venv with Engine Room in it, once per change of pyproject.toml. `setup.sh serve|test`.
# Says in one line what is missing. Uses uv where it is, pip otherwise.
set -eu
kind=$1
cd "$(dirname "$0")/.."

missing() {
    echo "missing: $*" >&2
    exit 69
}

python=${PYTHON:-python3}
command -v "$python" >/dev/null 2>&1 || missing "python3 (Debian, Ubuntu: apt install python3 python3-venv)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    missing "Python 3.11 or newer, $python is $("$python" -V 2>&1); name another with PYTHON=python3.x"

stamp=.venv/.engineroom-$kind
wanted="$(cat pyproject.toml tools/setup.sh | cksum) $PWD" # a moved checkout needs a new .venv
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && exit 0
command -v c++ >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 || command -v clang++ >/dev/null 2>&1 ||
    missing "a C++ compiler, the llama.cpp engine is built here (Debian, Ubuntu: apt install g++)"
case $(cat .venv/.engineroom-* 2>/dev/null) in
"" | *" $PWD"*) ;;
*) rm -rf .venv ;;
esac

began=$(date +%s)
if [ "$kind" = test ]; then what='.[dev]'; else what='.'; fi
echo "setting up .venv for $kind ..." >&2
if command -v uv >/dev/null 2>&1; then
    [ -x .venv/bin/python ] || uv venv --quiet --python "$python" .venv
    uv pip install --quiet --compile-bytecode --python .venv/bin/python \
        ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} -e "$what" 2>.venv/uv.log ||
        missing "some packages could not be installed (log: .venv/uv.log)"
else
    "$python" -c 'import ensurepip' 2>/dev/null || missing "python3-venv (Debian, Ubuntu: apt install python3-venv), or uv"
    [ -x .venv/bin/pip ] || "$python" -m venv --clear .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e "$what" 2>.venv/pip.log || {
        missing "some packages could not be installed (log: .venv/pip.log)"
    }
fi
echo "$wanted" >"$stamp"
echo "set up in $(($(date +%s) - began)) s" >&2
