# Sourced by ./check and ./demo from the top of the checkout: `prepare_environment` makes .venv what uv.lock says,
# from nothing but python3 and pip, and returns at once when nothing changed since the last time.
# shellcheck shell=bash

# A home that is missing or read-only (a bare container user) must not stop pip, npm and uv: they cache in the checkout.
if [ ! -d "${HOME:-}" ] || [ ! -w "$HOME" ]; then
    export HOME="$PWD/.cache/home"
    mkdir -p "$HOME"
fi

# The demo installs a development chain with pip or uv; an environment that uv made has no pip.
export PATH="$PATH:$PWD/.cache/uv-program/bin"

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            PYTHON="$(command -v "$candidate")"
            export PYTHON
            return
        fi
    done
    echo "Python 3.11 or newer is needed and was not found. Install it, or name it: PYTHON=/path/to/python3 $0" >&2
    return 1
}

prepare_environment() {
    find_python || return 1
    local stamp=.venv/bskt-stamp wanted
    wanted="$({ "$PYTHON" --version && echo "$PWD" && cat pyproject.toml uv.lock; } | cksum)"
    if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    echo "Preparing .venv with $("$PYTHON" --version) …" >&2
    rm -f "$stamp"
    install_with_uv || install_with_pip || return 1
    echo "$wanted" >"$stamp"
}

install_with_uv() {
    UV_PYTHON="$PYTHON" ops/uv sync --quiet --locked --all-extras >&2 && return
    echo "uv did not do it; trying pip, which takes the newest versions that pyproject.toml allows." >&2
    return 1
}

install_with_pip() {
    if ! "$PYTHON" -m venv --clear .venv >/dev/null 2>&1; then
        # A Debian python3 without python3-venv lacks ensurepip; its pip can still fill an environment from outside.
        if ! { "$PYTHON" -m venv --clear --without-pip .venv &&
            "$PYTHON" -m pip --python .venv/bin/python install --quiet pip; } >&2; then
            echo "No virtual environment could be made: this Python has neither ensurepip nor pip." >&2
            echo "Install one (Debian, Ubuntu: apt-get install python3-venv) or install uv, and run $0 again." >&2
            return 1
        fi
    fi
    # --group needs pip 25.1.
    .venv/bin/python -m pip install --quiet --upgrade 'pip>=25.1' >&2 &&
        .venv/bin/python -m pip install --quiet --group dev --editable '.[embedded]' >&2
}
