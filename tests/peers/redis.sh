#!/usr/bin/env bash
# Redis 7.0.15 (Debian), streams, AOF with appendfsync=FSYNC: always by default, one fsync for each turn of its event
# loop, before the replies.
. "$(dirname "$0")/lib.sh"
: "${FSYNC:=always}" "${PORT:=26379}" "${DATA:=$INSTALLED/data/redis}"
command -v redis-server >/dev/null || die "redis-server is not there"
rm -rf "$DATA"
mkdir -p "$DATA"
redis-server --bind 127.0.0.1 --port 0 --tls-port "$PORT" --tls-auth-clients no \
    --tls-cert-file "$CERT/server.pem" --tls-key-file "$CERT/server.key" --tls-ca-cert-file "$CERT/ca.pem" \
    --dir "$DATA" --appendonly yes --appendfsync "$FSYNC" --no-appendfsync-on-rewrite no \
    --auto-aof-rewrite-percentage 0 --save "" --stream-node-max-entries 100 --maxclients 20000 >"$DATA/log" 2>&1 &
PIDS+=($!)
wait_port "$PORT" || die "redis did not start"
load redis "127.0.0.1:$PORT" "${PIDS[0]}" "redis 7.0.15 stream AOF appendfsync=$FSYNC" "$@" || tail -5 "$DATA/log" >&2
