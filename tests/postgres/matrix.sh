#!/bin/bash
# Runs stories with PostgreSQLs of other versions, one after the other, or with AT_ONCE=1 beside each other: matrix.sh "13 18" STORY…
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

# The stories with one version, and what is to be said of them; fails if one did.
stories_with() {
	local major=$1 bin log=target/matrix/$1.log began=$SECONDS failed=0
	shift
	bin=$(tests/postgres/fetch.sh target/postgres "$major")
	echo "== $("$bin/postgres" --version)"
	LAKEHEAD_POSTGRES=$bin LAKEHEAD_POSTGRES_NEWEST=$newest LAKEHEAD_STORIES=target/matrix/$major LAKEHEAD_SCALE=1 timeout 3600 \
		cargo test --quiet --locked --all-features --test it -- \
		--format=pretty --show-output --test-threads=$threads "$@" >"$log" 2>&1 || failed=1
	grep -aE '^PostgreSQL [0-9]+: left out|^test .*(ok|FAILED)$' "$log" | sort -u || true
	grep -aE '^error|^test result' "$log" || true
	# A filter that meets no story is one that was renamed.
	for story in "$@"; do
		grep -qaE "^test .*$story.* ok$" "$log" || { echo "no story of PostgreSQL $major is named $story"; failed=1; }
	done
	echo "== PostgreSQL $major took $((SECONDS - began)) s"
	return $failed
}

# All at once where that is asked for: the end of each is a single long story.
threads=5
[ -z "${AT_ONCE:-}" ] || threads=3
failed=""
declare -A running
ended() {
	wait "${running[$1]}" || failed="$failed $1"
	cat "target/matrix/$1.said"
}
for major in $versions; do
	stories_with "$major" "$@" >"target/matrix/$major.said" 2>&1 &
	running[$major]=$!
	[ -n "${AT_ONCE:-}" ] || ended "$major"
done
if [ -n "${AT_ONCE:-}" ]; then
	for major in $versions; do ended "$major"; done
fi
if [ -n "$failed" ]; then
	echo "failed with PostgreSQL$failed: see target/matrix/"
	exit 1
fi
