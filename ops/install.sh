#!/bin/sh
# Install the daemon, with exactly the dependencies of uv.lock (by hash), into a new virtual environment.
# `ops/install.sh DIRECTORY` is what the image is built with, and what ./check runs outside of it.
set -eu
checkout="$(cd "$(dirname "$0")/.." && pwd)"
cd "$checkout"
UV_PROJECT_ENVIRONMENT="$1" ops/uv sync --quiet --locked --no-dev --no-editable --compile-bytecode
"$1/bin/bskt" --help >/dev/null
