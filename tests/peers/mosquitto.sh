#!/usr/bin/env bash
# mosquitto 2.0.11 (Debian), QoS 1. Its PUBACK means on disk in neither setting:
#   PERSIST=default  persistence on, written every 1,800 s
#   PERSIST=strong   the whole database file is rewritten after changes, still after the PUBACK
. "$(dirname "$0")/lib.sh"
: "${PERSIST:=strong}" "${PORT:=28883}" "${DATA:=$INSTALLED/data/mosquitto}"
rm -rf "$DATA"
mkdir -p "$DATA"
cat >"$DATA/mosquitto.conf" <<CONF
user root
listener $PORT 127.0.0.1
certfile $CERT/server.pem
keyfile $CERT/server.key
cafile $CERT/ca.pem
require_certificate false
allow_anonymous true
persistence true
persistence_location $DATA/
max_queued_messages 0
max_inflight_messages 200
log_type error
CONF
[ "$PERSIST" = strong ] && printf 'autosave_on_changes true\nautosave_interval 1\n' >>"$DATA/mosquitto.conf"
mosquitto -c "$DATA/mosquitto.conf" >"$DATA/log" 2>&1 &
PIDS+=($!)
wait_port "$PORT" || die "mosquitto did not start"
load mqtt "127.0.0.1:$PORT" "${PIDS[0]}" "mosquitto 2.0.11 qos1 persistence=$PERSIST (PUBACK is not durable)" "$@" ||
    tail -5 "$DATA/log" >&2
