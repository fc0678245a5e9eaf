#!/bin/sh
# Run tests of the C extension in a copy of the source that is compiled to be watched; what follows the first word goes
# to pytest. Needs gcc and a set up VENV.
#
#     tools/sanitize.sh asan        AddressSanitizer and UndefinedBehaviorSanitizer; a minute or two
#     tools/sanitize.sh valgrind    some minutes; fails where a report names the extension, for Python has some of its own
set -eu
cd "$(dirname "$0")/.."
how=${1:-asan}
[ $# = 0 ] || shift
venv=${VENV:-.venv}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
trap 'exit 130' INT TERM
cp -R src/smartscan "$copy/"
rm -f "$copy"/smartscan/*.so
include=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')

build() { # FLAG...
    ${CC:-gcc} -O1 -g "$@" -std=gnu11 -fPIC -shared -Wall -Wextra -Wno-missing-field-initializers "-I$include" \
        src/smartscan/_native.c -o "$copy/smartscan/_native.abi3.so"
}

# pymalloc would hide reads outside of what was asked for.
export PYTHONMALLOC=malloc PYTHONPATH="$copy"
case $how in
asan)
    build -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
    [ $# -gt 0 ] || set -- tests/test_codec.py tests/test_walk.py tests/fuzz_codec.py -m 'not slow'
    # Python never frees what lives as long as it does, so leaks are not looked for.
    LD_PRELOAD=$(${CC:-gcc} -print-file-name=libasan.so):$(${CC:-gcc} -print-file-name=libubsan.so) \
        ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 \
        "$venv/bin/python" -m pytest -q -p no:cacheprovider -o "pythonpath=$copy" "$@"
    ;;
valgrind)
    build
    [ $# -gt 0 ] || set -- tests/test_walk.py tests/test_codec.py -k 'native or insert' -m 'not slow'
    valgrind --quiet --log-file="$copy/report" \
        "$venv/bin/python" -m pytest -q -p no:cacheprovider -o "pythonpath=$copy" -o timeout=0 "$@"
    if grep -q '_native\.c' "$copy/report"; then
        cat "$copy/report"
        exit 1
    fi
    echo "valgrind: nothing to say of the extension"
    ;;
*)
    echo "sanitize: asan or valgrind, not $how" >&2
    exit 2
    ;;
esac
