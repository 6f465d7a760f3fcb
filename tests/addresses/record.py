"""What do Prefect and its drivers make of an address and an environment? Asks their own code; connects nowhere.

    python -m venv venv && venv/bin/pip install -r tests/addresses/requirements.txt
    venv/bin/python tests/addresses/record.py                     writes tests/data/addresses.jsonl.gz
    venv/bin/python tests/addresses/record.py --all 10000 FILE    that many lines, for a comparison (SEED: --seed 7)
    venv/bin/python tests/addresses/record.py --ask < LINES       answers lines {"kind","url","env"} of standard input
    venv/bin/python tests/addresses/record.py --files DIRECTORY   writes the files that the lines name

For PostgreSQL, Prefect's own engine is asked for a connection, and what asyncpg would dial is written down in the
place of dialling. For Redis, prefect-redis' own client is asked for the connection that it would open; its TLS
context is built, which reads the files.

Every line but the first is {"kind", "url", "env", "result"}.

  kind    "postgres" or "redis".
  url     PREFECT_SERVER_DATABASE_CONNECTION_URL or PREFECT_REDIS_MESSAGING_URL; null where it is not set.
  env     The other variables. HOME={dir}/home and LOGNAME=operator hold where the line sets none. {dir} stands for
          the folder of the files, in all of them.
  result  What the driver would do, or {"error", "type", "says"}; `type` and `says` are for people. The error is
          "settings" (Prefect refuses its own settings), "sqlite" (no address of PostgreSQL is set), "url" (it can't be
          read), "driver" (another driver than asyncpg, or none, is asked for), "option" (an unknown one), "value" (one
          is refused), "file" (missing or unreadable) or "cluster" (Redis Cluster, which Prefect refuses).

The first line, {"kind": "files", "files": {path: {"text"} or {"pem"}}}, lists the files: "pem" is "ca", "certificate",
"key" or "locked-key" (its password is `unlock`). All have mode 0600, or that of "mode".

A PostgreSQL result:

  addresses              in the order of trying: {"host", "port"} or {"path"} (of the socket itself). "never": true on
                         one that no connection can be made to, whatever the network is like.
  user, password         password null: none is sent.
  database
  tls                    {"mode": "disable" | "allow" | "prefer" | "require" | "verify-ca" | "verify-full" | "context"}.
                         "context" is Prefect's own, from its TLS settings; it is as strict as "require" about having
                         TLS. Beyond "disable" also: "direct" (without asking first), "verify" ("none" or
                         "required"), "hostname" (whether the name is checked), "ca", "crl" (files), "system_ca"
                         (whether the system's authorities count), "certificate", "key", "key_password",
                         "min", "max" (TLSv1_2; null: no limit). It means nothing to a socket's path.
  target_session_attrs
  server_settings        sent at start-up.
  options                of the client: connect_timeout, command_timeout (seconds, over all hosts together),
                         statement_cache_size, prepared_statement_cache_size, krbsrvname.

A Redis result:

  transport              "tcp", "tls", "unix", "sentinel" or "sentinel-tls".
  host, port             of "tcp" and "tls". path: of "unix". "never" as above, also for a database below 0.
  sentinels, service     of a sentinel: [{"host", "port"}]; sentinel_auth and sentinel_tls, as auth and tls.
  db
  auth                   the arguments of AUTH: null, [password] or [user, password].
  tls                    null, or {"verify": "none" | "optional" | "required", "hostname", "ca", "ca_folder", "ca_data",
                         "certificate", "key", "key_password", "min" (a number), "ciphers", "flags"}. The system's
                         authorities count in any case.
  options                what else differs from redis-py's default: socket_timeout and so on. Prefect itself sets
                         health_check_interval and protocol.
"""

import argparse
import asyncio
import collections
import contextlib
import gzip
import io
import json
import os
import pathlib
import random
import re
import ssl
import subprocess
import sys
import tempfile
import warnings

HERE = pathlib.Path(__file__).resolve().parent
TABLE = HERE.parent / "data" / "addresses.jsonl.gz"
RECORDED = 645
DATABASE_URL = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
REDIS_URL = "PREFECT_REDIS_MESSAGING_URL"
DEFAULT_ENVIRONMENT = {"HOME": "{dir}/home", "LOGNAME": "operator"}

PASSFILE = r"""# host:port:database:user:password
db.example:5432:prefect:operator:for-db
db.example:5432:prefect:app:app\:with\\escapes
localhost:*:prefect:*:for-localhost
*:6000:*:*:for-port-6000
\:\:1:5432:*:*:for-ipv6
second.example:5432:prefect:app:for-second

  *:*:blanks:*:  after blanks
"""
SERVICE = "[events]\nhost=service.example\nport=7000\nuser=service\ndbname=service\n"
FILES = {
    "ca.pem": {"pem": "ca"},
    "certificate.pem": {"pem": "certificate"},
    "key.pem": {"pem": "key"},
    "locked.pem": {"pem": "locked-key"},
    "broken.pem": {"text": "not a certificate\n"},
    "passfile": {"text": PASSFILE},
    "short-passfile": {"text": "db.example:5432\n"},
    "open-passfile": {"text": PASSFILE, "mode": "0644"},
    "service.conf": {"text": SERVICE},
    "home/nothing": {"text": ""},
    "home-passfile/.pgpass": {"text": "*:*:*:*:from-home\n"},
    "home-service/.pg_service.conf": {"text": SERVICE},
    "home-tls/.postgresql/root.crt": {"pem": "ca"},
    "home-tls/.postgresql/postgresql.crt": {"pem": "certificate"},
    "home-tls/.postgresql/postgresql.key": {"pem": "key"},
}


def write_files(folder):
    """The files that the addresses name."""
    pems = folder / "pems"
    pems.mkdir(parents=True)

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=pems)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650"]
    openssl("req", "-x509", *curve, "-subj", "/CN=authority", "-keyout", "ca-key", "-out", "ca")
    openssl("req", *curve[:-2], "-subj", "/CN=operator", "-keyout", "key", "-out", "request")
    openssl("x509", "-req", "-in", "request", "-CA", "ca", "-CAkey", "ca-key", "-CAcreateserial", "-days", "3650",
            "-out", "certificate")
    openssl("pkcs8", "-topk8", "-in", "key", "-out", "locked-key", "-passout", "pass:unlock")
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((pems / content["pem"]).read_text() if "pem" in content else content["text"])
        path.chmod(int(content.get("mode", "0600"), 8))


# The grammar. A spelling is an address by its parts, any of which may be odd.

SECRETS = [
    "secret", "p%40ss", "a:b", "a/b", "a%2Fb%3Fc", "50%25", "50%", "a+b", "%C3%A9", "é", "a b", "a%20b", "a#b", "%zz",
    "",
]
NAMES = ["app", "us%40er", "us%3Aer", "us+er", "%70refect", "", "o'neil", "dom%5Cuser"]
HOSTS = [
    "db.example", "DB.Example", "10.0.0.7", "localhost", "[::1]", "[2001:db8::7]", "[fe80::1%25eth0]", "",
    "%2Frun%2Fpg", "db%2Dexample", "db_example", "b\u00fccher.example", "db.example.", "a,b", "[::1",
]
PORTS = ["", "", "", ":5432", ":6000", ":", ":0", ":70000", ":-1", ":x", ":05432", ":%35432"]
DATABASES = [
    "/prefect", "/prefect", "/pre%20fect", "/a/b", "/a%2Fb", "/", "", "/%C3%A9", "/pre+fect", "/prefect ", "/#x",
    "//prefect",
]

PG_HOST_LISTS = [
    "host=a,b&port=1,2", "host=a,b&port=1", "host=a,b", "host=a&port=1,2", "host=a:1&host=b:2", "host=a:1,b:2",
    "host=a&host=b", "host=a:1&host=b", "host=a,b&host=c,d", "host=a&host=b&port=1&port=2", "host=a&host=b&port=1,2",
    "host=a:1&host=b:2&port=3", "host=a,b&port=1&port=2", "host=a,&port=1,2", "host=,b&port=1,2", "host=a,b&port=1,",
    "host=a,b&port=,", "host=a, b&port=1, 2", "host=a:1", "host=a:", "host=:1", "host=a:x", "host=a&port=x",
    "host=a:1&port=2", "host=a%3A1", "host=a%2Cb&port=1%2C2", "host=a,b,c&port=1,2,3", "host=a,a&port=1,1", "host=::1",
    "host=::1&port=6000", "host=[::1]", "host=[::1]:6000", "host=::1,::2&port=1,2", "host=2001:db8::7&host=b:1",
    "host=fe80::1%25eth0", "port=6000", "port=5432,5433", "port=", "port=x", "host=", "host=&port=6000", "host=a_b:1",
    "host=10.0.0.7,10.0.0.8&port=5432,6000", "host=a,b&port=0,1", "host=a,b&port=5432,70000",
]
SOCKETS = [
    "host=/run/postgresql", "host=/cloudsql/p:r:i", "host=%2Fcloudsql%2Fp%3Ar%3Ai",
    "host=/cloudsql/p:r:i/.s.PGSQL.5432", "host=%2Fcloudsql%2Fp%3Ar%3Ai%2F.s.PGSQL.5432",
    "host=/cloudsql/p:r:i&port=6000", "host=/cloudsql/p:r:i/.s.PGSQL.5432&port=6000", "host=/run/pg/",
    "host=/run/pg,/tmp&port=1,2", "host=/run/pg,/tmp", "host=/run/pg:6000", "host=/run/pg&host=/tmp",
    "host=/cloudsql/p:r:i&host=/tmp", "host=/cloudsql/a:b:c,/cloudsql/d:e:f&port=5432,5432",
    "host=/run/pg,db.example&port=5432,6000", "host=db.example,/run/pg&port=5432,6000",
    "host=/run/pg:1&host=db.example:2", "host=/", "host=/with%20blank", "host=/with+plus", "host=@abstract",
    "host=~/socket", "host=./socket",
]
TARGETS = [
    "any", "primary", "standby", "prefer-standby", "read-write", "read-only", "prefer_standby", "read_write", "PRIMARY",
    "master", "writer", " primary",
]
SSL_MODES = [
    "disable", "allow", "prefer", "require", "verify-ca", "verify-full", "verify_ca", "verify_full", "REQUIRE", "true",
    "false", "1", "on", "no-verify", "mro", "parse",
]
PG_OPTIONS = [
    *(f"ssl={mode}" for mode in SSL_MODES), *(f"sslmode={mode}" for mode in SSL_MODES[:6]),
    *(f"target_session_attrs={target}" for target in TARGETS), "ssl=require&ssl=disable",
    "target_session_attrs=primary&target_session_attrs=any", "sslrootcert={dir}/ca.pem",
    "sslcert={dir}/certificate.pem", "sslkey={dir}/key.pem", "sslcrl={dir}/ca.pem", "sslpassword=unlock",
    "sslnegotiation=direct", "ssl_min_protocol_version=TLSv1.3", "direct_tls=true", "direct_tls=false",
    "direct_tls=true&ssl=require", "direct_tls=&ssl=require", "prepared_statement_cache_size=0",
    "prepared_statement_cache_size=500", "prepared_statement_cache_size=x", "statement_cache_size=0",
    "prepared_statement_name_func=x", "max_cached_statement_lifetime=0", "max_cacheable_statement_size=0",
    "command_timeout=5", "command_timeout=x", "timeout=3", "connect_timeout=3", "server_settings=x",
    "server_settings={}", "options=-csearch_path%3Devents", "application_name=events", "search_path=events",
    "default_transaction_isolation=serializable",
    "default_transaction_isolation=serializable&default_transaction_isolation=read%20committed",
    "default_transaction_read_only=on", "keepalives=1", "fallback_application_name=x", "channel_binding=require",
    "gssencmode=disable", "load_balance_hosts=random", "client_encoding=utf8", "require_auth=scram-sha-256",
    "krbsrvname=pg", "gsslib=gssapi", "gsslib=sspi", "gsslib=x", "user=query", "password=query",
    "user=query&password=query", "user=", "password=", "database=query", "dbname=query", "passfile={dir}/passfile",
    "passfile={dir}/missing", "service=events", "servicefile={dir}/service.conf",
    "service=events&servicefile={dir}/service.conf", "dsn=postgresql://d:s@dsn.example:7000/dsn", "dsn=x", "loop=x",
    "async_fallback=true", "plugin=x", "record_class=x", "isolation_level=AUTOCOMMIT", "pool_size=3", "echo=true",
    "unknown=1", "unknown=", "=x", "&&", "ssl", "SSL=require", "ssl=%72equire", "ssl=require;x=1", "user=a&user=b",
]
PG_VARIABLES = [
    {"PGHOST": "env.example"}, {"PGHOST": "env.example:7000"}, {"PGHOST": "e1,e2"}, {"PGHOST": "e1:1,e2:2"},
    {"PGHOST": "e1,e2", "PGPORT": "1,2"}, {"PGHOST": "e1,e2", "PGPORT": "7000"}, {"PGHOST": "e1,e2", "PGPORT": "1,2,3"},
    {"PGHOST": "e1:1,e2", "PGPORT": "7000"}, {"PGHOST": "/run/env"}, {"PGHOST": "/cloudsql/p:r:i"},
    {"PGHOST": "/run/a,/run/b", "PGPORT": "1,2"}, {"PGHOST": "[::1]"}, {"PGHOST": "[::1]:7000"}, {"PGHOST": "::1"},
    {"PGHOST": "[::1"}, {"PGHOST": ""}, {"PGHOST": "e1,"}, {"PGHOST": "e1:x"}, {"PGHOST": "%2Frun"}, {"PGPORT": "7000"},
    {"PGPORT": "x"}, {"PGPORT": ""}, {"PGPORT": "1,2"}, {"PGPORT": "1,2,3,4,5"}, {"PGPORT": " 7000 "}, {"PGPORT": "0"},
    {"PGUSER": "envuser"}, {"PGUSER": ""}, {"LOGNAME": "log", "USER": "usr"}, {"LOGNAME": "", "USER": "usr"},
    {"LOGNAME": "", "LNAME": "lname"}, {"LOGNAME": "", "USERNAME": "uname"}, {"PGPASSWORD": "envsecret"},
    {"PGPASSWORD": ""}, {"PGPASSFILE": "{dir}/passfile"}, {"PGPASSFILE": "{dir}/open-passfile"},
    {"PGPASSFILE": "{dir}/short-passfile"}, {"PGPASSFILE": "{dir}/short-passfile", "PGPASSWORD": "envsecret"},
    {"PGPASSFILE": "{dir}/missing"}, {"PGPASSFILE": "{dir}"}, {"PGPASSFILE": ""}, {"HOME": "{dir}/home-passfile"},
    {"HOME": "{dir}/home-passfile", "PGPASSFILE": "{dir}/passfile"},
    {"HOME": "{dir}/home-passfile", "PGPASSWORD": "envsecret"}, {"PGDATABASE": "envdb"}, {"PGDATABASE": ""},
    {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": "{dir}/ca.pem"},
    {"PGSSLMODE": "require", "PGSSLROOTCERT": "{dir}/ca.pem"}, {"PGSSLMODE": "prefer", "PGSSLROOTCERT": "{dir}/ca.pem"},
    {"PGSSLMODE": "verify-ca"}, {"PGSSLMODE": "verify-ca", "HOME": "{dir}/home-tls"},
    {"PGSSLMODE": "require", "HOME": "{dir}/home-tls"}, {"HOME": "{dir}/home-tls"}, {"PGSSLMODE": "disable"},
    {"PGSSLMODE": "allow"}, {"PGSSLMODE": "wrong"}, {"PGSSLMODE": ""},
    {"PGSSLMODE": "require", "PGSSLROOTCERT": "{dir}/missing.pem"},
    {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": "{dir}/missing.pem"},
    {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": "{dir}/broken.pem"},
    {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": "system"}, {"PGSSLROOTCERT": "{dir}/ca.pem"},
    {"PGSSLCERT": "{dir}/certificate.pem", "PGSSLKEY": "{dir}/key.pem", "PGSSLMODE": "require"},
    {"PGSSLCERT": "{dir}/certificate.pem", "PGSSLMODE": "require"},
    {"PGSSLCERT": "{dir}/missing.pem", "PGSSLMODE": "require"},
    {"PGSSLCERT": "{dir}/certificate.pem", "PGSSLKEY": "{dir}/locked.pem"},
    {"PGSSLMODE": "verify-ca", "PGSSLROOTCERT": "{dir}/ca.pem", "PGSSLCRL": "{dir}/ca.pem"},
    {"PGSSLMODE": "require", "PGSSLCRL": "{dir}/missing.pem"}, {"PGSSLMINPROTOCOLVERSION": "TLSv1.3"},
    {"PGSSLMAXPROTOCOLVERSION": "TLSv1.2"}, {"PGSSLMINPROTOCOLVERSION": "SSLv3"}, {"PGSSLMINPROTOCOLVERSION": "x"},
    {"PGSSLNEGOTIATION": "direct"}, {"PGSSLNEGOTIATION": "direct", "PGSSLMODE": "require"},
    {"PGSSLNEGOTIATION": "postgres"}, {"PGSSLNEGOTIATION": "x"},
    *({"PGTARGETSESSIONATTRS": target} for target in [*TARGETS, ""]),
    {"PGSERVICE": "events", "PGSERVICEFILE": "{dir}/service.conf"},
    {"PGSERVICE": "events", "HOME": "{dir}/home-service"}, {"PGSERVICE": "missing"}, {"PGAPPNAME": "envapp"},
    {"PGOPTIONS": "-csearch_path=env"}, {"PGCONNECT_TIMEOUT": "3"}, {"PGHOSTADDR": "10.0.0.9"}, {"PGKRBSRVNAME": "env"},
    {"PGGSSLIB": "sspi"}, {"PGCLIENTENCODING": "LATIN1"}, {"PGCHANNELBINDING": "require"},
]
SETTINGS = "PREFECT_SERVER_DATABASE_"
TLS = SETTINGS + "SQLALCHEMY_CONNECT_ARGS_TLS_"
ARGUMENTS = SETTINGS + "SQLALCHEMY_CONNECT_ARGS_"
PG_SETTINGS = [
    {TLS + "ENABLED": "true"}, {TLS + "ENABLED": "true", TLS + "CA_FILE": "{dir}/ca.pem"},
    {TLS + "ENABLED": "true", TLS + "CHECK_HOSTNAME": "false"},
    {TLS + "ENABLED": "true", TLS + "CA_FILE": "{dir}/missing.pem"},
    {
        TLS + "ENABLED": "true", TLS + "CA_FILE": "{dir}/ca.pem", TLS + "CERT_FILE": "{dir}/certificate.pem",
        TLS + "KEY_FILE": "{dir}/key.pem",
    },
    {TLS + "ENABLED": "true", TLS + "CERT_FILE": "{dir}/certificate.pem"}, {TLS + "CA_FILE": "{dir}/ca.pem"},
    {TLS + "ENABLED": "true", "PGSSLMODE": "disable"}, {TLS + "ENABLED": "maybe"},
    {ARGUMENTS + "APPLICATION_NAME": "prefect-events"}, {ARGUMENTS + "SEARCH_PATH": "events, public"},
    {ARGUMENTS + "STATEMENT_CACHE_SIZE": "0"}, {ARGUMENTS + "PREPARED_STATEMENT_CACHE_SIZE": "0"},
    {SETTINGS + "TIMEOUT": "30"}, {SETTINGS + "CONNECTION_TIMEOUT": "20"}, {SETTINGS + "CONNECTION_TIMEOUT": "0"},
    {SETTINGS + "TIMEOUT": "x"},
]
SEPARATE = {SETTINGS + "DRIVER": "postgresql+asyncpg", SETTINGS + "HOST": "sep.example", SETTINGS + "USER": "sep",
    SETTINGS + "NAME": "sepdb"}
PG_SEPARATE = [
    SEPARATE, {**SEPARATE, SETTINGS + "PORT": "7000"}, {**SEPARATE, SETTINGS + "PASSWORD": "p@s:s/w%40"},
    {**SEPARATE, SETTINGS + "HOST": "/cloudsql/p:r:i"}, {**SEPARATE, SETTINGS + "HOST": "::1"},
    {**SEPARATE, SETTINGS + "HOST": "[::1]"}, {**SEPARATE, SETTINGS + "HOST": "a,b"},
    {**SEPARATE, SETTINGS + "USER": "us@er"}, {**SEPARATE, SETTINGS + "NAME": "a/b c?x"},
    {**SEPARATE, SETTINGS + "NAME": "50%25"}, {**SEPARATE, SETTINGS + "PORT": "x"},
    {SETTINGS + "DRIVER": "postgresql+asyncpg"},
    {SETTINGS + "DRIVER": "postgresql+psycopg2", SETTINGS + "HOST": "h"},
    {**SEPARATE, "PGPASSWORD": "envsecret"}, {**SEPARATE, SETTINGS + "PASSWORD": ""},
    {"PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://old@old.example/old"},
    {**SEPARATE, "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://old@old.example/old"},
]
# One variable may hold a whole section of Prefect's settings, as JSON.
SERVER, SECTION, ALCHEMY = "PREFECT_SERVER", "PREFECT_SERVER_DATABASE", "PREFECT_SERVER_DATABASE_SQLALCHEMY"
JSON_URL = "postgresql+asyncpg://json:secret@json.example/json"
JSON_PARTS = {"driver": "postgresql+asyncpg", "host": "json.example", "user": "json", "name": "json"}
ENV_URL = "postgresql+asyncpg://env:secret@env.example/env"
JSON_TLS = {"enabled": True, "ca_file": "{dir}/ca.pem"}
SECTION_NAMES = {SERVER, SECTION, ALCHEMY, ARGUMENTS[:-1], TLS[:-1]}


def section(name, value, **variables):
    return {name: value if isinstance(value, str) else json.dumps(value), **variables}


PG_SECTIONS = [
    section(SECTION, {"connection_url": JSON_URL}), section(SERVER, {"database": {"connection_url": JSON_URL}}),
    section(SECTION.lower(), {"connection_url": JSON_URL}), section(SECTION, JSON_PARTS),
    section(SERVER, {"database": JSON_PARTS}), section(SECTION, {**JSON_PARTS, "port": 7000, "password": "p@s:s/w%40"}),
    section(SECTION, {**JSON_PARTS, "port": "7000"}), section(SECTION, {**JSON_PARTS, "port": 7000.0}),
    section(SECTION, {**JSON_PARTS, "port": 7000.5}), section(SECTION, {**JSON_PARTS, "port": True}),
    section(SECTION, {**JSON_PARTS, "port": None}), section(SECTION, {**JSON_PARTS, "host": 5}),
    section(SECTION, {**JSON_PARTS, "password": 5}),
    section(SECTION, {"connection_url": JSON_URL}, **{DATABASE_URL: ENV_URL}),
    section(SECTION, {"connection_url": None}, **{DATABASE_URL: ENV_URL}),
    section(SECTION, {"connection_url": None, **JSON_PARTS}, **{DATABASE_URL: ENV_URL}),
    section(SECTION, {"CONNECTION_URL": JSON_URL}, **{DATABASE_URL: ENV_URL}),
    section(SECTION, {"prefect_api_database_connection_url": JSON_URL}),
    section(SECTION, {"PREFECT_SERVER_DATABASE_CONNECTION_URL": JSON_URL}),
    section(SECTION, {DATABASE_URL.lower(): JSON_URL}, PREFECT_API_DATABASE_CONNECTION_URL=ENV_URL),
    section(SECTION, {"connection_url": JSON_URL}, PREFECT_API_DATABASE_CONNECTION_URL=ENV_URL),
    section(SECTION, {"connection_url": ENV_URL}, **section(SERVER, {"database": {"connection_url": JSON_URL}})),
    section(SECTION, JSON_PARTS, **section(SERVER, {"DATABASE": {"host": "outer.example", "port": 7000}})),
    section(SECTION, {**JSON_PARTS, "host": None}, **{SETTINGS + "HOST": "env.example"}),
    section(SECTION, {"driver": "postgresql+asyncpg", "host": "json.example"}, **SEPARATE),
    section(SERVER, {"database_connection_url": JSON_URL}, **{DATABASE_URL: ENV_URL}),
    section(SECTION, "null", **{DATABASE_URL: ENV_URL}), section(SECTION, "{}", **{DATABASE_URL: ENV_URL}),
    *(section(SECTION, text, **{DATABASE_URL: ENV_URL}) for text in ["x", "[]", "5", '"x"', "{'host': 'x'}", "{"]),
    section(SERVER, {"database": None}, **{DATABASE_URL: ENV_URL}),
    section(SECTION, {"connection_url": JSON_URL, "sqlalchemy": {"connect_args": {"tls": JSON_TLS}}}),
    section(ALCHEMY, {"connect_args": {"tls": JSON_TLS, "search_path": "json"}}, **{DATABASE_URL: ENV_URL}),
    section(ALCHEMY, {"CONNECT_ARGS": {"TLS": {"ENABLED": "yes"}}}, **{DATABASE_URL: ENV_URL}),
    section(ALCHEMY, {"connect_args": {"statement_cache_size": 0}}, **{DATABASE_URL: ENV_URL}),
    section(ARGUMENTS[:-1], {"tls": JSON_TLS, "search_path": None}, **{DATABASE_URL: ENV_URL,
        ARGUMENTS + "SEARCH_PATH": "env"}),
    section(ARGUMENTS[:-1], {"search_path": "json", "prepared_statement_cache_size": "0"}, **{DATABASE_URL: ENV_URL,
        ARGUMENTS + "SEARCH_PATH": "env"}),
    section(TLS[:-1], JSON_TLS, **{DATABASE_URL: ENV_URL}),
    section(TLS[:-1], {"enabled": 1, "check_hostname": 0}, **{DATABASE_URL: ENV_URL, TLS + "ENABLED": "false",
        TLS + "CA_FILE": "{dir}/ca.pem"}),
    section(TLS[:-1], {"enabled": 2}, **{DATABASE_URL: ENV_URL}),
    section(TLS[:-1], {"enabled": True, "ca_file": None}, **{DATABASE_URL: ENV_URL, TLS + "CA_FILE": "{dir}/ca.pem"}),
]
PLACEHOLDER = "postgresql+asyncpg://app:${PREFECT_SERVER_DATABASE_PASSWORD}@db.example/prefect"
GOOD = "postgresql+asyncpg://app:secret@db.example:5432/prefect"
SCHEMES = [
    "postgres", "postgresql", "postgresql+psycopg2", "postgresql+psycopg", "postgres+asyncpg", "POSTGRESQL+ASYNCPG",
    "PostgreSQL+asyncpg", "asyncpg", "postgresql+pg8000", "postgresql+", "postgresql+async-pg", "mysql+aiomysql",
]
PG_WHOLE = [
    *(GOOD.replace("postgresql+asyncpg", scheme) for scheme in SCHEMES),
    "postgresql+asyncpg://", "postgresql+asyncpg:///", "postgresql+asyncpg:///prefect", "postgresql+asyncpg:/prefect",
    "postgresql+asyncpg:prefect", "postgresql+asyncpg://@/prefect", "postgresql+asyncpg://app@/prefect",
    "postgresql+asyncpg://:secret@/prefect", "postgresql+asyncpg://app:@db.example/prefect",
    "postgresql+asyncpg://:@db.example/prefect", "postgresql+asyncpg://:6000/prefect",
    "postgresql+asyncpg://app:secret@:6000/prefect", "postgresql+asyncpg://app:p@ss@db.example/prefect",
    "postgresql+asyncpg://app:p:s@db.example/prefect", "postgresql+asyncpg://app:p/s@db.example/prefect",
    "postgresql+asyncpg://app:p?s@db.example/prefect", "postgresql+asyncpg://app:p#s@db.example/prefect",
    "postgresql+asyncpg://a/b:s@db.example/prefect", "postgresql+asyncpg://a@b:s@db.example/prefect",
    "postgresql+asyncpg://a:1,b:2/prefect", "postgresql+asyncpg://a,b/prefect",
    "postgresql+asyncpg://app:secret@a:1,b:2/prefect", "postgresql+asyncpg://[::1]/prefect",
    "postgresql+asyncpg://[::1]:6000/prefect", "postgresql+asyncpg://[::1]junk/prefect",
    "postgresql+asyncpg://[]/prefect", "postgresql+asyncpg://::1/prefect", "postgresql+asyncpg://[::1/prefect",
    " " + GOOD, GOOD + " ", GOOD + "\n", "\n" + GOOD, f'"{GOOD}"', GOOD + "?", GOOD + "#fragment",
    GOOD + "?ssl=require#fragment", GOOD + "?ssl=require ", GOOD + "?ssl=require\n", GOOD + "?x?ssl=require",
    GOOD + "?ssl=require&", GOOD + "?&ssl=require", "", " ", "none", "db.example",
    "postgresql+asyncpg://app:secret@db.example:5432?ssl=require", "postgresql+asyncpg://app:secret@db.example:5432",
    "postgresql+asyncpg:///prefect?host=/cloudsql/p:r:i&user=app&password=secret",
    "postgresql+asyncpg://app:secret@/prefect?host=/cloudsql/p:r:i",
    "postgresql+asyncpg://app:secret@db.example/prefect?host=other.example",
    "postgresql+asyncpg://app:secret@db.example:6000/prefect?host=other.example",
    "postgresql+asyncpg://app:secret@db.example:6000/prefect?host=a,b&port=1,2",
    "postgresql+asyncpg://app:secret@db.example:6000/prefect?host=/run/pg",
    "postgresql+asyncpg://app:secret@db.example:6000/prefect?port=7000",
    "postgresql+asyncpg://app:secret@db.example/prefect?database=query",
    "postgresql+asyncpg://app:sec ret@db.example/prefect",
    "postgresql+asyncpg://app:secret@db.example/prefect?password=p%40s+s%2B",
]

REDIS_SSL = [
    "ssl_cert_reqs=none", "ssl_cert_reqs=optional", "ssl_cert_reqs=required", "ssl_cert_reqs=CERT_NONE",
    "ssl_cert_reqs=NONE", "ssl_cert_reqs=", "ssl_check_hostname=false", "ssl_check_hostname=False",
    "ssl_check_hostname=0", "ssl_check_hostname=no", "ssl_check_hostname=off", "ssl_check_hostname=true",
    "ssl_check_hostname=", "ssl_check_hostname=n", "ssl_check_hostname=None",
    "ssl_cert_reqs=none&ssl_check_hostname=true", "ssl_cert_reqs=optional&ssl_check_hostname=false",
    "ssl_ca_certs={dir}/ca.pem", "ssl_ca_certs={dir}/missing.pem", "ssl_ca_certs={dir}/broken.pem", "ssl_ca_path={dir}",
    "ssl_ca_data=x", "ssl_certfile={dir}/certificate.pem&ssl_keyfile={dir}/key.pem",
    "ssl_certfile={dir}/certificate.pem", "ssl_keyfile={dir}/key.pem",
    "ssl_certfile={dir}/certificate.pem&ssl_keyfile={dir}/locked.pem&ssl_password=unlock",
    "ssl_certfile={dir}/certificate.pem&ssl_keyfile={dir}/locked.pem&ssl_password=wrong", "ssl_min_version=771",
    "ssl_min_version=772", "ssl_min_version=TLSv1.2", "ssl_min_version=1", "ssl_ciphers=ECDHE-RSA-AES128-GCM-SHA256",
    "ssl_ciphers=x", "ssl_include_verify_flags=VERIFY_X509_STRICT",
    "ssl_include_verify_flags=[VERIFY_X509_STRICT, VERIFY_CRL_CHECK_LEAF]",
    "ssl_exclude_verify_flags=VERIFY_X509_STRICT", "ssl_include_verify_flags=x", "ssl_validate_ocsp=true",
    "ssl_validate_ocsp_stapled=true", "ssl=true", "ssl=false", "ssl_unknown=1",
    "ssl_cert_reqs=none&ssl_cert_reqs=required",
]
REDIS_OPTIONS = [
    "db=3", "db=x", "db=", "db=-1", "db=3&db=4", "db=%33", "db= 3", "socket_timeout=5", "socket_timeout=x",
    "socket_timeout=", "socket_connect_timeout=2.5", "socket_keepalive=true", "socket_keepalive=false",
    "socket_keepalive=no", "socket_read_size=1000", "retry_on_timeout=yes", "retry_on_timeout=N", "max_connections=5",
    "max_connections=x", "max_connections=-1", "health_check_interval=30", "health_check_interval=x",
    "client_name=events", "protocol=3", "protocol=2", "protocol=4", "protocol=x", "decode_responses=false",
    "encoding=latin1", "encoding_errors=replace", "username=query", "password=query", "username=query&password=query",
    "username=", "password=", "host=query.example", "port=7000", "port=x", "path=/query.sock", "timeout=3", "unknown=1",
    "unknown=", "lib_name=x", "lib_version=1", "retry_on_error=x", "legacy_responses=false", "connection_class=x",
    "single_connection_client=true", "ssl_cert_reqs=none", "=x", "DB=3", "credential_provider=x", "parser_class=x",
    "sentinel_username=s", "db=3;x=1", "password=a%2520b", "password=a+b", "password=p@s", "username=a@b&password=p@s",
    "client_name=a@b",
]
REDIS_WHOLE = [
    "redis://", "redis:///", "redis://redis.example", "redis://redis.example/", "redis://redis.example/3",
    "redis://redis.example/x", "redis://redis.example/3/4", "redis://redis.example/3x", "redis://redis.example/-1",
    "redis://redis.example/%33", "redis://redis.example/ 3", "redis://redis.example/3?db=4",
    "redis://redis.example/3#x", "redis://redis.example:6380", "redis://redis.example:", "redis://redis.example:x",
    "redis://redis.example:0", "redis://redis.example:70000", "redis://:6380", "redis://[::1]", "redis://[::1]:6380/1",
    "redis://[::1", "redis://::1", "redis://[fe80::1%25eth0]", "redis://%6Cocalhost", "redis://REDIS.Example",
    "redis://a,b", "redis://a:1,b:2", "redis:redis.example", "redis:/redis.example",
    "redis://user:secret@redis.example", "redis://:secret@redis.example", "redis://user@redis.example",
    "redis://user:@redis.example", "redis://@redis.example", "redis://:@redis.example", "redis://secret@redis.example",
    "redis://us%40er:p%40ss@redis.example", "redis://user:p@ss@redis.example", "redis://user:p/s@redis.example",
    "redis://user:p?s@redis.example", "redis://user:p#s@redis.example", "redis://user:p:s@redis.example",
    "redis://user:50%25@redis.example", "redis://user:50%@redis.example", "redis://user:a+b@redis.example",
    "redis://user:%C3%A9@redis.example", "redis://user:secret@redis.example?username=query&password=query",
    "REDIS://redis.example", "Rediss://redis.example", "rediss://redis.example:6380/2",
    "rediss://user:secret@redis.example", "redis+tls://redis.example", "redis+ssl://redis.example",
    "redis+unix:///run/redis.sock", "valkey://redis.example", "valkeys://redis.example", "valkey+sentinel://a/m",
    "tcp://redis.example", "redis.example", "redis.example:6379", "", " ", " redis://redis.example",
    "redis://redis.example ", "redis://redis.example\n", "\nredis://redis.example", '"redis://redis.example"',
    "unix:///run/redis.sock", "unix:///run/redis.sock?db=3", "unix:///run/redis.sock?db=3&username=u&password=p",
    "unix://user:secret@/run/redis.sock", "unix://user@/run/redis.sock", "unix://:secret@/run/redis.sock?db=1",
    "unix://run/redis.sock", "unix:/run/redis.sock", "unix:run/redis.sock", "unix:///run/red%20is.sock",
    "unix:///run/a%3Fb.sock", "unix:///run/a:b.sock", "unix://", "unix:///", "unix:///run/redis.sock/3",
    "UNIX:///run/redis.sock", "unix:///run/redis.sock?password=p%40s", "unix:///run/redis.sock?ssl_cert_reqs=none",
    "unix:///run/redis.sock?socket_timeout=5", "unix:///run/redis.sock?socket_keepalive=true",
    "unix:///run/redis.sock?path=/other", "unix:///run/redis.sock?host=x", "unix:///run/redis.sock?virtual_host=3",
    "redis://redis.example:6380/2?password=p@s", "redis://redis.example:6380?client_name=a@b",
    "redis://:6380/2?password=p@s", "redis://[::1]:6380/2?password=p@s", "redis://redis.example/p@s",
    "redis://user:12/s@redis.example", "redis://user:12?s@redis.example", "redis://user:12#s@redis.example",
    "redis://user:secret@redis.example/2#p@s", "redis://user:secret@redis.example:6380?password=p@s",
    "unix://x:1/run/redis.sock?password=p@s", "unix:///run/redis.sock?username=a@b&password=p@s",
    "redis:///run/redis.sock", "redis+cluster://a:1", "rediss+cluster://a:1", "REDIS+CLUSTER://a:1",
]
MEMBERS = [
    "s1", "s1:26379", "s1,s2", "s1:26379,s2:26380,s3", "[::1]", "[::1]:26380", "[::1]:26380,s2", "s1,[::1]",
    " s1 , s2 ", "s1,,s2", ",s1", "s1,", ",", "", ":26379", "s1:", "s1:x", "s1: 26380", "::1", "[::1", "[]", "[]:1",
    "[::1]x", "[::1]26380", "s1:0", "s1:70000", "S1.Example", "s%31", "s1:+26380", "s1:26_380", "10.0.0.1,10.0.0.2",
]
PATHS = [
    "/mymaster", "/mymaster/3", "/mymaster/x", "/mymaster/3/4", "/mymaster/", "/", "", "//mymaster", "/mymaster//3",
    "/my%20master", "/my master", "/mymaster/-1", "/mymaster/ 3", "/mymaster/%33", "/mymaster/03", "/3", "/my:master",
    "/mymaster#x", "/mymaster/3#x",
]
SENTINEL_OPTIONS = [
    "sentinel_username=su&sentinel_password=sp", "sentinel_password=sp", "sentinel_username=su",
    "sentinel_username=&sentinel_password=", "sentinel_username=su&sentinel_password=",
    "sentinel_password=a&sentinel_password=b", "sentinel_password=s%40p", "sentinel_password=s+p", "sentinel_password=s@p", "sentinel_db=1",
    "sentinel_ssl=true", "sentinel_port=1", "sentinel_kwargs=x", "min_other_sentinels=1", "min_other_sentinels=x",
    "force_master_ip=10.0.0.1", "db=4", "db=x", "socket_timeout=5", "username=query&password=query",
    "host=query.example", "port=7000", "path=/x", "health_check_interval=30", "max_connections=5", "unknown=1",
    "protocol=3", "client_name=x", "check_connection=true", "is_master=false", "is_master=", "service_name=other",
    "connection_pool=x", "ssl=false", "ssl=true", "ssl_cert_reqs=none", "socket_keepalive=false",
    "retry_on_timeout=true", "decode_responses=false",
]
SENTINEL_WHOLE = [
    "redis+sentinel://user:secret@s1,s2/mymaster/2", "redis+sentinel://:secret@s1/mymaster",
    "redis+sentinel://user@s1/mymaster", "redis+sentinel://@s1/mymaster", "redis+sentinel://us%40er:p%2Fs@s1/mymaster",
    "redis+sentinel://user:p@ss@s1/mymaster", "redis+sentinel://user:p/s@s1/mymaster",
    "redis+sentinel://user:p,s@s1/mymaster", "redis+sentinel://user:50%@s1/mymaster",
    "redis+sentinel://a:b@s1,c:d@s2/mymaster", "REDIS+SENTINEL://s1/mymaster", "RediSS+Sentinel://s1/mymaster",
    "redis+sentinels://s1/mymaster", "redis-sentinel://s1/mymaster", "sentinel://s1/mymaster",
    "redis+sentinel:s1/mymaster", "redis+sentinel:/s1/mymaster", "redis+sentinel://s1?service=mymaster",
    "redis+sentinel://s1/mymaster?", "redis+sentinel://s1/mymaster/2?db=5", " redis+sentinel://s1/mymaster",
    "redis+sentinel://s1/mymaster ", "redis+sentinel://s1/mymaster\n", "redis+sentinel://s1/mymaster/2 ",
    "redis+sentinel://s1/mymaster?db=5\n", "redis+sentinel://s1:26379,s2:26380/mymaster/2?password=p@s",
    "redis+sentinel://s1:26379/my@master", "redis+sentinel://s1:26379/mymaster?sentinel_password=p@s,2",
    "redis+sentinel://user:secret@s1,s2:26380/mymaster?sentinel_password=p@s",
]
BUS = "PREFECT_REDIS_MESSAGING_"
REDIS_SETTINGS = [
    {}, {BUS + "HOST": "sep.example"}, {BUS + "HOST": "sep.example", BUS + "PORT": "7000", BUS + "DB": "2"},
    {BUS + "HOST": "::1"}, {BUS + "HOST": "[::1]"}, {BUS + "HOST": "/run/redis.sock"}, {BUS + "HOST": "redis://x"},
    {BUS + "HOST": "sep.example:7000"}, {BUS + "HOST": ""}, {BUS + "HOST": " sep.example "}, {BUS + "PORT": "x"},
    {BUS + "PORT": ""}, {BUS + "PORT": "0"}, {BUS + "PORT": " 7000 "}, {BUS + "PORT": "7000.0"},
    {BUS + "PORT": "70000"}, {BUS + "DB": "x"}, {BUS + "DB": "-1"}, {BUS + "USERNAME": "sep"},
    {BUS + "PASSWORD": "p@s%40"}, {BUS + "USERNAME": "sep", BUS + "PASSWORD": "secret"}, {BUS + "USERNAME": ""},
    {BUS + "USERNAME": "", BUS + "PASSWORD": "secret"}, {BUS + "PASSWORD": ""}, {BUS + "SSL": "true"},
    {BUS + "SSL": "1"}, {BUS + "SSL": "on"}, {BUS + "SSL": "maybe"}, {BUS + "SSL": ""}, {BUS + "SSL": "false"},
    {BUS + "HEALTH_CHECK_INTERVAL": "5"}, {BUS + "HEALTH_CHECK_INTERVAL": "x"}, {BUS + "SOCKET_TIMEOUT": "3"},
    {BUS + "SOCKET_CONNECT_TIMEOUT": "2"}, {BUS + "PROTOCOL": "3"}, {BUS + "PROTOCOL": "4"},
    {BUS + "SOCKET_TIMEOUT": "x"}, {"REDIS_URL": "redis://other.example"},
]


# Of random lines, most are to be such as a driver takes.
TAKEN_HOSTS = [
    "db.example", "DB.Example", "10.0.0.7", "localhost", "[::1]", "[2001:db8::7]", "", "db_example",
    "b\u00fccher.example",
]
TAKEN_PORTS = ["", "", ":5432", ":6000", ":05432"]
TAKEN_HOST_LISTS = [
    "host=a,b&port=1,2", "host=a:1&host=b:2", "host=a,b&port=1&port=2", "host=a:1", "host=a%2Cb&port=1%2C2",
    "host=a,b,c&port=1,2,3", "host=::1", "host=::1&port=6000", "host=::1,::2&port=1,2", "port=6000",
    "host=other.example",
    "host=/cloudsql/p:r:i", "host=%2Fcloudsql%2Fp%3Ar%3Ai", "host=/cloudsql/p:r:i/.s.PGSQL.5432",
    "host=/cloudsql/p:r:i&port=6000", "host=/run/pg/", "host=/run/pg,/tmp&port=1,2", "host=/run/pg,db.example&port=1,2",
]
TAKEN_OPTIONS = [
    *(f"ssl={mode}" for mode in SSL_MODES[:4]), *(f"target_session_attrs={target}" for target in TARGETS[:6]),
    "prepared_statement_cache_size=0", "command_timeout=5", "timeout=3", "default_transaction_isolation=serializable",
    "krbsrvname=pg", "gsslib=gssapi", "user=query", "password=query", "password=p%40s+s%2B",
    "user=query&password=query", "database=query", "passfile={dir}/passfile", "service=events",
    "direct_tls=true&ssl=require", "unknown=", "ssl=%72equire",
]
TAKEN_REDIS_OPTIONS = [
    "db=3", "socket_timeout=5", "socket_connect_timeout=2.5", "health_check_interval=30", "client_name=events",
    "protocol=3", "max_connections=5", "username=query&password=query", "password=a%2520b", "password=a+b",
    "retry_on_timeout=yes", "password=p@s",
]
TAKEN_REDIS_SSL = [
    "ssl_cert_reqs=none", "ssl_cert_reqs=optional", "ssl_cert_reqs=required", "ssl_check_hostname=false",
    "ssl_check_hostname=no", "ssl_check_hostname=off", "ssl_ca_certs={dir}/ca.pem",
    "ssl_ca_certs={dir}/ca.pem&ssl_check_hostname=false", "ssl_min_version=772",
    "ssl_certfile={dir}/certificate.pem&ssl_keyfile={dir}/key.pem",
    "ssl_certfile={dir}/certificate.pem&ssl_keyfile={dir}/locked.pem&ssl_password=unlock",
]
TAKEN_MEMBERS = [
    "s1", "s1:26379", "s1,s2", "s1:26379,s2:26380,s3", "[::1]:26380,s2", " s1 , s2 ", "s1,,s2", "s1,",
    "10.0.0.1,10.0.0.2",
]
TAKEN_PATHS = ["/mymaster", "/mymaster/3", "/mymaster/", "/my%20master", "/mymaster/03", "/mymaster//3"]


def mostly(chance, taken, every):
    return chance.choice(taken if chance.random() < 0.85 else every)


def query(chance, *parts):
    chosen = [mostly(chance, *part) for part in parts if chance.random() < 0.5]
    return "?" + "&".join(chosen) if chosen else ""


def spelled_postgres():
    """The lines about PostgreSQL of which each shows something of its own."""
    at = "postgresql+asyncpg://app:secret@db.example:5432/prefect?"
    nowhere = "postgresql+asyncpg://app:secret@/prefect?"
    yield from ((url, {}) for url in PG_WHOLE)
    yield from ((nowhere + hosts, {}) for hosts in PG_HOST_LISTS + SOCKETS)
    yield from ((at + option, {}) for option in PG_OPTIONS)
    yield from ((nowhere + f"host=/run/pg&{option}", {}) for option in ["ssl=require", "ssl=verify-full",
        "target_session_attrs=primary"])
    yield from (("postgresql+asyncpg://", variables) for variables in PG_VARIABLES)
    passfile = {"PGPASSFILE": "{dir}/passfile"}
    yield from (("postgresql+asyncpg://" + rest, passfile) for rest in [
        "db.example/prefect", "app@db.example/prefect", "app@[::1]/prefect", "app@/prefect?host=/run/pg",
        "x@other.example:6000/x", "app@/prefect?host=db.example,second.example&port=1,5432", "app@DB.example/prefect",
        "app@db.example/blanks", "app:@db.example/prefect", "app:own@db.example/prefect"])
    yield from ((GOOD, variables) for variables in PG_SETTINGS)
    yield from ((None, variables) for variables in PG_SEPARATE)
    yield from ((None, variables) for variables in PG_SECTIONS)
    password = SETTINGS + "PASSWORD"
    yield from ((PLACEHOLDER, env) for env in [{}, {password: "placed"}, {password: "pl@c:e/d"},
        {"PREFECT_API_DATABASE_PASSWORD": "placed"}])
    yield from ((at + "ssl=require", env) for env in [{TLS + "ENABLED": "true"}, {"PGSSLMODE": "disable"},
        {"HOME": "{dir}/home-tls"}, {"PGSSLROOTCERT": "{dir}/ca.pem"}])
    yield (at + "target_session_attrs=any", {"PGTARGETSESSIONATTRS": "primary"})
    yield (GOOD, {"PGHOST": "env.example", "PGPORT": "7000", "PGUSER": "env", "PGPASSWORD": "env", "PGDATABASE": "env"})
    yield ("postgresql+asyncpg://db.example", {"PGPORT": "7000"})
    yield ("postgresql+asyncpg://:6000", {"PGHOST": "e1,e2"})
    yield ("postgresql+asyncpg://:6000", {"PGHOST": "e1:1,e2:2"})


def spelled_redis():
    """The same about Redis."""
    yield from ((url, {}) for url in REDIS_WHOLE + SENTINEL_WHOLE)
    yield from (("redis://redis.example?" + option, {}) for option in REDIS_OPTIONS)
    yield from (("rediss://redis.example?" + option, {}) for option in REDIS_SSL)
    yield from ((f"redis+sentinel://{members}/mymaster", {}) for members in MEMBERS)
    yield from ((f"redis+sentinel://s1{path}", {}) for path in PATHS)
    yield from (("redis+sentinel://u:p@s1,s2/mymaster?" + option, {}) for option in SENTINEL_OPTIONS)
    yield from (("rediss+sentinel://s1/mymaster?" + option, {}) for option in REDIS_SSL[::2])
    own = "ssl_ca_certs={dir}/ca.pem&ssl_certfile={dir}/certificate.pem&ssl_keyfile={dir}/key.pem"
    yield ("rediss+sentinel://u:p@s1/mymaster?sentinel_username=su&sentinel_password=sp&" + own, {})
    yield from ((None, env) for env in REDIS_SETTINGS)
    for env in [{BUS + "HOST": "ignored", BUS + "DB": "5", BUS + "SSL": "true"},
        {BUS + "SOCKET_TIMEOUT": "3", BUS + "PROTOCOL": "3"}, {BUS + "PORT": "x"}]:
        yield from ((url, env) for url in ["redis://redis.example/1", "redis+sentinel://s1/mymaster",
            "unix:///run/redis.sock"])


def random_postgres(chance):
    part = chance.random()
    if part < 0.07:
        return None, merged(chance, PG_SEPARATE, PG_SETTINGS, PG_VARIABLES)
    scheme = chance.choices(["postgresql+asyncpg", "postgresql", "postgres", "postgresql+psycopg2"], [94, 2, 2, 2])[0]
    user = ""
    if chance.random() < 0.7:
        user = chance.choice(NAMES) + (":" + chance.choice(SECRETS) if chance.random() < 0.7 else "") + "@"
    host = mostly(chance, TAKEN_HOSTS, HOSTS) + mostly(chance, TAKEN_PORTS, PORTS) if chance.random() < 0.6 else ""
    options = (TAKEN_OPTIONS, PG_OPTIONS)
    places = (TAKEN_HOST_LISTS, PG_HOST_LISTS + SOCKETS)
    url = f"{scheme}://{user}{host}{chance.choice(DATABASES)}{query(chance, places, options, options)}"
    return damaged(chance, url), merged(chance, PG_VARIABLES,
        PG_VARIABLES) if chance.random() < 0.6 else merged(chance, PG_SETTINGS)


def random_redis(chance):
    part = chance.random()
    env = chance.choice(REDIS_SETTINGS) if chance.random() < 0.1 else {}
    plain, tls = (TAKEN_REDIS_OPTIONS, REDIS_OPTIONS), (TAKEN_REDIS_SSL, REDIS_SSL)
    if part < 0.1:
        return None, merged(chance, REDIS_SETTINGS, REDIS_SETTINGS, REDIS_SETTINGS)
    user = ""
    if chance.random() < 0.6:
        user = chance.choice(NAMES) + (":" + chance.choice(SECRETS) if chance.random() < 0.8 else "") + "@"
    if part < 0.5:
        host = mostly(chance, TAKEN_HOSTS, HOSTS) + mostly(chance, TAKEN_PORTS, PORTS)
        path = chance.choice(["", "/", "/3", "/0", "/x", "/3/4", "/%33", "/15"])
        scheme = chance.choices(["redis", "rediss", "unix", "valkey"], [45, 40, 10, 5])[0]
        url = f"{scheme}://{user}{host}{path}{query(chance, plain, tls if scheme == 'rediss' else plain)}"
    elif part < 0.6:
        path = chance.choice(["/run/redis.sock", "/run/a%20b.sock", "/run/a:b/redis.sock", "", "/x?db=1"])
        url = f"unix://{user}{path}{query(chance, plain, plain)}"
    else:
        scheme = chance.choice(["redis+sentinel", "rediss+sentinel"])
        members, path = mostly(chance, TAKEN_MEMBERS, MEMBERS), mostly(chance, TAKEN_PATHS, PATHS)
        login = (SENTINEL_OPTIONS[:8], SENTINEL_OPTIONS)
        url = f"{scheme}://{user}{members}{path}{query(chance, login, tls if scheme == 'rediss+sentinel' else plain)}"
    return damaged(chance, url), env


def merged(chance, *choices):
    env = {}
    for options in choices:
        if chance.random() < 0.6:
            env.update(chance.choice(options))
    return env


def damaged(chance, url):
    """Seldom with a character too many or too few."""
    if chance.random() > 0.04:
        return url
    place = chance.randrange(len(url) + 1)
    if chance.random() < 0.6:
        return url[:place] + chance.choice("@:/?#&=%,[] +é") + url[place:]
    return url[:place] + url[place + 1 :]


# The answers.


class Answers:
    """Of Prefect's own code, to one line after the other."""

    def __init__(self, folder):
        self.folder = folder
        # Prefect reads its own home and the working directory while it is imported.
        os.environ.clear()
        os.environ.update(PREFECT_HOME=str(folder / "prefect"), PREFECT_SERVER_ANALYTICS_ENABLED="false",
            DO_NOT_TRACK="1")
        os.chdir(folder / "pems")
        warnings.simplefilter("ignore")
        record_tls_files()
        import prefect.context
        import prefect.server.database.configurations as configurations
        import prefect.settings.models.root as root
        import prefect.settings.profiles as profiles
        import prefect_redis.client as bus

        self.context, self.configurations, self.root, self.bus = prefect.context, configurations, root, bus
        self.profile = profiles.Profile(name="empty", settings={})
        self.plain_settings = root.Settings()

        async def no_disposal(*_):
            pass

        configurations.AsyncPostgresConfiguration.schedule_engine_disposal = no_disposal

    def place(self, value):
        if isinstance(value, str):
            return value.replace("{dir}", str(self.folder))
        return value

    def unplace(self, value):
        if isinstance(value, dict):
            return {self.unplace(name): self.unplace(part) for name, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.unplace(part) for part in value]
        if isinstance(value, pathlib.Path):
            value = str(value)
        return value.replace(str(self.folder), "{dir}") if isinstance(value, str) else value

    def answer(self, kind, url, env):
        before = dict(os.environ)
        os.environ.update({name: self.place(value) for name, value in {**DEFAULT_ENVIRONMENT, **env}.items()})
        if url is not None:
            os.environ[DATABASE_URL if kind == "postgres" else REDIS_URL] = self.place(url)
        try:
            # What a driver prints or warns of is not part of its answer.
            with contextlib.redirect_stderr(io.StringIO()):
                ask = self.postgres if kind == "postgres" else self.redis
                return self.unplace(asyncio.run(ask(self.place(url), env)))
        finally:
            os.environ.clear()
            os.environ.update(before)

    async def postgres(self, url, env):
        # Reading all of Prefect's settings is slow: only where they say more than the URL.
        plain = url and "PREFECT_" not in url and url == url.strip()
        needs_settings = not plain or any(name.startswith("PREFECT_") for name in env)
        try:
            settings = self.root.Settings() if needs_settings else self.plain_settings
        except Exception as error:
            return refusal("settings", error)
        if needs_settings:
            url = settings.server.database.connection_url.get_secret_value()
        with self.context.SettingsContext(profile=self.profile, settings=settings):
            return await self.dialled(url)

    async def dialled(self, url):
        import sqlalchemy as sa
        from asyncpg import connect_utils
        from prefect.server.utilities.database import get_dialect

        try:
            dialect = get_dialect(url)
            if dialect.name != "postgresql":
                kind = "sqlite" if dialect.name == "sqlite" else "driver"
                return {"error": kind, "type": "Dialect", "says": dialect.name}
            self.configurations.ENGINES.clear()
            engine = await self.configurations.AsyncPostgresConfiguration(url).engine()
        except (sa.exc.NoSuchModuleError, ImportError, sa.exc.InvalidRequestError) as error:
            return refusal("driver", error)
        except OSError as error:
            return refusal("file", error)
        except Exception as error:
            return refusal("url", error)
        if engine.dialect.driver != "asyncpg":
            return {"error": "driver", "type": "Driver", "says": engine.dialect.driver}

        seen = {}

        @sa.event.listens_for(engine.sync_engine, "do_connect")
        def remember(_dialect, _record, _arguments, options):
            seen["options"] = dict(options)

        async def in_place_of_dialling(*, loop, connection_class, record_class, **arguments):
            seen["dialled"] = connect_utils._parse_connect_arguments(**arguments)
            raise ConnectionRefusedError

        real, connect_utils._connect = connect_utils._connect, in_place_of_dialling
        try:
            async with engine.connect():
                pass
        except Exception as error:
            if "dialled" not in seen:
                return refusal_by_driver(error)
        finally:
            connect_utils._connect = real
        return postgres_result(*seen["dialled"], seen["options"])

    async def redis(self, url, env):
        from redis.asyncio.sentinel import SentinelConnectionPool

        self.bus._client_cache.clear()
        try:
            self.bus.RedisMessagingSettings()
        except Exception as error:
            return refusal("settings", error)
        try:
            client = self.bus.get_async_redis_client()
        except NotImplementedError as error:
            return refusal("cluster", error)
        except (TypeError, ValueError) as error:
            return refusal("option" if isinstance(error, TypeError) else "url", error)
        pool = client.connection_pool
        try:
            connection = pool.make_connection()
            if not isinstance(pool, SentinelConnectionPool):
                return redis_result(connection, pool)
            result = redis_result(connection, pool)
            daemons = [daemon.connection_pool.make_connection() for daemon in pool.sentinel_manager.sentinels]
            result["sentinels"] = [address(daemon.host, daemon.port) for daemon in daemons]
            result["service"] = pool.service_name
            result["sentinel_auth"] = redis_auth(daemons[0])
            result["sentinel_tls"] = redis_tls(daemons[0])
            return result
        except Exception as error:
            return refusal_by_driver(error)


def record_tls_files():
    """TLS contexts remember the files that they were given."""

    def remember(name):
        real = getattr(ssl.SSLContext, name)

        def remembering(self, *arguments, **options):
            result = real(self, *arguments, **options)
            self.__dict__.setdefault("given", []).append((name, arguments, options))
            return result

        setattr(ssl.SSLContext, name, remembering)

    for name in ["load_verify_locations", "load_cert_chain", "load_default_certs", "set_ciphers"]:
        remember(name)


def refusal(kind, error):
    says = re.sub(r"/tmp/[^/\s'\"]+", "{dir}", str(error)).strip().split("\n")
    return {"error": kind, "type": type(error).__name__, "says": " ".join(says)[:150]}


def refusal_by_driver(error):
    if isinstance(error,
        (FileNotFoundError, IsADirectoryError, PermissionError, ssl.SSLError)) or "root certificate file" in str(error):
        return refusal("file", error)
    if isinstance(error, TypeError) and "unexpected keyword" in str(error):
        return refusal("option", error)
    return refusal("value", error)


HOST_NAME = re.compile(r"^(?!-)[A-Za-z0-9_\-]{1,63}(\.[A-Za-z0-9_\-]{1,63})*\.?$")


def address(host, port):
    """One that can be connected to, or "never"."""
    import ipaddress

    result = {"host": host, "port": port}
    try:
        ipaddress.ip_address(host)
        possible = True
    except ValueError:
        try:
            possible = bool(HOST_NAME.match(host.encode("idna").decode() if not host.isascii() else host))
        except UnicodeError:
            possible = False
    if not possible or not isinstance(port, int) or not 1 <= port <= 65535:
        result["never"] = True
    return result


def given(context, name):
    return [(arguments, options) for call, arguments, options in context.__dict__.get("given", []) if call == name]


def postgres_result(addresses, parameters, configuration, options):
    context, mode = parameters.ssl, parameters.sslmode
    tls = {"mode": mode.name.replace("_", "-")}
    if isinstance(options.get("ssl"), ssl.SSLContext):
        tls["mode"] = "context"
    if isinstance(context, ssl.SSLContext):
        # `cafile` is how asyncpg names authorities and revocations alike, in this order.
        files = [options["cafile"] for _, options in given(context, "load_verify_locations") if options.get("cafile")]
        revoked = context.verify_flags & ssl.VERIFY_CRL_CHECK_CHAIN
        pair = [(arguments, options) for arguments, options in given(context, "load_cert_chain")]
        certificate = key = unlock = None
        if pair:
            arguments, named = pair[-1]
            certificate = arguments[0] if arguments else named["certfile"]
            key, unlock = named.get("keyfile"), named.get("password")
        tls.update(
            direct=parameters.ssl_negotiation.value == "direct",
            verify="none" if context.verify_mode == ssl.CERT_NONE else "required",
            hostname=context.check_hostname,
            ca=files[0] if files and not (revoked and len(files) == 1) else None,
            crl=files[-1] if revoked else None,
            system_ca=bool(given(context, "load_default_certs")) and context.verify_mode != ssl.CERT_NONE,
            certificate=certificate,
            key=key,
            key_password=(unlock() or None) if callable(unlock) else unlock,
            min=version(context.minimum_version),
            max=version(context.maximum_version),
        )
    target = parameters.target_session_attrs
    return {
        "addresses": [{"path": place} if isinstance(place, str) else address(*place) for place in addresses],
        "user": parameters.user,
        "password": parameters.password,
        "database": parameters.database,
        "tls": tls,
        "target_session_attrs": target.value,
        "server_settings": parameters.server_settings or {},
        "options": {
            "connect_timeout": options.get("timeout"),
            "command_timeout": configuration.command_timeout,
            "statement_cache_size": configuration.statement_cache_size,
            "prepared_statement_cache_size": options.get("prepared_statement_cache_size", 100),
            "krbsrvname": parameters.krbsrvname,
        },
    }


def version(limit):
    return None if limit in (ssl.TLSVersion.MINIMUM_SUPPORTED, ssl.TLSVersion.MAXIMUM_SUPPORTED) else limit.name


def redis_auth(connection):
    from redis.credentials import UsernamePasswordCredentialProvider

    if not (connection.username or connection.password):
        return None
    return list(UsernamePasswordCredentialProvider(connection.username, connection.password).get_credentials())


def redis_tls(connection):
    tls = getattr(connection, "ssl_context", None)
    if tls is None:
        return None
    context = tls.get()
    verify = {ssl.CERT_NONE: "none", ssl.CERT_OPTIONAL: "optional", ssl.CERT_REQUIRED: "required"}[context.verify_mode]
    flags = {name: [flag.name for flag in flags] for name,
    flags in [("include", tls.include_verify_flags), ("exclude", tls.exclude_verify_flags)] if flags}
    return {
        "verify": verify,
        "hostname": context.check_hostname,
        "ca": tls.ca_certs,
        "ca_folder": tls.ca_path,
        "ca_data": tls.ca_data,
        "certificate": tls.certfile,
        "key": tls.keyfile,
        "key_password": tls.password,
        "min": tls.min_version,
        "ciphers": tls.ciphers,
        "flags": flags,
    }


REDIS_PLAIN = {
    "host", "port", "db", "username", "password", "path", "connection_pool", "connection_class", "decode_responses",
    "retry", "event_dispatcher", "driver_info", "credential_provider", "redis_connect_func", "encoder_class",
    "parser_class",
}


REDIS_DEFAULTS = {"encoding": "utf-8", "encoding_errors": "strict", "legacy_responses": True,
    "socket_keepalive": True, "socket_read_size": 32768}


def redis_result(connection, pool):
    tls = redis_tls(connection)
    result = {"transport": "tls" if tls else "tcp", "db": int(connection.db or 0), "auth": redis_auth(connection),
        "tls": tls}
    if hasattr(pool, "sentinel_manager"):
        result["transport"] = "sentinel-tls" if tls else "sentinel"
    elif hasattr(connection, "path"):
        result.update(transport="unix", path=connection.path)
    else:
        result.update(address(connection.host, connection.port))
    if result["db"] < 0 or result.get("path") == "":
        result["never"] = True
    result["options"] = {
        name: value
        for name, value in sorted(pool.connection_kwargs.items())
        if isinstance(value, (str, int, float, bool)) and value != "" and name not in REDIS_PLAIN
        and not name.startswith(("ssl", "orig_")) and REDIS_DEFAULTS.get(name) != value
    }
    if pool.max_connections not in (None, 100, 2**31):
        result["options"]["max_connections"] = pool.max_connections
    return result


def lines(number, seed):
    """The spelled ones first, then random ones, one kind after the other."""
    chance = random.Random(seed)
    spelled = {"postgres": list(spelled_postgres()), "redis": list(spelled_redis())}
    made = {"postgres": random_postgres, "redis": random_redis}
    seen, count = set(), 0
    queue = [(kind, *line) for kind, some in spelled.items() for line in some]
    while count < number:
        if queue:
            kind, url, env = queue.pop(0)
        else:
            kind = chance.choice(["postgres", "redis"])
            url, env = made[kind](chance)
        key = json.dumps([kind, url, env], sort_keys=True)
        # A process cannot be given a NUL in its environment.
        if key not in seen and "\0" not in key:
            seen.add(key)
            count += 1
            yield kind, url, env


def chosen(answered, number):
    """Of many answered lines, so many that every sort of line and of answer is among them."""
    sorts = collections.defaultdict(list)
    for line in answered:
        sorts[sort_of(line)].append(line)
    picked = []
    rows = list(sorts.values())
    depth = 0
    while len(picked) < number and any(len(row) > depth for row in rows):
        picked.extend([row[depth] for row in rows if len(row) > depth][: number - len(picked)])
        depth += 1
    order = {id(line): place for place, line in enumerate(answered)}
    return sorted(picked, key=lambda line: order[id(line)])


def sort_of(line):
    """Which parts a line uses and what came of it. Each spelling of a place, and each section, is a sort of its own."""
    url, result = line["url"], line["result"]
    scheme, _, rest = (url or "").partition("://")
    places = [
        r"postgresql\+asyncpg://app:secret@/prefect\?((host|port)=[^&]*&?)+",
        r"redis\+sentinel://[^@?]*",
        r"unix:[^?]*",
    ]
    hosts = re.fullmatch("|".join(places), url or "")
    if hosts and not line["env"]:
        return url
    if any(name.upper() in SECTION_NAMES for name in line["env"]):
        return json.dumps(line["env"])
    names = tuple(sorted(set(re.findall(r"[?&]([^=&]*)", rest))))[:3]
    answer = result.get("error") and (result["error"], result["type"], re.sub(r"\W.*", "", result["says"]))
    if not answer:
        tls = result["tls"] or {}
        places = result.get("addresses", [])
        shape = tuple("path" if "path" in place else "never" if "never" in place else "host" for place in places)
        answer = (shape, result.get("transport"), "never" in result, tls.get("mode"), tls.get("verify"),
            tls.get("hostname"), result.get("target_session_attrs"))
    # Not of a login.
    has_at = bool(re.search("[/?#].*@", rest))
    return (line["kind"], scheme, has_at, names, tuple(sorted(line["env"])), answer)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--all", nargs=2, metavar=("NUMBER", "FILE"))
    options.add_argument("--ask", action="store_true")
    options.add_argument("--files", metavar="DIRECTORY")
    options.add_argument("--seed", type=int, default=1)
    options = options.parse_args()
    if options.files:
        return write_files(pathlib.Path(options.files).resolve())
    here = pathlib.Path.cwd()
    with tempfile.TemporaryDirectory(prefix="addresses") as name:
        folder = pathlib.Path(name).resolve()
        write_files(folder)
        answers = Answers(folder)
        if options.ask:
            asked = map(json.loads, sys.stdin)
            some = ((line["kind"], line["url"], line["env"]) for line in asked)
        else:
            some = lines(int(options.all[0]) if options.all else 3 * RECORDED, options.seed)
        answered = ({"kind": kind, "url": url, "env": env, "result": answers.answer(kind, url, env)} for kind, url,
            env in some)
        if options.ask:
            for line in answered:
                print(json.dumps(line, ensure_ascii=False), flush=True)
            return None
        if not options.all:
            answered = chosen(list(answered), RECORDED)
        path = here / options.all[1] if options.all else TABLE
        with contextlib.ExitStack() as stack:
            if path.suffix == ".gz":
                raw = stack.enter_context(open(path, "wb"))
                out = stack.enter_context(gzip.GzipFile("", "wb", 9, raw, 0))
            else:
                out = stack.enter_context(open(path, "wb"))
            for line in [{"kind": "files", "files": FILES}, *answered] if isinstance(answered, list) else answered:
                out.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")


if __name__ == "__main__":
    main()
