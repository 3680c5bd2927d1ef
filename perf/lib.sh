# shellcheck shell=bash
# Shared functions of the benchmarks. Sourced, not run. They use loopback only, and every load has a
# fixed duration.

PERF_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PERF_DIR
. "$PERF_DIR/../scripts/lib.sh"
TARGET=${CARGO_TARGET_DIR:-$PERF_DIR/../target}/release
PORT=${PORT:-3998}
URL=http://127.0.0.1:$PORT
work=
server=

# need_tools [EXAMPLE]: builds the server, the load generator and an example.
need_tools() {
  need_compiler
  need_postgres
  command -v wrk >/dev/null || install_packages wrk
  command -v curl >/dev/null || install_packages curl ca-certificates
  (cd "$PERF_DIR/.." && cargo build --release --locked --bin aurore-events --example load --example "${1:-bare}")
  # A directory that the user of the embedded cluster can traverse.
  work=$(mktemp -d)
  chmod 755 "$work"
  trap 'stop; rm -rf "$work"' EXIT
}

# start PATH COMMAND...: starts a server and waits until it answers PATH.
start() {
  local path=$1
  shift
  "$@" >>"$work/log" 2>&1 &
  server=$!
  for _ in $(seq 300); do
    if curl -sf -o /dev/null "$URL$path"; then return; fi
    kill -0 "$server" 2>/dev/null || { tail -n 20 "$work/log" >&2; die "it does not start"; }
    sleep 0.1
  done
  die "it is not ready"
}

start_server() { start /ready env PORT="$PORT" HOST=127.0.0.1 DATA_DIR="$work/data" "$@" "$TARGET/aurore-events" serve; }

# Like start_server, but polls every 2 ms for readiness. Uses DATABASE_URL.
start_at_once() {
  env PORT="$PORT" HOST=127.0.0.1 DATA_DIR="$work/data" DATABASE_URL="$DATABASE_URL" "$@" "$TARGET/aurore-events" serve >>"$work/log" 2>&1 &
  server=$!
  until curl -sf -o /dev/null "$URL/ready"; do
    kill -0 "$server" 2>/dev/null || { tail -n 20 "$work/log" >&2; die "it does not start"; }
    sleep 0.002
  done
}

# Starts a PostgreSQL that can be stopped independently of the server. Sets DATABASE_URL.
separate_postgres() {
  local dir
  for dir in $(tr ':' ' ' <<<"$PATH") /usr/lib/postgresql/*/bin; do [ -x "$dir/initdb" ] && pg_bin=$dir; done
  pg_port=${PG_PORT:-3997}
  mkdir "$work/pg"
  as_postgres=()
  if [ "$(id -u)" -eq 0 ]; then
    chown postgres "$work/pg"
    as_postgres=(setpriv --reuid=postgres --regid=postgres --clear-groups)
  fi
  "${as_postgres[@]}" "$pg_bin/initdb" -A trust -U postgres -D "$work/pg/data" >/dev/null
  start_postgres
  DATABASE_URL=postgresql://postgres@127.0.0.1:$pg_port/postgres
  trap 'stop; stop_postgres; rm -rf "$work"' EXIT
}

start_postgres() {
  "${as_postgres[@]}" "$pg_bin/pg_ctl" -D "$work/pg/data" -w -l "$work/pg/log" \
    -o "-c port=$pg_port -c listen_addresses=127.0.0.1 -k $work/pg" start >/dev/null
}
stop_postgres() { "${as_postgres[@]}" "$pg_bin/pg_ctl" -D "$work/pg/data" -m fast -w stop >/dev/null 2>&1 || true; }
sql() { psql "$DATABASE_URL" -Atc "$1"; }

stop() {
  [ -n "$server" ] || return 0
  kill -TERM "$server" 2>/dev/null || true
  wait "$server" 2>/dev/null || true
  server=
}

# CPU milliseconds of a process and of the children that it has waited for. Parses the fields after
# the name in brackets.
cpu_ms() {
  awk -v hz="$(getconf CLK_TCK)" '{ sub(/^.*[)] /, ""); print ($12 + $13 + $14 + $15) * 1000 / hz }' "/proc/$1/stat"
}

metric() { curl -fsS "$URL/metrics/prometheus" | awk -v name="$1" '$1 == name { print $2 }'; }

# Waits until every accepted event is stored.
wait_for_drain() {
  for _ in $(seq 1200); do
    [ "$(metric buffer_size)" != 0 ] || return 0
    sleep 0.1
  done
  die "the buffer does not empty"
}

# load FORM SECONDS CONNECTIONS: sends at full speed and writes the report to $work/report. `single`
# is the load generator, another form is wrk with the script FORM.lua.
load() {
  case $1 in
    single) "$TARGET/examples/load" --address "127.0.0.1:$PORT" --connections "$3" --seconds "$2" --threads 2 >"$work/report" ;;
    *) wrk -t 2 -c "$3" -d "$2s" --latency -s "$PERF_DIR/$1.lua" "$URL/events" >"$work/report" ;;
  esac
}

# A figure of the load generator's report.
figure() { awk -F '[:,]' -v name="\"$1\"" 'index($1, name) { print $2 + 0; exit }' "$work/report"; }

is_load_report() { [ "$(head -c 1 "$work/report")" = '{' ]; }

# The number of requests that got a response.
requests() { if is_load_report; then figure latencies; else awk '/ requests in / { print $1 }' "$work/report"; fi; }

requests_per_second() {
  if is_load_report; then
    awk -v requests="$(requests)" -v seconds="$(figure seconds)" 'BEGIN { print requests / seconds }'
  else
    awk '/Requests\/sec:/ { print $2; exit }' "$work/report"
  fi
}

# The number of responses other than 202.
rejected() {
  if is_load_report; then
    echo "$(($(figure refused) + $(figure errors)))"
  else
    awk '/Non-2xx or 3xx responses:/ { print $NF; found = 1 } END { if (!found) print 0 }' "$work/report"
  fi
}

median() { sort -n | awk '{ value[NR] = $1 } END { print NR % 2 ? value[(NR + 1) / 2] : (value[NR / 2] + value[NR / 2 + 1]) / 2 }'; }
