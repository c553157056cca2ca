# What all peer scripts share: sourced, not run.
#
#   knobs (environment): SIZE=1024 N=20000 CLIENTS=16 WINDOW=64 PORT=.. DATA=.. KEEP=0 EXTRA="flags of peerload"

PEERS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
INSTALLED=${PEERS_HOME:-$HOME/.cache/pithead-peers} # what setup.sh built
ROOT=$INSTALLED/root
CERT=$INSTALLED/certs
LOAD=$INSTALLED/target/release/peerload
export PATH=$ROOT/usr/bin:$ROOT/usr/sbin:$PATH
export LD_LIBRARY_PATH=$ROOT/usr/lib/x86_64-linux-gnu:$ROOT/lib/x86_64-linux-gnu
: "${SIZE:=1024}" "${N:=20000}" "${CLIENTS:=16}" "${WINDOW:=64}" "${EXTRA:=}"
PIDS=()

die() {
    echo "{\"error\":\"$*\"}"
    exit 1
}

[ -x "$LOAD" ] || die "$INSTALLED has no peerload"

# A throw-away CA and a server's certificate of it.
certs() {
    [ -s "$CERT/server.pem" ] && return
    mkdir -p "$CERT"
    (
        cd "$CERT" || exit 1
        openssl ecparam -name prime256v1 -genkey -noout -out ca.key
        openssl req -x509 -new -key ca.key -days 3650 -subj /CN=pithead-bench-ca \
            -addext basicConstraints=critical,CA:TRUE -out ca.pem
        openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out server.key
        openssl req -new -key server.key -subj /CN=localhost -out server.csr
        printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n' >server.ext
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 3650 \
            -extfile server.ext -out server.pem
        chmod 644 server.key
    ) 2>/dev/null
}

wait_port() { # PORT [TENTHS_OF_A_SECOND]
    for _ in $(seq 1 "${2:-100}"); do
        (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return 0
        sleep 0.1
    done
    return 1
}

# Ends what this script started, and removes its data unless KEEP=1.
stop() {
    for pid in "${PIDS[@]}"; do kill "$pid" 2>/dev/null; done
    for pid in "${PIDS[@]}"; do
        for _ in $(seq 1 100); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -9 "$pid" 2>/dev/null
    done
    [ "${KEEP:-0}" = 1 ] || rm -rf "$DATA"
}
trap stop EXIT
certs

# QUIET=1: waits (at most QUIET_S seconds) until the machine's CPU pressure over 10 s is below 5 %.
quiet() {
    [ "${QUIET:-0}" = 1 ] || return 0
    for _ in $(seq 1 "${QUIET_S:-120}"); do
        pressure=$(sed -n 's/^some avg10=\([0-9]*\).*/\1/p' /proc/pressure/cpu)
        [ "$pressure" -lt 5 ] && return 0
        sleep 1
    done
}

load() { # PEER ADDRESS PID LABEL [FLAGS]
    local peer=$1 address=$2 pid=$3 label=$4
    shift 4
    quiet
    # EXTRA holds flags: it is meant to be split.
    # shellcheck disable=SC2086
    "$LOAD" "$peer" --addr "$address" --ca "$CERT/ca.pem" --pid "$pid" --label "$label" \
        --size "$SIZE" --n "$N" --clients "$CLIENTS" --window "$WINDOW" "$@" $EXTRA
}
