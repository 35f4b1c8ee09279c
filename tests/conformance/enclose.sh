#!/bin/bash
# Runs a program where nothing that it starts can be seen from outside, or outlive it: in network,
# process and mount namespaces of its own, with loopback only. cargo runs the checks through it:
# enclose.sh PROGRAM DIR WORDS, where DIR is what install.sh filled. All ends with the program, and with
# who called it, however that ends.
set -euo pipefail
if [ "${1-}" != inside ]; then
	[ "$(id -u)" = 0 ] || { echo "make conformance must be run as root: it makes namespaces and a chroot" >&2; exit 2; }
	exec setpriv --pdeathsig KILL unshare --net --mount --pid --fork --kill-child --mount-proc "$0" inside "$@"
fi
shift
ip link set lo up
root=$2/ceph
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
exec "$@"
