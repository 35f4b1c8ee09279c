#!/bin/bash
# What `make test` has cargo call in place of rustc for our own crates: rustc itself, and beside it clippy and rustdoc, whose
# warnings are errors. So the dependencies are compiled once, for tests and lints; `make check`, which has cargo look at them
# by itself, needs them a second time.
#
# The library and the binary are looked at as they are shipped, too: without the features that only tests have, and without
# the crates that come with these. The other crates have a few features more than they are shipped with (tokio's
# `test-util`, futures-util's `channel` and `io`, hyper's `http2`): who uses those is found by `make check` and `make build`.
#
# Cargo knows of this script by its path alone: `make test` calls a copy that is named by what is in it and in .clippy.toml.
set -uo pipefail

crate="" before=""
for of in "$@"; do
	[ "$before" != --crate-name ] || crate=$of
	before=$of
done
# Cargo asks what rustc this is.
case $crate in "" | ___) exec "$@" ;; esac

# The arguments of clippy, of rustdoc, and of clippy without the features.
clippy=() doc=() shipped=() aside=""
optional=" $(sed -n 's/^\([a-z0-9_-]*\) = .*optional = true.*/\1/p' Cargo.toml | tr '\n-' ' _') "
for ((at = 2; at <= $#; at++)); do
	arg=${!at} next=$((at + 1))
	next=${!next:-}
	case $arg in
	--error-format=* | --json=* | --emit=* | --diagnostic-width=*) continue ;;
	--out-dir) aside=$(dirname "$next")/linted ;;&
	--out-dir | --cfg | -C | --extern) at=$((at + 1)) ;;
	*) clippy+=("$arg") doc+=("$arg") shipped+=("$arg") ;;
	esac
	case $arg:$next in
	--cfg:feature=*) clippy+=("$arg" "$next") doc+=("$arg" "$next") ;;
	-C:incremental=*) ;;
	-C:extra-filename=* | -C:metadata=*) clippy+=("$arg" "$next") ;;
	-C:*) clippy+=("$arg" "$next") shipped+=("$arg" "$next") ;;
	--extern:lakehead=*) clippy+=("$arg" "$next") shipped+=("$arg" "lakehead=$aside/shipped/liblakehead.rmeta") ;;
	--extern:*)
		clippy+=("$arg" "$next") doc+=("$arg" "$next")
		[[ $optional == *" ${next%%=*} "* ]] || shipped+=("$arg" "$next")
		;;
	--cfg:*) clippy+=("$arg" "$next") doc+=("$arg" "$next") shipped+=("$arg" "$next") ;;
	esac
done
mkdir -p "$aside/shipped/bin"

running=()
trap 'kill "${running[@]}" 2>/dev/null' EXIT
trap 'exit 130' INT TERM
clippy-driver rustc "${clippy[@]}" --emit=metadata --out-dir "$aside" -D warnings >&2 &
running+=($!)
case " $* " in
*" --test "*) ;;
*" src/lib.rs "*)
	rustdoc "${doc[@]}" --out-dir "$aside/doc" -D warnings >&2 &
	running+=($!)
	clippy-driver rustc "${shipped[@]}" --emit=metadata --out-dir "$aside/shipped" -D warnings >&2 &
	running+=($!)
	;;
*" src/main.rs "*)
	clippy-driver rustc "${shipped[@]}" --emit=metadata --out-dir "$aside/shipped/bin" -D warnings >&2 &
	running+=($!)
	;;
esac
code=0
"$@" || code=$?
for of in "${running[@]}"; do wait "$of" || code=$?; done
exit "$code"
