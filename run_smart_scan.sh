#!/bin/sh
# Smart Scanner on a host that has nothing but a container engine and a shell.
#
#     ./run_smart_scan.sh scan /mnt/user/Videos Videos --chunk-size 50 --max-containers 4
#
# With a Docker (or Podman) engine: builds the two images when they are missing or of other sources, and runs
# the command in a controller container that starts one worker container per chunk. Without one: runs the same
# command from a virtual environment that it makes, with workers that are local processes.
# SMART_SCAN_ENGINE (auto, docker, local) or --engine decides otherwise.
set -eu

WORKER_IMAGE=nas-scanner-hp:latest
CONTROLLER_IMAGE=nas-scanner-smart:latest
SOURCE_LABEL=io.github.smart-scanner.source
CONTROLLER_LABEL=io.github.smart-scanner.controller
ANSWER_S=10 # an engine, or a healthy share, answers in less; a sleeping disk's directory is in memory

EXIT_FAILED=1 EXIT_USAGE=2 EXIT_MOUNT_DEAD=4 EXIT_NO_MOUNT=10 EXIT_NO_ENGINE=11 EXIT_NO_CATALOGUE=12 # as the program's

# Options of the program that are followed by a value: what follows them is no path to check.
VALUE_OPTIONS=" --db --chunk-size --chunk-entries --max-containers --cpus --memory --threads --stall-after --give-up \
--dir-entries --depth --engine --image --exclude "

say() { printf 'run_smart_scan.sh: %s\n' "$*" >&2; }

fail() { # STATUS, one sentence
    status=$1
    shift
    say "$@"
    exit "$status"
}

usage() {
    cat <<'TEXT'
Usage: ./run_smart_scan.sh COMMAND [ARGUMENT]...

  scan PATH NAME    catalogue a share                 plan PATH   how it would be cut into chunks
  monitor           watch running scans               stats       what is on it
  story CHUNK       what happened to a chunk          problems    what could not be read, and why
  retry NAME        try again what was given up       cleanup     remove what was left behind
  doctor            check this host; with --drill, scan a share that hangs

  setup     build what is missing: two images, or a virtual environment where there is no container engine
            (--pull: build again, on the newest base image)
  update    fetch a newer version (of a git checkout) and build it
  logs      show what running and failed containers of Smart Scanner have printed (-f: go on)

COMMAND --help tells the options of each. SMART_SCAN_DIR is where the catalogue is kept.
TEXT
}

# --- where things are ------------------------------------------------------------------------------------

SMART_SCAN_COMMAND=$0 # what reports tell the user to type
export SMART_SCAN_COMMAND
here=$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "$0")")" && pwd)

judge() { # WORD, after those judged before it: sets last to the one before, and sort to option, value or word
    last=$before
    case $VALUE_OPTIONS in
    *" $last "*) sort=value before=- ;;
    *)
        sort=word
        [ "$last" != -- ] || return 0 # behind it are no options
        case $1 in -?*) sort=option ;; esac
        before=$1
        ;;
    esac
}

read_words() { # the program's arguments: sets command, share, data and how; words has them with absolute paths
    command=${1:-} db=${SMART_SCAN_DB:-} how=${SMART_SCAN_ENGINE:-auto} share='' before=- position=0 check=yes
    for word in "$@"; do
        judge "$word"
        case $sort:$last in
        word:*) position=$((position + 1)) && [ "$position" != 2 ] || share=$word ;;
        value:--db) db=$word ;;
        value:--engine) how=$word ;;
        value:*) ;;
        *)
            case $word in
            --db=*) db=${word#--db=} ;;
            --engine=*) how=${word#--engine=} ;;
            --help | -h | --from-catalogue) check=no ;;
            esac
            ;;
        esac
    done
    if [ -n "$db" ]; then
        data=$(dirname -- "$db")
    elif [ -n "${SMART_SCAN_DIR:-}" ]; then
        data=$SMART_SCAN_DIR
    elif [ -d /mnt/user ]; then
        data=/mnt/user/appdata/nas-scanner-smart
    else
        data=${XDG_DATA_HOME:-${HOME:-/root}/.local/share}/smart-scanner
    fi
    data=$(absolute "$data")
    case $command in scan | plan | doctor) ;; *) share='' ;; esac
}

absolute() { # PATH
    case $1 in /*) printf '%s\n' "$1" ;; *) printf '%s\n' "$(pwd)/$1" ;; esac
}

version() { sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$here/src/smartscan/__init__.py"; }

source_sum() { # changes with whatever an image or a virtual environment is made of
    (
        cd "$here"
        find src/smartscan packaging/requirements pyproject.toml setup.py Dockerfile.smart -type f \
            \( -name '*.py' -o -name '*.c' -o -name '*.sql' -o -name '*.txt' -o -name '*.toml' -o -name '*.smart' \) \
            | LC_ALL=C sort | while IFS= read -r file; do cat "$file"; done | cksum | tr ' ' -
    )
}

# --- calls that may hang -----------------------------------------------------------------------------------

bounded() { # SECONDS COMMAND...: its status, or 124 when it has not ended by then
    limit=$1
    shift
    "$@" &
    child=$! waited=0 seen=
    while { read -r seen <"/proc/$child/stat"; } 2>/dev/null; do
        case $seen in *") Z "*) break ;; esac
        if [ "$waited" -ge "$((limit * 20))" ]; then
            # Neither asked politely nor waited for: a docker client that hangs ignores the one, and a
            # process stuck in a dead file system never ends.
            kill -9 "$child" 2>/dev/null || :
            return 124
        fi
        sleep 0.05 2>/dev/null || { sleep 1 && waited=$((waited + 19)); }
        waited=$((waited + 1))
    done
    wait "$child"
}

check_share() { # one sentence now is better than a container that cannot start
    [ -n "$share" ] && [ "$check" = yes ] || return 0
    case ${DOCKER_HOST:-unix:} in unix:*) ;; *) return 0 ;; esac # the share is on another host
    # A program of its own: a part of this shell that hangs would keep our output open.
    # shellcheck disable=SC2016
    set -- 'test -d "$1"' 'test -e "$1"'
    bounded "$ANSWER_S" sh -c "$1" sh "$share" </dev/null >/dev/null 2>&1 && return 0 || answer=$?
    [ "$answer" != 124 ] ||
        fail $EXIT_MOUNT_DEAD "$share does not answer within $ANSWER_S seconds; is its disk or its server down?"
    bounded "$ANSWER_S" sh -c "$2" sh "$share" </dev/null >/dev/null 2>&1 ||
        fail $EXIT_NO_MOUNT "there is no directory $share."
    fail $EXIT_NO_MOUNT "$share is not a directory."
}

tell_of_share() { # what is wrong with it, or nothing, for the doctor, into whose container no share is mounted
    [ -n "$share" ] && [ "$check" = yes ] || return 0
    case ${DOCKER_HOST:-unix:} in unix:*) ;; *) return 0 ;; esac
    SMART_SCAN_SHARE_FAULT=$(say() { printf '%s\n' "$*"; } && check_share) || :
    export SMART_SCAN_SHARE_FAULT
}

# --- with a container engine -------------------------------------------------------------------------------

find_engine() { # sets engine (docker or podman), or why_not
    why_not=''
    for engine in docker podman; do
        command -v "$engine" >/dev/null 2>&1 || continue
        [ "$engine" = docker ] || [ -z "${DOCKER_HOST:-}" ] || continue
        reason=$(mktemp)
        if bounded "$ANSWER_S" "$engine" version --format '{{.Server.Version}}' </dev/null >/dev/null 2>"$reason"; then
            rm -f "$reason"
            if find_socket; then return 0; fi
            : "${why_not:="$engine has no socket to listen on (systemctl enable --now podman.socket)"}"
        else
            [ $? != 124 ] || echo "it does not answer within $ANSWER_S seconds" >"$reason"
            : "${why_not:="$engine cannot be used: $(sed '/^$/d; s/ Is the docker daemon running?//; s/[.?]*$//' "$reason" | tail -n 1)"}"
            rm -f "$reason"
        fi
    done
    engine=''
    : "${why_not:=there is no Docker engine here}"
    return 1
}

find_socket() { # sets socket: a path, or nothing where DOCKER_HOST is an address
    address=${DOCKER_HOST:-}
    if [ -z "$address" ] && [ "$engine" = docker ]; then
        address=$(docker context inspect --format '{{.Endpoints.docker.Host}}' 2>/dev/null) || address=
    elif [ -z "$address" ]; then
        address=$(podman info --format '{{.Host.RemoteSocket.Path}}' 2>/dev/null) || address=
        address=unix://${address#unix://}
    fi
    case ${address:=unix:///var/run/docker.sock} in
    unix://*)
        socket=${address#unix://}
        [ -S "$socket" ]
        ;;
    *) socket='' ;;
    esac
}

images_are_current() {
    for image in "$WORKER_IMAGE" "$CONTROLLER_IMAGE"; do
        of=$("$engine" image inspect --format "{{index .Config.Labels \"$SOURCE_LABEL\"}}" "$image" 2>/dev/null) || of=
        [ "$of" = "$sources" ] || return 1
    done
}

build_images() { # any argument: build although they are current; --pull: on the newest base
    sources=$(source_sum)
    if [ $# = 0 ]; then
        if images_are_current; then return 0; fi
        if [ -n "${SMART_SCAN_IMAGES:-}" ]; then # a file made by `docker save`, for a host without a registry
            "$engine" load --input "$SMART_SCAN_IMAGES" >&2
            if images_are_current; then return 0; fi
        fi
    fi
    say "building the images of version $(version); this takes a minute, once"
    report=$(mktemp) pull=${1:-}
    for target in worker controller; do
        case $target in worker) image=$WORKER_IMAGE ;; *) image=$CONTROLLER_IMAGE ;; esac
        set -- build --file "$here/Dockerfile.smart" --target "$target" --tag "$image" \
            --build-arg "VERSION=$(version)" --build-arg "SOURCE=$sources"
        if [ -n "${SMART_SCAN_BASE:-}" ]; then
            set -- "$@" --build-arg "BASE=$SMART_SCAN_BASE"
        elif [ "$pull" = --pull ] && [ "$target" = worker ]; then
            set -- "$@" --pull
        fi
        if ! "$engine" "$@" "$here" </dev/null >"$report" 2>&1; then
            tail -n 15 "$report" >&2
            rm -f "$report"
            why_not="the image $image cannot be built (above is why; SMART_SCAN_BASE names another base image)"
            return 1
        fi
    done
    rm -f "$report"
    if [ "${SMART_SCAN_BUILD_CACHE:-}" != keep ]; then # half a gigabyte of compiler, and the images before these
        "$engine" image prune --force --filter "label=$SOURCE_LABEL" >/dev/null 2>&1 || :
    fi
}

quoted() { # a value for --mount, which is comma-separated
    printf '"%s"' "$(printf '%s' "$1" | sed 's/"/""/g')"
}

bind() { # SOURCE [TARGET]
    printf 'type=bind,%s,%s' "$(quoted "source=$1")" "$(quoted "target=${2:-$1}")"
}

run_in_container() { # the program's arguments
    mkdir -p -- "$data" || fail $EXIT_FAILED "the data directory $data cannot be made."
    data=$(CDPATH='' cd -- "$data" && pwd)
    # Nothing that lies beside the data directory is in the container, so that `..` would lead nowhere.
    [ -z "$db" ] || db=$data/$(basename -- "$db")
    file=${db:-$data/smart_catalog.db}
    if [ -L "$file" ]; then # not followed: whoever may make a link here may not choose what root mounts and owns
        case $(readlink -f -- "$file") in
        "$(readlink -f -- "$data")"/*) ;;
        *)
            fail $EXIT_NO_CATALOGUE "the catalogue $file is a link, which leads nowhere in a container that has" \
                "only the directory of the link; name the catalogue itself with --db."
            ;;
        esac
    fi
    [ -z "${SMART_SCAN_DB:-}" ] || SMART_SCAN_DB=$db
    if [ "$(id -u)" != 0 ]; then
        : "${PUID:=$(id -u)}" "${PGID:=$(id -g)}"
    elif [ -d /mnt/user ]; then # Unraid's nobody:users, who owns all that is shared
        : "${PUID:=99}" "${PGID:=100}"
    fi
    if [ -z "${TZ:-}" ]; then TZ=$(time_zone); fi
    name=smart-scan-controller-$$-$(date +%s)

    # Paths are relative to a directory that is not in the container.
    count=$# before=-
    while [ "$count" -gt 0 ]; do
        word=$1
        judge "$word"
        case $sort:$last in
        value:--db) [ -z "$word" ] || word=$db ;;
        value:*) ;;
        option:*) case $word in --db=?*) word=--db=$db ;; esac ;;
        word:*)
            case $word in
            '' | /*) ;;
            "$share") word=$(pwd)/$word share='' ;; # once: its name may be the same
            esac
            ;;
        esac
        count=$((count - 1))
        shift
        set -- "$@" "$word"
    done
    # The options of `docker run` go before the program's own arguments.
    set -- "$CONTROLLER_IMAGE" "$@"
    go='exec' passed_on=''
    if wants_drill "$@"; then
        may_drill
        go='' passed_on=,bind-propagation=rshared
        set -- --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor=unconfined "$@"
    fi
    if [ -n "$socket" ]; then
        set -- --network none --mount "$(bind "$socket" /var/run/docker.sock)" --env DOCKER_HOST= "$@"
    else
        set -- --network "${SMART_SCAN_NETWORK:-host}" --env DOCKER_HOST "$@"
    fi
    settings=${SMART_SCAN_CONFIG:-}
    if [ -z "$settings" ] && [ ! -f "$data/smart_scan.toml" ]; then
        settings=${XDG_CONFIG_HOME:-${HOME:-/root}/.config}/smart-scanner/smart_scan.toml
        [ -f "$settings" ] || settings=''
    fi
    if [ -n "$settings" ]; then
        settings=$(absolute "$settings")
        set -- --env "SMART_SCAN_CONFIG=$settings" "$@"
        [ ! -f "$settings" ] || set -- --mount "$(bind "$settings"),readonly" "$@"
    fi
    for variable in $(env | sed -n 's/^\(SMART_SCAN_[A-Z_]*\)=.*/\1/p'); do
        case $variable in
        SMART_SCAN_CONFIG | SMART_SCAN_DIR | SMART_SCAN_ENGINE) ;;
        *) set -- --env "$variable" "$@" ;;
        esac
    done
    for variable in TERM COLORTERM NO_COLOR UMASK; do set -- --env "$variable" "$@"; done
    if [ -t 0 ] && [ -t 1 ]; then set -- --interactive --tty "$@"; fi
    if has_init; then set -- --init "$@"; fi
    export TZ PUID PGID
    # The share is not among the mounts: only workers read it, so that nothing here can hang on it.
    $go "$engine" run --rm --name "$name" --label "$CONTROLLER_LABEL=1" \
        --read-only --tmpfs /tmp --security-opt no-new-privileges --security-opt label=disable \
        --log-driver json-file --log-opt max-size=1m \
        --mount "$(bind "$data")$passed_on" \
        --env "SMART_SCAN_DIR=$data" --env "SMART_SCAN_CONTAINER=$name" --env SMART_SCAN_ENGINE=docker \
        --env TZ --env PUID --env PGID "$@"
    exit # only here where something is to be undone
}

wants_drill() { # the program's arguments: doctor --drill mounts a share that hangs, and no other command mounts
    [ "$command" = doctor ] || return 1
    for word in "$@"; do [ "$word" != --drill ] || return 0; done
    return 1
}

may_drill() { # what the controller mounts below the data directory must be seen by the workers' engine
    local_one="run it with local workers: SMART_SCAN_ENGINE=local $0 doctor --drill"
    [ "$(id -u)" = 0 ] || fail $EXIT_FAILED "the drill mounts a share that hangs, which only root may; run it as root."
    [ -n "$socket" ] || fail $EXIT_FAILED "the drill needs an engine on this host; $local_one."
    [ -c /dev/fuse ] || fail $EXIT_FAILED "the drill mounts a share that hangs, and there is no /dev/fuse here; modprobe fuse."
    is_shared "$data" && return 0
    { mount --bind "$data" "$data" && mount --make-shared "$data"; } 2>/dev/null ||
        fail $EXIT_FAILED "what a container mounts below $data is not seen by others here; $local_one."
    trap 'umount -l "$data"' EXIT
    trap 'exit 130' INT TERM HUP
}

is_shared() { # whether the mount that a folder lies on passes on what is mounted below it
    awk -v path="$1" '
        { top = $5; gsub(/\\040/, " ", top); if (top != "/") top = top "/" }
        index(path "/", top) == 1 && length(top) >= length(found) { found = top; shared = / shared:[0-9]/ }
        END { exit !shared }' /proc/self/mountinfo
}

time_zone() { # of this host, as Debian writes it down or as the link that others have; nothing where it is unknown
    cat /etc/timezone 2>/dev/null || readlink -f /etc/localtime | sed -n 's|.*/zoneinfo/||p'
}

has_init() { # some packages of Docker leave the engine's helper out, and then --init refuses to start
    case $engine in podman) helpers='catatonit podman-init' ;; *) helpers='docker-init' ;; esac
    for helper in $helpers; do
        for folder in /usr/bin /usr/local/bin /usr/libexec/docker /usr/libexec/podman /usr/lib/podman; do
            [ ! -x "$folder/$helper" ] || return 0
        done
        command -v "$helper" >/dev/null 2>&1 && return 0
    done
    return 1
}

show_logs() { # [-f]
    find_engine || fail $EXIT_NO_ENGINE "$why_not; local workers write theirs beside their chunk in $data/work."
    ids=$("$engine" ps --all --quiet --filter "label=$CONTROLLER_LABEL")
    ids="$ids $("$engine" ps --all --quiet --filter label=io.github.smart-scanner.namespace)"
    if [ "$ids" = ' ' ]; then
        say "no container of Smart Scanner is running, and none was left; see the commands story and problems"
        return 0
    fi
    for id in $ids; do
        "$engine" ps --all --filter "id=$id" --format '== {{.Names}}: {{.Status}}'
        if [ "${1:-}" = -f ]; then "$engine" logs --follow --tail 100 "$id" & else "$engine" logs --tail 100 "$id"; fi
    done
    wait
}

# --- without one ---------------------------------------------------------------------------------------------

find_python() { # sets python: 3.11 or newer
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return 0
    done
    return 1
}

make_venv() { # FOLDER
    "$python" -m venv "$1" >/dev/null 2>&1 && return 0
    rm -rf "$1"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "installing Debian's python3-venv"
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv; } \
            >/dev/null 2>&1 && "$python" -m venv "$1" >/dev/null 2>&1 && return 0
        rm -rf "$1"
    fi
    return 1
}

build_venv() { # any argument: build although it is current; sets venv
    # A cache: it may be deleted at any time. Not in the data directory, which may be on a share's own disks.
    venv=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/smart-scanner/venv
    sources=$(source_sum)
    if [ $# = 0 ] && [ "$(cat "$venv/sources" 2>/dev/null)" = "$sources" ] && "$venv/bin/python" -c '' 2>/dev/null; then
        return 0
    fi
    find_python || fail $EXIT_NO_ENGINE "$why_not, and no Python 3.11 or newer either; install one of the two."
    [ -n "${why_told:-}" ] || say "$why_not"
    say "making a virtual environment in $venv; this takes half a minute, once"
    mkdir -p "$(dirname "$venv")"
    making=$(mktemp -d "$venv.XXXXXX")
    report=$(mktemp)
    trap 'rm -rf "$making" "$report"' EXIT
    trap 'exit 130' INT TERM HUP
    make_venv "$making/venv" || fail $EXIT_NO_ENGINE "$why_not, and this Python makes no virtual environment;" \
        "sudo apt-get install python3-venv (or start a Docker engine), then try again."
    # From a copy, because a build leaves its traces where it builds.
    mkdir "$making/source"
    cp -R "$here/pyproject.toml" "$here/setup.py" "$here/LICENSE" "$here/src" "$making/source"
    [ ! -f "$here/README.md" ] || cp "$here/README.md" "$making/source"
    chmod -R u+w "$making/source" # the checkout may be read-only
    find "$making/source" \( -name '*.so' -o -name '*.egg-info' \) -prune -exec rm -rf {} +
    if ! {
        (cd "$making" && venv/bin/python -m pip --disable-pip-version-check install --require-hashes \
            -r "$here/packaging/requirements/controller.txt" -r "$here/packaging/requirements/build.txt") &&
            (cd "$making" && venv/bin/python -m pip --disable-pip-version-check install --no-deps \
                --no-build-isolation ./source)
    } >"$report" 2>&1; then
        tail -n 5 "$report" >&2
        fail $EXIT_FAILED "the packages that Smart Scanner needs cannot be installed; above is why."
    fi
    printf '%s\n' "$sources" >"$making/venv/sources"
    rm -rf "$venv"
    mv "$making/venv" "$venv"
    rm -rf "$making" "$report"
    trap - EXIT INT TERM HUP
}

run_locally() { # the program's arguments
    build_venv
    SMART_SCAN_DIR=$data
    export SMART_SCAN_DIR
    SMART_SCAN_ENGINE=local
    export SMART_SCAN_ENGINE
    exec "$venv/bin/python" -m smartscan.cli "$@"
}

# --- the command -----------------------------------------------------------------------------------------------

update() {
    if [ -d "$here/.git" ]; then
        git -C "$here" pull --ff-only || fail $EXIT_FAILED "the newer version cannot be fetched; git says why above."
    else
        say "this is no git checkout; unpack a newer version over it, then run setup"
    fi
    exec "$here/run_smart_scan.sh" setup --pull
}

main() {
    read_words "$@"
    case $command:${2:-} in
    setup: | setup:--pull | update: | logs: | logs:-f) [ $# -le 2 ] || fail $EXIT_USAGE "$command has no argument $3." ;;
    setup:-h | setup:--help | update:-h | update:--help | logs:-h | logs:--help) command=help ;;
    setup:* | update:* | logs:*) fail $EXIT_USAGE "$command has no argument $2; see $0 --help." ;;
    esac
    case $command in
    logs)
        shift
        show_logs "$@"
        return
        ;;
    update) update ;;
    help | -h | --help)
        usage
        return
        ;;
    '')
        usage >&2
        return $EXIT_USAGE
        ;;
    esac
    case $how in
    local) why_not='local workers were asked for' engine='' ;;
    *) find_engine || [ "$how" != docker ] || fail $EXIT_NO_ENGINE "$why_not." ;;
    esac
    if [ "$command" = setup ]; then
        shift
        if [ -n "$engine" ]; then
            build_images "$@" || fail $EXIT_FAILED "$why_not."
            say "ready: $engine has $WORKER_IMAGE and $CONTROLLER_IMAGE; the catalogue will be in $data"
        else
            build_venv "$@"
            say "ready: $venv ($why_not); the catalogue will be in $data"
        fi
        return
    fi
    if [ "$command" = doctor ]; then tell_of_share; else check_share; fi
    if [ -n "$engine" ]; then
        if build_images; then run_in_container "$@"; fi
        [ "$how" != docker ] || fail $EXIT_NO_ENGINE "$why_not."
    fi
    if [ "$command" = scan ] && [ "$check" != no ]; then
        say "$why_not: workers are local processes"
        why_told=yes
    fi
    run_locally "$@"
}

main "$@"
