#!/bin/sh
# Run tests of the C extension under valgrind, in a copy of the source; arguments go to pytest (default: the walk and
# the codec in C). Fails where a report names the extension; what valgrind says of Python itself is left out. Needs
# valgrind, gcc and a set up VENV, and some minutes.
set -eu
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
trap 'exit 130' INT TERM
cp -R src/smartscan "$copy/"
rm -f "$copy"/smartscan/*.so
include=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
${CC:-gcc} -O1 -g -std=gnu11 -fPIC -shared -Wall -Wextra -Wno-missing-field-initializers "-I$include" \
    src/smartscan/_native.c -o "$copy/smartscan/_native.abi3.so"
[ $# -gt 0 ] || set -- tests/test_walk.py tests/test_codec.py -k 'native or insert' -m 'not slow'
PYTHONMALLOC=malloc PYTHONPATH="$copy" valgrind --quiet --log-file="$copy/report" \
    "$venv/bin/python" -m pytest -q -p no:cacheprovider -o "pythonpath=$copy" -o timeout=0 "$@"
if grep -q '_native\.c' "$copy/report"; then
    cat "$copy/report"
    exit 1
fi
echo "valgrind: nothing to say of the extension"
