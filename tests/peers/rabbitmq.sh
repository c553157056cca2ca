#!/usr/bin/env bash
# RabbitMQ 3.10.8 (Debian), persistent messages, publisher confirms.
#   QUEUE=quorum   Raft log, fdatasync before the confirm, in batches (default)
#   QUEUE=classic  confirmed when on disk or consumed
. "$(dirname "$0")/lib.sh"
: "${QUEUE:=quorum}" "${PORT:=25671}" "${DATA:=$INSTALLED/data/rabbitmq}"
ERLANG=$ROOT/usr/lib/erlang
RABBIT=$(ls -d "$ROOT"/usr/lib/rabbitmq/lib/rabbitmq_server-* 2>/dev/null) || die "rabbitmq is not there"
ERTS=$(ls -d "$ERLANG"/erts-*/bin)
rm -rf "$DATA"
mkdir -p "$DATA/home" "$DATA/mnesia" "$DATA/log" "$DATA/bin"
# Debian's wrapper of erl holds absolute paths; ours points into the unpacked tree.
cat >"$DATA/bin/erl" <<ERL
#!/bin/sh
ROOTDIR=$ERLANG; BINDIR=$ERTS; EMU=beam; PROGNAME=erl
export EMU ROOTDIR BINDIR PROGNAME
exec \$BINDIR/erlexec \${1+"\$@"}
ERL
chmod +x "$DATA/bin/erl"
export PATH=$DATA/bin:$ERTS:$PATH
cat >"$DATA/rabbitmq.conf" <<CONF
listeners.tcp = none
listeners.ssl.1 = 127.0.0.1:$PORT
ssl_options.cacertfile = $CERT/ca.pem
ssl_options.certfile   = $CERT/server.pem
ssl_options.keyfile    = $CERT/server.key
ssl_options.verify     = verify_none
ssl_options.fail_if_no_peer_cert = false
disk_free_limit.absolute = 1GB
vm_memory_high_watermark.absolute = 4GB
log.file.level = warning
CONF
cd "$DATA" || die "no $DATA"
"$ERTS/epmd" -address 127.0.0.1 -port 24369 >"$DATA/log/epmd" 2>&1 &
EPMD=$!
export HOME=$DATA/home ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT=24369
env RABBITMQ_ALLOW_INPUT=1 RABBITMQ_NODENAME=bench@localhost RABBITMQ_DIST_PORT=24370 \
    RABBITMQ_CONFIG_FILE="$DATA/rabbitmq.conf" RABBITMQ_CONF_ENV_FILE=/dev/null \
    RABBITMQ_MNESIA_BASE="$DATA/mnesia" RABBITMQ_LOG_BASE="$DATA/log" \
    RABBITMQ_ENABLED_PLUGINS_FILE="$DATA/enabled_plugins" RABBITMQ_PID_FILE="$DATA/pid" \
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-noinput -kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none" \
    "$RABBIT/sbin/rabbitmq-server" >"$DATA/log/out" 2>&1 &
PIDS+=($! "$EPMD")
wait_port "$PORT" 600 || die "rabbitmq did not start"
sleep 2
load amqp "127.0.0.1:$PORT" "${PIDS[0]}" "rabbitmq 3.10.8 queue=$QUEUE persistent+confirms" --opt "queue=$QUEUE" "$@" ||
    tail -20 "$DATA"/log/*.log >&2
