#!/usr/bin/env bash
# Build the container image and run the app in it as a stranger would: a random user, a read-only root without a
# writable /tmp, no network, no capabilities, a read-only dataset.
#
#   tools/image.sh build                 build bids_sodium:ci
#   tools/image.sh run DATA OUT [WORD …] run `bids-sodium DATA OUT WORD …` in it; its exit code is this script's
#   tools/image.sh check                 build a small dataset with the image's own simulator and assert both levels
#
# Docker is used where its daemon answers (or BIDS_SODIUM_ENGINE=docker|podman says which). Elsewhere, on Debian as
# root, buildah and podman are installed and need no daemon; the base image is then made from the Debian mirror that
# this machine uses already, unless BASE_IMAGE names one to use instead.
set -euo pipefail
cd "$(dirname "$0")/.."
image=bids_sodium:ci
stand_in=localhost/bids_sodium-base:trixie

engine=${BIDS_SODIUM_ENGINE:-}
if [ -z "$engine" ]; then
    if docker info >/dev/null 2>&1; then engine=docker; else engine=podman; fi
fi

has() {
    local tool
    for tool in "$@"; do command -v "$tool" >/dev/null 2>&1 || return 1; done
}

install() {
    ! has buildah podman runc mmdebstrap || return 0
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        buildah podman runc mmdebstrap uidmap >/dev/null
}

# A stand-in for debian:trixie-slim, where no registry of images can be reached.
make_base() {
    ! podman image exists "$stand_in" || return 0
    local mirror tar
    mirror=$(awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/debian.sources 2>/dev/null || true)
    [ -n "$mirror" ] || mirror=$(awk '$1=="deb"{for(i=2;i<=NF;i++) if($i ~ /^https?:/){print $i; exit}}' /etc/apt/sources.list)
    tar=$(mktemp --suffix=.tar)
    # shellcheck disable=SC2016  # mmdebstrap's own shell expands the hook
    mmdebstrap --quiet --variant=minbase --include=ca-certificates \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Languages "none"' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/lintian/*' \
        --customize-hook='rm -f "$1"/etc/resolv.conf "$1"/etc/hostname' \
        trixie "$tar" "$mirror"
    podman import -q --change 'CMD ["bash"]' \
        --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' "$tar" "$stand_in"
    rm -f "$tar"
}

build() {
    local version revision arguments
    version=$(sed -n 's/^__version__ *= *"\(.*\)"/\1/p' bids_sodium/__init__.py)
    revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
    arguments=(--build-arg "VERSION=$version" --build-arg "REVISION=$revision" -t "$image")
    if [ "$engine" = docker ]; then
        [ -z "${BASE_IMAGE:-}" ] || arguments+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
        DOCKER_BUILDKIT=1 docker build "${arguments[@]}" .
        return
    fi
    install
    if [ -n "${BASE_IMAGE:-}" ]; then
        arguments+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
    else
        make_base
        arguments+=(--pull=never --build-arg "BASE_IMAGE=$stand_in")
        # The build sees the certificates and the pip settings of this machine; neither becomes part of the image.
        local file
        for file in /etc/ssl/certs/ca-certificates.crt /etc/pip.conf; do
            [ ! -f "$file" ] || arguments+=(-v "$file:$file:ro")
        done
    fi
    buildah bud --layers --isolation chroot "${arguments[@]}" .
}

# inside DATA OUT WORD…: the image with DATA as /data and OUT as /out; ENTRY replaces its entry point
inside() {
    local data out arguments settings status=0
    data=$(readlink -f "$1")
    out=$(readlink -f "$2")
    shift 2
    arguments=(--rm --read-only --network none --cap-drop all --security-opt no-new-privileges --user 54321:54321
        -v "$data:/data:ro" -v "$out:/out")
    [ -z "${ENTRY:-}" ] || arguments+=(--entrypoint "$ENTRY")
    if [ "$engine" = docker ]; then
        docker run "${arguments[@]}" "$image" "$@" || status=$?
        return "$status"
    fi
    # Explicit limits, because the default ones may exceed what this machine allows.
    settings=$(mktemp)
    printf '%s\n' '[containers]' 'default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]' \
        '[engine]' 'runtime = "runc"' >"$settings"
    CONTAINERS_CONF=$settings podman run --read-only-tmpfs=false --passwd=false "${arguments[@]}" "$image" "$@" ||
        status=$?
    rm -f "$settings"
    return "$status"
}

# expect CODE WORD…: run and compare the exit code
expect() {
    local wanted=$1 status=0
    shift
    "$@" >"$scratch/log" 2>&1 || status=$?
    if [ "$status" != "$wanted" ]; then
        cat "$scratch/log"
        echo "exit code $status, not $wanted: $*" >&2
        exit 1
    fi
}

listing() { (cd "$1" && find . -printf '%p %s %T@\n' | sort); }

check() {
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    chmod 755 "$scratch"
    mkdir "$scratch/empty" "$scratch/made" "$scratch/out" "$scratch/none" "$scratch/refused"
    chmod 777 "$scratch/made" "$scratch/out" "$scratch/refused"
    echo '{"Name": "empty", "BIDSVersion": "1.10.0"}' >"$scratch/empty/dataset_description.json"
    local none=$scratch/none made=$scratch/made out=$scratch/out data=$scratch/made/ds before

    expect 0 inside "$none" "$out" --version
    expect 0 inside "$none" "$out" --help
    expect 2 inside "$none" "$out" --no-such-option
    expect 65 inside "$scratch/empty" "$scratch/refused" /data /out/app participant
    expect 2 inside "$none" "$none" /data /out/app participant
    echo "simulating a dataset with the image's own simulator"
    ENTRY=/opt/bids_sodium/bin/python expect 0 inside "$none" "$made" -I -B -c "
from pathlib import Path
from bids_sodium.simulate.dataset import write
write(Path('/out/ds'), study='ms', n_participants=1, seed=1, sloppy=True)"
    before=$(listing "$data")
    echo "participant level"
    expect 0 inside "$data" "$out" /data /out/app participant -d rois=/data/derivatives/rois
    echo "group level"
    expect 0 inside "$data" "$out" /data /out/app group --study ms
    [ "$before" = "$(listing "$data")" ] || { echo "the dataset was changed" >&2; exit 1; }
    [ "$(ls "$out")" = app ] || { echo "something was written beside the output: $(ls "$out")" >&2; exit 1; }
    grep -q '"Container"' "$out/app/dataset_description.json" || { echo "GeneratedBy names no container" >&2; exit 1; }
    ls "$out/app/sub-01.html" "$out/app/group.html" >/dev/null
    echo "the image is sound"
}

case "${1:-}" in
build) build ;;
run)
    shift
    [ $# -ge 2 ] || { echo "DATA and OUT are missing" >&2; exit 2; }
    data=$1 out=$2
    shift 2
    inside "$data" "$out" /data /out "$@"
    ;;
check) check ;;
*)
    sed -n '5,7s/^# *//p' "$0" >&2
    exit 2
    ;;
esac
