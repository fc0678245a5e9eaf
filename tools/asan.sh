#!/bin/sh
# Run the tests of the C extension with AddressSanitizer and UndefinedBehaviorSanitizer, in a copy of the source; arguments
# go to pytest (default: the codec, the walk, and the fuzzing of both). Needs gcc with libasan, and a set up VENV.
set -eu
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
trap 'exit 130' INT TERM
cp -R src/smartscan "$copy/"
rm -f "$copy"/smartscan/*.so
include=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
${CC:-gcc} -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all -std=gnu11 -fPIC -shared \
    -Wall -Wextra -Wno-missing-field-initializers "-I$include" src/smartscan/_native.c -o "$copy/smartscan/_native.abi3.so"
[ $# -gt 0 ] || set -- tests/test_codec.py tests/test_walk.py tests/fuzz_codec.py -m 'not slow'
# Python never frees what lives as long as it does, so leaks are not looked for; pymalloc would hide reads outside.
LD_PRELOAD=$(${CC:-gcc} -print-file-name=libasan.so):$(${CC:-gcc} -print-file-name=libubsan.so) \
    ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc PYTHONPATH="$copy" \
    "$venv/bin/python" -m pytest -q -p no:cacheprovider -o "pythonpath=$copy" "$@"
