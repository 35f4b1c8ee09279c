#!/bin/bash
# Brings PostgreSQL's own regression suite into a folder: install.sh DIR. What is there already stays.
#
#   DIR/suite          sql, data and expected output of the release that Debian has, from its source package
#   DIR/lib            the suite's C functions, compiled, and the two triggers of contrib/spi that it loads
#   DIR/pg_regress     what runs it
#   DIR/bin            folder of the server's and the client's programs
#
# The server reads files of the suite, as its own user: DIR has to lie where that user comes.
set -euo pipefail
dir=$1
bin=$(pg_config --bindir)
release=$("$bin/postgres" --version | grep -oE '[0-9]+\.[0-9]+' | head -n 1)
major=${release%%.*}
mkdir -p "$dir"
[ -O "$dir" ] && [ ! -L "$dir" ] || { echo "$dir is somebody else's" >&2; exit 2; }
dir=$(realpath "$dir")
[ -e "$dir/.whole" ] && exit 0
[ -e "$dir/.begun" ] || [ -z "$(ls -A "$dir")" ] || { echo "$dir has something else in it" >&2; exit 2; }

echo "fetching the regression suite of PostgreSQL $major into $dir"
rm -rf "$dir"
mkdir -p "$dir"
touch "$dir/.begun"
mkdir -p "$dir/lists/partial" "$dir/suite" "$dir/lib" "$dir/fetched"
mirror=$(grep -hoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} 2>/dev/null | head -n 1 || true)
echo "deb-src ${mirror:-http://deb.debian.org/debian} $(. /etc/os-release && echo "$VERSION_CODENAME") main" >"$dir/sources.list"
apt=(-qq -o "Dir::Etc::sourcelist=$dir/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::Lists=$dir/lists"
	-o APT::Sandbox::User=root)
apt-get "${apt[@]}" update
(cd "$dir/fetched" && apt-get "${apt[@]}" source --download-only --tar-only "postgresql-$major")
tar -xjf "$dir"/fetched/*.tar.bz2 -C "$dir/suite" --strip-components=4 --wildcards '*/src/test/regress/*'
cc -O1 -w -fPIC -shared -I"$(pg_config --includedir-server)" -o "$dir/lib/regress.so" "$dir/suite/regress.c"
for library in refint autoinc; do cp "$(pg_config --pkglibdir)/$library.so" "$dir/lib/"; done
cp "$(dirname "$(pg_config --pgxs)")/../../src/test/regress/pg_regress" "$dir/pg_regress"
ln -s "$bin" "$dir/bin"
chmod -R a+rX "$dir"
rm -rf "$dir/lists" "$dir/fetched" "$dir/sources.list"
touch "$dir/.whole"
