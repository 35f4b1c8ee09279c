#!/bin/bash
# Brings the two stores into a folder: install.sh DIR. What is there already stays as it is.
#
#   DIR/ceph        Ceph RGW of Debian sid, a chroot: bookworm's 16.2 knows no conditional writes
#   DIR/localstack  LocalStack, community edition, a Python environment
#
# Neither touches the system: mmdebstrap unpacks into the folder alone, and it is the one package asked
# of apt (by the Makefile).
set -euo pipefail
dir=$1
mkdir -p "$dir"

# The mirror that this machine uses, else Debian's own.
mirror() {
	local found
	found=$(grep -hoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} 2>/dev/null | head -n 1 || true)
	echo "${found:-http://deb.debian.org/debian}"
}

if [ ! -e "$dir/ceph/.whole" ]; then
	echo "fetching Ceph RGW into $dir/ceph"
	rm -rf "$dir/ceph"
	# sid's index may be older than its date of expiry on a mirror that lags; its signature is verified all the same.
	mmdebstrap --quiet --mode=root --variant=minbase --format=directory \
		--aptopt='Acquire::Check-Valid-Until "false"' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--include=radosgw,ceph-osd,ceph-mon,ceph-mgr,ceph-common \
		sid "$dir/ceph" "$(mirror)"
	touch "$dir/ceph/.whole"
fi

if [ ! -e "$dir/localstack/.whole" ]; then
	echo "fetching LocalStack into $dir/localstack"
	rm -rf "$dir/localstack"
	python3 -m venv "$dir/localstack"
	"$dir/localstack/bin/pip" install --quiet uv==0.13.8
	# The upper bounds: 4.10.0 does not start with later ones.
	"$dir/localstack/bin/uv" pip install --quiet --python "$dir/localstack/bin/python" \
		'localstack-core[runtime]==4.10.0' 'cryptography<46' 'pyopenssl<25.2' 'cbor2<5.7' service-identity
	touch "$dir/localstack/.whole"
fi
