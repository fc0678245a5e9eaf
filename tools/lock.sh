#!/bin/sh
# Renew packaging/requirements/*.txt from pyproject.toml. Needs uv (pip install uv).
set -eu
cd "$(dirname "$0")/.."

lock() { # FILE in packaging/requirements, what it is made from
    out=packaging/requirements/$1
    new=$(mktemp)
    echo "# Versions and hashes that images and virtual environments are made of. Made by tools/lock.sh; do not edit." >"$new"
    uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header --no-annotate "$2" >>"$new"
    mv "$new" "$out"
}

build=$(mktemp)
trap 'rm -f "$build"' EXIT
printf '%s\n' 'setuptools>=77' wheel >"$build"
lock build.txt "$build"
lock controller.txt pyproject.toml
