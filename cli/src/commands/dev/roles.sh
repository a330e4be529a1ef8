#!/bin/bash
# Run by the postgres image once, when the database is made: for every service a role that owns its schema and a role
# that works in it. The passwords are those in the files; the schemas themselves come with `<service> migrate`.
set -euo pipefail

secrets=/etc/garrison/secrets
{
    echo 'create database garrison;'
    echo 'revoke all on database garrison from public;'
    for file in "$secrets"/*_owner.password "$secrets"/*_service.password; do
        role=$(basename "$file" .password)
        printf "create role \"%s\" login nosuperuser nocreatedb nocreaterole nobypassrls password '%s';\n" \
            "$role" "$(cat "$file")"
        printf 'grant connect on database garrison to "%s";\n' "$role"
        case $role in
        *_owner) printf 'grant create on database garrison to "%s";\n' "$role" ;;
        esac
    done
} | psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres
