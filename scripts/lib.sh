# shellcheck shell=bash
# What the scripts share: finding PostgreSQL's programs and installing packages. Sourced, not run.

say() { printf '%s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# Installs Debian packages, as root or through sudo.
install_packages() {
  command -v apt-get >/dev/null || die "please install: $* (no apt-get here)"
  local root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "please install as root: apt-get install $*"
    root=(sudo)
  fi
  say "installing: $*"
  "${root[@]}" apt-get update -qq
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

# Whether initdb and postgres are in PATH, where pg_config says, or where Debian puts them.
has_postgres() {
  local dir
  for dir in $(tr ':' ' ' <<<"$PATH") "$(pg_config --bindir 2>/dev/null || true)" /usr/lib/postgresql/*/bin; do
    if [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ]; then return 0; fi
  done
  return 1
}

# Installs PostgreSQL's server programs unless they are there. Debian's package would make and start a cluster of
# its own, which nobody here needs.
need_postgres() {
  if has_postgres; then return; fi
  if [ "$(id -u)" -eq 0 ] && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    mkdir -p /etc/postgresql-common
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
  fi
  install_packages postgresql
}

# Installs Prometheus, its Alertmanager and PostgreSQL's exporter unless they are there. The packages would start services
# of their own, which nobody here needs: on a machine with a service manager they are stopped again.
need_prometheus() {
  local name missing=()
  for name in prometheus prometheus-alertmanager prometheus-postgres-exporter; do
    command -v "$name" >/dev/null || missing+=("$name")
  done
  if [ "${#missing[@]}" -eq 0 ]; then return; fi
  install_packages "${missing[@]}"
  if [ -d /run/systemd/system ] && [ "$(id -u)" -eq 0 ]; then systemctl disable --now "${missing[@]}" >&2; fi
}

# Installs what checks a compose file, unless it is there: no engine is needed for that.
need_compose() {
  docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || install_packages docker-compose
}

# Holds the dashboard to Grafana's schema, where npm is there and gets the package that has it.
check_dashboard() {
  local here=$PWD dir
  command -v npm >/dev/null || { say "no npm here: the dashboard was not held to Grafana's schema"; return; }
  dir=$(mktemp -d)
  cp tests/grafana/* "$dir"
  if (cd "$dir" && npm ci --silent --no-audit --no-fund >&2); then
    (cd "$dir" && node check.mjs "$here/docker/grafana/dashboards/aurore-dashboard.json") || { rm -rf "$dir"; return 1; }
  else
    say "Grafana's types could not be installed: the dashboard was not held to its schema"
  fi
  rm -rf "$dir"
}

# Installs what compiling needs besides the Rust toolchain.
need_compiler() {
  command -v cargo >/dev/null || die "please install Rust first: https://rustup.rs"
  command -v cc >/dev/null || install_packages gcc libc6-dev
}

# The verdicts of the fault bench as a table, by number of the fault.
faults_table() {
  { printf 'fault\ttimes\tacknowledged\tlost\ttwice\tverdict\n'; sort -t ' ' -k 1,1n -k 2 "$1"; } |
    awk -F '\t' '{ printf "%-56s %6s %13s %7s %6s  %s\n", $1, $2, $3, $4, $5, $6 }'
}
