#!/bin/bash
# A Ceph cluster of one, in the foreground: monitor, manager, an OSD that keeps all in memory, and the
# S3 gateway on 127.0.0.1. Runs in the chroot that install.sh made: ceph.sh HOME PORT.
# HOME is empty but for `tls.pem`, `tls.key` and `root.secret`. Says "ready" when requests are taken, and
# ends when it is told to or one of the four has ended.
set -euo pipefail
home=$1 port=$2
cd "$home"
exec 2>&1
export CEPH_CONF=$home/ceph.conf
id=$(cat /proc/sys/kernel/random/uuid)
mon='[v2:127.0.0.1:3300,v1:127.0.0.1:6789]'

# The pools are small and many: two groups each, so that one OSD may have them all. Debian's folder of
# object classes is a relative path by default, and nothing works from elsewhere than `/`.
cat >ceph.conf <<END
[global]
fsid = $id
mon host = $mon
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = $home/keyring
run dir = $home
admin socket = $home/\$name.asok
pid file = $home/\$name.pid
log file = $home/\$name.log
mon data = $home/mon
mgr data = $home/mgr
osd data = $home/osd
mon allow pool size one = true
mon max pg per osd = 4000
mon data avail warn = 1
mon data avail crit = 1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 2
osd pool default pgp num = 2
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
osd class dir = $(dirname /usr/lib/*/rados-classes/libcls_rgw.so)
memstore device bytes = 8589934592
mgr initial modules =
[client.rgw.a]
rgw frontends = beast ssl_endpoint=127.0.0.1:$port ssl_certificate=$home/tls.pem ssl_private_key=$home/tls.key
rgw data = $home/rgw
rgw enable apis = s3, sts, iam, admin
rgw s3 auth use sts = true
rgw s3 auth order = local, sts
rgw sts key = $(head -c 8 /dev/urandom | od -An -tx1 | tr -d ' \n')
rgw crypt s3 kms backend = testing
rgw crypt s3 kms encryption keys = lake-key=$(head -c 32 /dev/urandom | base64)
END
mkdir mon mgr osd rgw

started=()
end() {
	trap - EXIT TERM INT
	for process in "${started[@]}"; do kill "$process" 2>/dev/null || true; done
	for _ in $(seq 50); do
		alive=0
		for process in "${started[@]}"; do kill -0 "$process" 2>/dev/null && alive=1; done
		[ "$alive" = 0 ] && break
		sleep 0.1
	done
	for process in "${started[@]}"; do kill -KILL "$process" 2>/dev/null || true; done
	wait
}
trap 'end; exit 1' EXIT
trap 'end; exit 0' TERM INT
run() {
	"$@" -f &
	started+=($!)
}
key() { ceph auth get-or-create "$@" >>keyring; }

ceph-authtool --create-keyring keyring --gen-key -n mon. --cap mon 'allow *'
ceph-authtool keyring --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
ceph-authtool keyring --gen-key -n client.rgw.a --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
monmaptool --create --clobber --fsid "$id" --addv a "$mon" monmap
ceph-mon -i a --mkfs --monmap monmap --keyring keyring
run ceph-mon -i a
key mgr.x mon 'allow profile mgr' osd 'allow *'
run ceph-mgr -i x
osd=$(cat /proc/sys/kernel/random/uuid)
ceph osd new "$osd"
key osd.0 mon 'allow profile osd' mgr 'allow profile osd' osd 'allow *'
ceph-osd -i 0 --mkfs --osd-uuid "$osd"
run ceph-osd -i 0
until ceph osd stat | grep -q ' 1 up'; do sleep 0.2; done
run radosgw -n client.rgw.a
until (exec 4<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do sleep 0.2; done

# An account with its root user, as AWS has them: other users of it may do nothing unless a policy says so.
account=$(radosgw-admin account create --account-name=lake | sed -n 's/.*"id": "\(RGW[0-9]*\)".*/\1/p')
radosgw-admin user create --uid=root --display-name=root --account-id="$account" \
	--account-root --access-key=ROOT --secret-key="$(cat root.secret)"
echo ready
wait -n
