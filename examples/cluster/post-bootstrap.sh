#!/bin/sh
# Patroni runs this once, on the first primary, with the superuser's connection string: PaperDB's user and database.
set -e
psql -X -q -v ON_ERROR_STOP=1 -v password="$PAPERDB_PASSWORD" "$1" <<'SQL'
CREATE ROLE paperdb LOGIN PASSWORD :'password';
CREATE DATABASE paperdb OWNER paperdb;
SQL
