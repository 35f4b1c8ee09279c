#!/bin/bash
# Runs stories with PostgreSQLs of other versions, one after the other: matrix.sh "13 18" STORY…
# The last version is the one to which the story of an upgrade restores.
#
# A story that needs more than a version has leaves that out and says so; what was left out is shown. All that was
# said is in target/matrix/MAJOR.log.
set -euo pipefail
cd "$(dirname "$0")/../.."
versions=$1
shift
[ "$(uname -m)" = x86_64 ] || { echo "the servers of other versions are for x86_64: left out"; exit 0; }
mkdir -p target/matrix
cargo test --locked --all-features --test it --no-run
newest=$(tests/postgres/fetch.sh target/postgres "${versions##* }")
failed=""
for major in $versions; do
	bin=$(tests/postgres/fetch.sh target/postgres "$major")
	log=target/matrix/$major.log
	began=$SECONDS
	echo "== $("$bin/postgres" --version)"
	LAKEHEAD_POSTGRES=$bin LAKEHEAD_POSTGRES_NEWEST=$newest timeout 3600 cargo test --quiet --locked --all-features --test it -- \
		--format=pretty --show-output --test-threads=5 "$@" >"$log" 2>&1 || failed="$failed $major"
	grep -aE '^PostgreSQL [0-9]+: left out|^test .*(ok|FAILED)$' "$log" | sort -u || true
	grep -aE '^error|^test result' "$log" || true
	# A filter that meets no story is one that was renamed.
	for story in "$@"; do
		grep -qaE "^test .*$story.* ok$" "$log" || { echo "no story of PostgreSQL $major is named $story"; failed="$failed $major"; }
	done
	echo "== PostgreSQL $major took $((SECONDS - began)) s"
done
if [ -n "$failed" ]; then
	echo "failed with PostgreSQL$failed: see target/matrix/"
	exit 1
fi
