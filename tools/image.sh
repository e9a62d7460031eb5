#!/usr/bin/env bash
# Build the container image without a Docker daemon and run the app in it as a stranger would:
# a random user, a read-only root, no network, a read-only dataset.
#   tools/image.sh build            installs buildah, podman and mmdebstrap (Debian, as root) and builds bids_sodium:ci
#   tools/image.sh run DATA OUT ... runs the app on a dataset
set -euo pipefail
cd "$(dirname "$0")/.."
image=bids_sodium:ci

install() {
    command -v buildah podman mmdebstrap runc >/dev/null 2>&1 && return
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends buildah podman runc mmdebstrap uidmap >/dev/null
}

# A stand-in for debian:trixie-slim, made from the Debian mirror that this machine already uses.
base() {
    buildah images -q debian:trixie-slim 2>/dev/null | grep -q . && return
    local mirror tar
    mirror=$(awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/debian.sources 2>/dev/null || true)
    [ -n "$mirror" ] || mirror=$(awk '$1=="deb"{for(i=2;i<=NF;i++) if($i ~ /^https?:/){print $i; exit}}' /etc/apt/sources.list)
    tar=$(mktemp --suffix=.tar)
    mmdebstrap --quiet --variant=minbase --include=ca-certificates \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Languages "none"' \
        --customize-hook='rm -f "$1"/etc/resolv.conf "$1"/etc/hostname' trixie "$tar" "$mirror"
    podman import -q --change 'CMD ["bash"]' "$tar" docker.io/library/debian:trixie-slim
    rm -f "$tar"
}

case "${1:-}" in
build)
    install
    base
    extra=()
    ca=/etc/ssl/certs/ca-certificates.crt
    [ -f "$ca" ] && extra+=(-v "$ca:$ca:ro")
    [ -f /etc/pip.conf ] && extra+=(-v /etc/pip.conf:/etc/pip.conf:ro)
    buildah bud --layers --isolation chroot --pull=never "${extra[@]}" -t "$image" .
    ;;
run)
    data=$(readlink -f "$2") out=$(readlink -f "$3")
    shift 3
    conf=$(mktemp)
    printf '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\nnetns = "none"\n[engine]\nruntime = "runc"\n' >"$conf"
    CONTAINERS_CONF=$conf podman run --rm --read-only --cap-drop=all --security-opt=no-new-privileges --passwd=false \
        -u 54321:54321 -v "$data:/data:ro" -v "$out:/out" "$image" /data /out "$@"
    ;;
*)
    sed -n '2,5p' "$0"
    exit 2
    ;;
esac
