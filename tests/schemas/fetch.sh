#!/bin/bash
# Brings the schemas of applications, as Debian's packages have them, into a folder: fetch.sh DIR. Nothing is installed.
#
#   DIR/<application>.sql   what makes its tables, and fills some of them
set -euo pipefail
dir=$1
mkdir -p "$dir"
dir=$(realpath "$dir")
[ -e "$dir/.whole" ] && exit 0

echo "fetching the schemas of Icinga, MediaWiki, Roundcube and Zabbix into $dir"
fetched=$(mktemp -d "$dir/fetched.XXXXXX")
trap 'rm -rf "$fetched"' EXIT
(cd "$fetched" && apt-get -qq -o APT::Sandbox::User=root download icinga2-ido-pgsql mediawiki roundcube-core zabbix-server-pgsql)
for package in "$fetched"/*.deb; do
	dpkg-deb --fsys-tarfile "$package" |
		tar -xf - -C "$fetched" --wildcards './usr/share/dbconfig-common/data/*/install/pgsql' './usr/share/zabbix-server-pgsql/*' \
			'./usr/share/mediawiki/maintenance/postgres/*' 2>/dev/null || true
done
share=$fetched/usr/share
cat "$share/dbconfig-common/data/icinga2-ido-pgsql/install/pgsql" >"$dir/icinga.sql"
cat "$share/dbconfig-common/data/roundcube/install/pgsql" >"$dir/roundcube.sql"
zcat "$share"/zabbix-server-pgsql/{schema,images,data}.sql.gz >"$dir/zabbix.sql"
# The schema is to be named by who runs it; /*_*/ and /*i*/ are for prefixes.
cat "$share"/mediawiki/maintenance/postgres/tables{-generated,}.sql | sed '/^SET search_path/d' >"$dir/mediawiki.sql"
touch "$dir/.whole"
