#!/bin/sh
# Makes .venv from the pinned requirements: `install.sh runtime` for ./run, `install.sh dev` for ./test.
#
# Silent and fast when nothing has changed. uv does the work; pip does it where uv cannot be had. Nothing is written
# outside this directory but the installers' own caches. What a developer added to .venv by hand stays.
set -eu

group=$1
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd "$root"

case $group in
runtime) requirements=requirements/runtime.txt ;;
dev) requirements=requirements/dev.txt ;; # which holds runtime.txt, too
*) echo "install.sh: got '$group', expected runtime or dev" >&2 && exit 2 ;;
esac

wanted="$(cat pyproject.toml requirements/install.sh "$requirements" | cksum) $root"
stamp=.venv/.installed-$group
unfinished=.tools/unfinished # there while .venv is being changed: a .venv found with it is not to be trusted

is_current() {
    [ ! -e "$unfinished" ] && [ -x .venv/bin/python ] && [ -x .venv/bin/backprop ] &&
        [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]
}

if is_current; then exit 0; fi

say() { echo "backprop: $*" >&2; }
fail() { say "$@" && exit 1; }

python=
for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$("$candidate" -c 'import sys; print(sys.executable)') && break
    fi
done
if [ -z "$python" ]; then
    command -v python3 >/dev/null || fail "python3 is missing: install the Debian package python3"
    fail "Python 3.11 or newer is needed, and python3 is $(python3 -c 'import platform; print(platform.python_version())')"
fi
if "$python" -m pip --version >/dev/null 2>&1; then
    has_pip=yes
elif "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    has_pip=no
else
    fail "$python has no pip: install the Debian package python3-pip (or python3-venv)"
fi

# One set-up at a time. The lock belongs to descriptor 9, so it ends with this script and its children, however they end.
mkdir -p .tools
exec 9>.tools/lock
"$python" -c '
import fcntl, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("backprop: waiting for another set-up to end", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
'
if is_current; then exit 0; fi

quiet=-q
if [ -t 2 ]; then quiet=; fi
say "setting up .venv (once)"

# Scripts in .venv name its place: one that was moved is as good as none.
place=$(cat .venv/.place 2>/dev/null || echo "$root")
if [ -e "$unfinished" ] || [ ! -x .venv/bin/python ] || [ "$place" != "$root" ]; then rm -rf .venv; fi
: >"$unfinished"

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1
export UV_PYTHON_DOWNLOADS=never

uv=.tools/uv-$(cksum <requirements/uv.txt | cut -d ' ' -f 1)
if [ "$has_pip" = yes ] && [ ! -x "$uv/bin/uv" ]; then
    rm -rf .tools/uv*
    if "$python" -m pip install -qq --require-hashes --only-binary :all: --target .tools/uv.part \
        -r requirements/uv.txt 2>/dev/null; then # what is wrong with pip, it says again below
        mv .tools/uv.part "$uv"
    fi
fi

# uv does not read pip's configuration: an index that pip was told to use is handed on.
index=$("$python" -m pip config list 2>/dev/null | sed -n "s/^[^=]*\.index-url='\(.*\)'\$/\1/p" | tail -n 1)
if [ -n "$index" ] && [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX="$index"; fi

requirements_are_in=no

with_uv() {
    [ -x "$uv/bin/uv" ] || return 1
    [ -x .venv/bin/python ] || "$uv/bin/uv" venv -q --python "$python" .venv || return 1
    # shellcheck disable=SC2086  # $quiet is one option or none
    "$uv/bin/uv" pip install $quiet --python .venv/bin/python --compile-bytecode --require-hashes -r "$requirements" &&
        requirements_are_in=yes &&
        "$uv/bin/uv" pip install -q --python .venv/bin/python --no-deps --no-build-isolation -e .
}

with_pip() {
    if [ "$has_pip" = yes ]; then
        [ -x .venv/bin/python ] || "$python" -m venv --without-pip .venv || return 1
        pip() { "$python" -m pip --python .venv/bin/python install "$@"; }
    else
        [ -x .venv/bin/python ] || "$python" -m venv .venv || return 1
        pip() { .venv/bin/python -m pip install "$@"; }
    fi
    # shellcheck disable=SC2086
    pip ${quiet:+-qq} --require-hashes -r "$requirements" &&
        requirements_are_in=yes &&
        pip -q --no-deps --no-build-isolation -e .
}

if ! with_uv; then
    say "uv cannot be had, or failed: pip does it instead, which takes longer"
    if ! with_pip; then
        if [ $requirements_are_in = yes ]; then rm -f "$unfinished"; fi
        fail "the set-up failed; what went wrong stands above. Call it again when that is mended"
    fi
fi

echo "$root" >.venv/.place
echo "$wanted" >"$stamp"
rm -f "$unfinished"
