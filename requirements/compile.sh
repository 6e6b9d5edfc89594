#!/bin/sh
# Writes requirements/*.txt anew from pyproject.toml and requirements/*.in. `compile.sh --upgrade` takes the newest
# versions allowed; without it, those already pinned stay. The files name no index, and plain pip can install them.
set -eu

cd "$(dirname -- "$0")/.."
requirements/install.sh dev
uv=$(echo .tools/uv-*/bin/uv)
[ -x "$uv" ] || { echo "compile.sh: uv is needed, and pip could not fetch it" >&2 && exit 1; }

compile() {
    output=$1 && shift
    "$uv" pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
        --no-emit-find-links --custom-compile-command requirements/compile.sh --output-file "requirements/$output" "$@"
}

compile uv.txt requirements/uv.in "$@"
compile dev.txt pyproject.toml --extra digits requirements/runtime.in requirements/dev.in "$@"
# ./run and ./test share .venv, so both use the same versions.
compile runtime.txt pyproject.toml --extra digits requirements/runtime.in --constraint requirements/dev.txt

if grep -n '://' requirements/*.txt; then echo "compile.sh: a requirements file names an address" >&2 && exit 1; fi
