# Lakehead. `make demo` shows it, `make test` checks it, `make` says what else there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

MINUTES ?= 2
DIR ?= demo-data
ROUNDS ?= 1000
SECONDS ?= 600
SEEDS ?= 1000000
SEED ?= 1
TRIALS ?= 20
DAMAGES ?= 10000
RUNS ?= 100
FROM ?= 0
FS ?= ext4
GIB ?= 20
STORES ?= target/conformance
REGRESS ?= /var/tmp/lakehead-regress
VERSIONS ?= 12 13 14 15 16 17 18
STORIES ?= story_adopt story_compare story_failover story_gap story_kill story_new_table story_proof story_reread story_road story_types story_versions
SCALE ?= 1
TURNS ?= 3
SETS ?= wide tpcb
LOADS ?= ins upd
RATE ?= 5000
JOURNAL_GIB ?= 1
export SCALE TURNS SETS LOADS SSLMODE COLD RATE JOURNAL_GIB
PY := target/py/bin/python
SPARK := target/spark/bin/python
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
export SSL_CERT_FILE ?= /etc/ssl/certs/ca-certificates.crt
export RUST_BACKTRACE ?= 1

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

demo: demo-tools ## The whole road on this machine: make demo MINUTES=2 DIR=demo-data
	cargo build --release --locked --features demo
	@target/release/lakehead demo --minutes $(MINUTES) --dir $(DIR)

build: ## The firmware's binary: target/release/lakehead
	cargo build --release --locked

LINTED := $(CURDIR)/target/linted-$(firstword $(shell cat .clippy.toml tests/linted.sh | sha256sum))
test linted: export RUSTC_WORKSPACE_WRAPPER = $(LINTED)
test: compiler ## Everything that must hold before a commit
	@$(MAKE) prepared & prepared=$$!; code=0; $(MAKE) linted || code=$$?; wait $$prepared || code=$$?; exit $$code
	@if cargo nextest --version >/dev/null 2>&1; \
	then cargo nextest run --locked --all-features --profile ci --config-file .nextest.toml; \
	else cargo test --locked --all-features -- --test-threads=3; fi
	@$(MAKE) -j2 --output-sync=target instructions few

# What the tests need and lints do not: it comes while these are at work.
prepared: test-tools instructions-tools python
	@[ "$$(uname -m)" != x86_64 ] || for major in $(ENDS); do tests/postgres/fetch.sh target/postgres $$major >/dev/null; done

# As `make check`, while what the tests need is built: their dependencies are compiled once.
linted: scripts
	@cp tests/linted.sh $(LINTED)
	cargo fmt --all --check
	cargo build --locked --all-features --all-targets
	cargo build --locked --all-features --test conformance

check: scripts ## Formatting, lints, documentation, the unit file; no tests
	cargo fmt --all --check
	cargo clippy --locked --all-features --all-targets -- -D warnings
	cargo clippy --locked --all-features --test conformance -- -D warnings
	cargo clippy --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --all-features --no-deps --quiet

scripts:
	@mkdir -p target
	python3 -m py_compile tests/py/*.py tests/power/*.py tests/conformance/*.py benches/*.py
	@if command -v systemd-analyze >/dev/null && [ -f systemd/lakehead.service ]; then \
		systemd-analyze security --offline=true --threshold=15 systemd/lakehead.service >target/exposure.txt \
			|| { cat target/exposure.txt; exit 1; }; tail -n 1 target/exposure.txt; fi

matrix: test-tools python ## The stories with PostgreSQLs of other versions: make matrix VERSIONS="13 18" STORIES=story_road
	@tests/postgres/matrix.sh "$(VERSIONS)" $(STORIES)

# What of it `make test` has, beside instructions that are counted and not timed: the oldest and the newest that are looked at with each commit.
ENDS := 13 18
FEW := a_million_rows_and_every_type a_promoted_standby_with_the_slot what_newer_servers_have what_a_server_had old_rows_with_generated a_standby_that_copies a_column_is_computed_in_another_way types_become_others
few: test-tools python
	@AT_ONCE=1 $(MAKE) matrix VERSIONS="$(ENDS)" STORIES="$(FEW)"

conformance: conformance-tools ## The S3 side against stores of others, as root: make conformance ONLY="ceph lost"
	@tests/conformance/install.sh $(STORES)
	cargo test --locked --all-features --test conformance \
		--config 'target."cfg(unix)".runner = "$(CURDIR)/tests/conformance/enclose.sh"' -- $(abspath $(STORES)) $(ONLY)

fuzz: fuzz-tools ## Every parser of foreign bytes by libFuzzer: make fuzz SECONDS=600 TARGETS="wire copy"
	@tests/fuzz/run.sh $(SECONDS) $(TARGETS)

fuzz-corpus: fuzz-tools ## The corpus anew: seeds, of a real PostgreSQL where they can be, and of them what counts
	LAKEHEAD_SEEDS=$(CURDIR)/target/fuzz/seeds cargo test --locked --all-features --test fuzz -- the_corpus_begins
	@tests/fuzz/run.sh merge $(TARGETS)

bench: ## The rooms by themselves: decode, seal, journal
	cargo bench --locked --bench decode -- 64
	cargo bench --locked --bench seal_encrypt -- target 128
	cargo bench --locked --bench journal_append -- target 64

instructions: instructions-tools ## What a row takes, counted, beside what is written down: make instructions UPDATE=1 writes it
	@UPDATE=$(UPDATE) python3 benches/instructions.py

bench-binaries: bench-tools ## The gateway as it is shipped, and the store beside it: target/release/lakehead, target/bench-store
	cargo build --release --locked --features demo
	@cp target/release/lakehead target/bench-store
	cargo build --release --locked

bench-snapshot: bench-binaries ## Beside COPY | zstd | openssl | aws: make bench-snapshot SCALE=1 TURNS=3 SETS="wide tpcb" SSLMODE=disable
	@python3 benches/snapshot.py

bench-stream: bench-binaries ## Beside pg_recvlogical: make bench-stream SCALE=1 TURNS=3 LOADS="ins upd" SSLMODE=disable
	@python3 benches/stream.py

bench-upload: bench-binaries ## Beside aws s3 cp, TLS, ciphertext: make bench-upload SCALE=1 TURNS=3
	@python3 benches/upload.py

bench-journal: bench-binaries ## The journal beside fio, append and fdatasync: make bench-journal SCALE=1 TURNS=3
	@python3 benches/journal.py

bench-latency: SECONDS = 60
bench-latency: bench-binaries ## From COMMIT to durable and to proven, idle and loaded: make bench-latency SECONDS=60 RATE=5000
	@env SECONDS=$(SECONDS) python3 benches/latency.py

bench-idle: SECONDS = 60
bench-idle: bench-binaries ## A box at rest, and its start: make bench-idle SECONDS=60 JOURNAL_GIB=1
	@env SECONDS=$(SECONDS) python3 benches/idle.py

bench-guest: SECONDS = 8
bench-guest: RATE = 200
bench-guest: bench-binaries ## What pgbench feels of a snapshot, full and gentle: make bench-guest SECONDS=8 CYCLES=15 RATE=200
	@env SECONDS=$(SECONDS) python3 benches/guest.py

bench-growth: bench-binaries ## A row's CPU as tables grow: make bench-growth ROWS="100000 1000000 10000000" TABLES="1 100 1000"
	@python3 benches/growth.py

bench-charts: ## target/bench/*.json as benches/charts/*.svg
	@python3 benches/charts.py

sizes: ## The binary's size and what a build costs: make sizes COLD=1
	@python3 benches/sizes.py

deny: ## Licences, advisories and doubles among the dependencies
	@cargo deny --version >/dev/null 2>&1 || cargo install --locked cargo-deny
	cargo deny --all-features check --config .deny.toml

python: $(PY) ## Readers that are not ours, for the tests: target/py
$(PY): tests/py/requirements.txt
	python3 -m venv target/py
	target/py/bin/pip install --quiet uv==0.13.8
	target/py/bin/uv pip install --quiet --python $(PY) -r tests/py/requirements.txt
	@touch $(PY)

# The peers, for the benches.
bench-tools: demo-tools target/bench-py/bin/aws
	@$(call install,/usr/bin/zstd:zstd /usr/bin/openssl:openssl /usr/bin/pgbench:postgresql /usr/bin/fio:fio)
target/bench-py/bin/aws: benches/requirements.txt
	python3 -m venv target/bench-py
	target/bench-py/bin/pip install --quiet -r benches/requirements.txt
	@touch $@

# What Debian 12 lacks. Nothing is installed that is there already.
compiler:
	@$(call install,/usr/bin/cc:gcc /usr/include/stdlib.h:libc6-dev)
demo-tools: compiler
	@$(call install,/usr/lib/postgresql/*/bin/initdb:postgresql)
instructions-tools: demo-tools
	@$(call install,/usr/bin/valgrind:valgrind)
fuzz-tools: demo-tools
	@$(call install,/usr/bin/c++:g++)
test-tools: demo-tools
	@$(call install,/usr/bin/python3:python3 /usr/lib/python3*/ensurepip:python3-venv /usr/bin/pgbench:postgresql /usr/bin/unshare:util-linux /usr/sbin/ip:iproute2 /usr/bin/strace:strace /usr/lib/*/faketime/libfaketime.so.1:libfaketime /usr/bin/chromium:chromium)
conformance-tools: demo-tools
	@$(call install,/usr/bin/python3:python3 /usr/lib/python3*/ensurepip:python3-venv /usr/bin/unshare:util-linux \
		/usr/sbin/ip:iproute2 /usr/bin/mmdebstrap:mmdebstrap /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring)

# $(1): pairs of a file and the package that brings it.
define install
missing=""; for pair in $(1); do compgen -G "$${pair%%:*}" >/dev/null || missing="$$missing $${pair##*:}"; done; \
if [ -n "$$missing" ]; then echo "installing$$missing"; \
	$(SUDO) apt-get update -qq; DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi
endef

campaign: test-tools python ## Rounds of faults on one appliance, each proven: make campaign ROUNDS=1000 SEED=7 FROM=0
	cargo build --release --locked
	LAKEHEAD_BINARY=$(CURDIR)/target/release/lakehead LAKEHEAD_ROUNDS=$(ROUNDS) LAKEHEAD_SEED=$(SEED) LAKEHEAD_FROM=$(FROM) \
		cargo test --locked --all-features --test it -- --nocapture campaign::after_every_round

damage: demo-tools ## Damages a stopped journal, again and again, and judges each start: make damage DAMAGES=10000 SEED=1 FROM=0
	@mkdir -p target
	LAKEHEAD_DAMAGES=$(DAMAGES) LAKEHEAD_SEED=$(SEED) LAKEHEAD_FROM=$(FROM) cargo test --locked --all-features --lib -- \
		--nocapture whatever_is_damaged 2>&1 | tee target/damage.log | grep --line-buffered -aE '^==|^round|panicked|^error'

large: test-tools python ## A journal of 20 GiB, 5 M rows at once, 500 MB values, 10,000 tables, 1,000 columns: make large GIB=20
	cargo build --release --locked
	@mkdir -p target/large
	TMPDIR=$(CURDIR)/target/large LAKEHEAD_GIB=$(GIB) cargo test --locked --all-features --lib -- --nocapture a_large_journal
	LAKEHEAD_BINARY=$(CURDIR)/target/release/lakehead LAKEHEAD_LARGE=1 \
		cargo test --locked --all-features --test it -- --nocapture --test-threads=1 story_large of_a_table_of_which

simulate: ## The road against a model world, seed after seed: make simulate SEEDS=1000000 FROM=0
	cargo build --release --locked --features sim --target-dir target/sim
	@target/sim/release/lakehead simulate --seeds $(SEEDS) --from $(FROM)

prove-source: test-tools ## The lake beside its database under load, again and again, without a false alarm: make prove-source RUNS=100 SEED=1
	LAKEHEAD_RUNS=$(RUNS) LAKEHEAD_SEED=$(SEED) cargo test --locked --all-features --test it -- --nocapture the_lake_equals_its_source

regress: test-tools python ## PostgreSQL's own regression suite on the source: what it leaves is restored equal, or refused by name
	@$(call install,/usr/include/postgresql/*/server/postgres.h:postgresql-server-dev-all /usr/bin/bzip2:bzip2)
	tests/regress/install.sh $(REGRESS)
	LAKEHEAD_REGRESS=$(REGRESS) cargo test --locked --all-features --test it -- --ignored --nocapture --test-threads=1 story_regress

schemas: test-tools python ## The tables of Icinga, MediaWiki, Roundcube and Zabbix, filled, changed, restored equal
	tests/schemas/fetch.sh target/schemas
	LAKEHEAD_SCHEMAS=$(CURDIR)/target/schemas cargo test --locked --all-features --test it -- --ignored --nocapture story_schemas

extensions: test-tools python ## PostGIS and pgvector, copied and restored equal
	@$(call install,/usr/share/postgresql/*/extension/postgis.control:postgresql-15-postgis-3 /usr/share/postgresql/*/extension/postgis_raster.control:postgresql-15-postgis-3)
	cargo test --locked --all-features --test it -- --ignored --nocapture what_postgis
	LAKEHEAD_POSTGRES="$$(tests/postgres/fetch.sh target/postgres pgvector)" \
		cargo test --locked --all-features --test it -- --ignored --nocapture what_pgvector

spark: test-tools python $(SPARK) ## Every value of a lake read by Spark, as pyarrow reads it: 320 MB from PyPI, and Java
	@$(call install,/usr/bin/java:openjdk-17-jre-headless)
	LAKEHEAD_SPARK=$(CURDIR)/$(SPARK) cargo test --locked --all-features --test it -- --ignored --nocapture spark_reads
$(SPARK): tests/py/spark.txt
	python3 -m venv target/spark
	target/spark/bin/pip install --quiet setuptools==80.9.0 wheel==0.45.1
	target/spark/bin/pip install --quiet --no-build-isolation -r tests/py/spark.txt
	@touch $(SPARK)

unit-test: test-tools python ## The unit under a live systemd, in a Debian of its own (needs root)
	@$(call install,/usr/bin/systemd-nspawn:systemd-container /usr/bin/mmdebstrap:mmdebstrap /usr/bin/nsenter:util-linux)
	@[ -d target/unit/root/etc ] || { mkdir -p target/unit; $(SUDO) mmdebstrap --quiet --variant=minbase \
		--include=systemd,systemd-sysv,dbus,ca-certificates bookworm target/unit/root; }
	cargo test --locked --all-features --test it -- --ignored --nocapture the_unit_works_under_systemd

power-loss: power-tools ## Cuts the power of a journal's disk again and again: make power-loss TRIALS=20 FS=ext4 (needs root)
	cargo build --locked --all-features --example power_journal
	$(SUDO) python3 tests/power/power_loss.py --journal target/debug/examples/power_journal --trials $(TRIALS) --fs $(FS) --dir target/power

power-tools:
	@$(call install,/usr/bin/python3:python3 /usr/sbin/mkfs.ext4:e2fsprogs /usr/sbin/mkfs.xfs:xfsprogs /usr/bin/mount:mount)

clean: ## What was built, and the demo's folder
	cargo clean
	rm -rf demo-data

.PHONY: help demo build test prepared linted check scripts matrix few conformance fuzz fuzz-corpus fuzz-tools bench bench-binaries bench-snapshot bench-stream \
	bench-upload bench-journal bench-latency bench-idle bench-guest bench-growth bench-charts instructions instructions-tools sizes deny campaign damage large regress schemas extensions spark simulate \
	prove-source unit-test \
	power-loss python compiler demo-tools test-tools power-tools bench-tools conformance-tools clean
