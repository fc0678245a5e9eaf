#!/bin/sh
# Make the virtual environment $1 and install this checkout into it with the extras $2 ("" or "[dev]").
# On Debian and its kin, as root, what is missing (venv, compiler, Python headers; for the tests strace,
# User-Mode Linux and the tools of other file systems) is installed first; without a compiler the scanner
# installs as well, with its slower walk.
set -eu
venv=${1:-.venv}
extras=${2:-}
cd "$(dirname "$0")/.."

say() { echo "setup: $*" >&2; }

# A Python of 3.11 or newer, or nothing.
find_python() {
    for python in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
}

apt_install() { # PACKAGE...
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    say "installing $*"
    apt-get update -qq >&2 || return 1
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Python.h of that Python, without which a compiler is of no use.
has_headers() {
    "$1" -c 'import os, sysconfig; open(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null
}

python=$(find_python)
if [ -z "$python" ]; then
    apt_install python3 python3-venv || true
    python=$(find_python)
fi
if [ -z "$python" ]; then
    say "Python 3.11 or newer is needed; install python3 and python3-venv and try again."
    exit 1
fi

if ! command -v cc >/dev/null || ! has_headers "$python"; then
    apt_install gcc libc6-dev python3-dev || say "no C compiler: the walk will be the slower one in Python"
fi

if [ "$extras" = '[dev]' ]; then
    command -v strace >/dev/null ||
        apt_install strace || say "no strace: the tests that kill at every system call are skipped"
    command -v linux >/dev/null ||
        apt_install user-mode-linux || say "no User-Mode Linux: the test that cuts the power is skipped"
    missing=
    for tool in mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs mksquashfs:squashfs-tools mergerfs:mergerfs sshfs:sshfs \
        /usr/lib/openssh/sftp-server:openssh-sftp-server; do
        command -v "${tool%:*}" >/dev/null || missing="$missing ${tool##*:}"
    done
    # shellcheck disable=SC2086 # several words
    [ -z "$missing" ] || apt_install $missing || say "without$missing tests on such file systems are skipped"
fi

if [ ! -x "$venv/bin/python" ]; then
    say "making $venv with $("$python" --version)"
    if ! "$python" -m venv "$venv" 2>/dev/null; then
        rm -rf "$venv"
        apt_install python3-venv || { say "python3-venv is missing; install it and try again."; exit 1; }
        "$python" -m venv "$venv"
    fi
fi
say "installing Smart Scanner into $venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".$extras"
