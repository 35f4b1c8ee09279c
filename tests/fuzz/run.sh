#!/usr/bin/env bash
# run.sh SECONDS [TARGET…]: each target by libFuzzer, from the corpus and what earlier runs found under
# target/fuzz/work/. An input that breaks a promise is left under target/fuzz/found/, and the run ends with 1.
# run.sh merge [TARGET…]: the corpus becomes the fewest inputs of the seeds and itself that reach as much code.
set -euo pipefail
cd "$(dirname "$0")/../.."
what=$1; shift
host=$(rustc -vV | sed -n 's/^host: //p')
# Coverage by the stable compiler. Memory is counted by our allocator, so that no sanitizer is needed.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=16"
# A trace of a panic that is contained would be counted to the target's memory.
export RUST_BACKTRACE=0
cargo build --locked -p lakehead-fuzz --profile fuzz --target "$host"
fuzz=target/$host/fuzz/fuzz
[ $# -gt 0 ] || set -- $(ls tests/fuzz/corpus)
mkdir -p target/fuzz/found target/fuzz/log
broken=0
for target in "$@"; do
	work=target/fuzz/work/$target corpus=tests/fuzz/corpus/$target log=target/fuzz/log/$target
	mkdir -p "$work" "$corpus" "target/fuzz/seeds/$target"
	export LAKEHEAD_FUZZ=$target
	if [ "$what" = merge ]; then
		rm -rf "$corpus.new"; mkdir "$corpus.new"
		"$fuzz" -set_cover_merge=1 -max_len=4096 "$corpus.new" "$corpus" "target/fuzz/seeds/$target" >"$log" 2>&1
		# What once broke a promise stays.
		find "$corpus" -name 'found-*' -exec cp {} "$corpus.new" \;
		rm -rf "$corpus"; mv "$corpus.new" "$corpus"
		printf '%-12s %5d inputs\n' "$target" "$(ls "$corpus" | wc -l)"
	elif "$fuzz" -max_total_time="$what" -max_len=16384 -timeout=10 -rss_limit_mb=3072 -print_final_stats=1 \
		-artifact_prefix="target/fuzz/found/$target-" "$work" "$corpus" >"$log" 2>&1; then
		printf '%-12s %s inputs, nothing broken\n' "$target" "$(sed -n 's/.*executed_units: *//p' "$log")"
	else
		broken=1
		printf '%-12s BROKEN: %s\n' "$target" "$(grep -m1 -A1 -E 'panicked|ERROR' "$log" | tr '\n' ' ')"
	fi
done
exit $broken
