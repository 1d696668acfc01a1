#!/bin/sh
# Checks that this machine has what the laboratory needs, and installs what is missing. It says nothing when nothing
# is.
#
#   deps.sh demo   PostgreSQL, Redis, ZooKeeper, and curl, with which the README begins
#   deps.sh test   the same, a C compiler for the race detector, a browser and npm for the tests of the page, HAProxy,
#                  PgBouncer and Prometheus for those of deploy/
#
# Nothing of what it installs is started or enabled as a service, and no database is made.
set -eu

purpose=${1:-test}
case $purpose in demo | test) ;; *) echo "usage: deps.sh demo|test" >&2; exit 2 ;; esac

say() { echo "deps: $*" >&2; }
fail() { say "$*"; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

# any PATTERN... succeeds when one of the files exists.
any() {
	for file in "$@"; do
		[ -e "$file" ] && return 0
	done
	return 1
}

check_go() {
	has go || fail "Go is missing: install Go 1.26 or newer from https://go.dev/dl/"
	version=$(go env GOVERSION) # go1.26.0, perhaps with more behind it
	number=${version#go}
	major=${number%%.*}
	rest=${number#*.}
	minor=${rest%%[!0-9]*}
	case $major$minor in *[!0-9]* | '') return ;; esac # a development version
	if [ "$major" -lt 1 ] || { [ "$major" -eq 1 ] && [ "$minor" -lt 26 ]; }; then
		fail "this is $version, and Fencepost needs Go 1.26 or newer: https://go.dev/dl/"
	fi
}

has_postgres() { has initdb || any /usr/lib/postgresql/*/bin/initdb "$brew"/opt/postgresql@*/bin/initdb; }
has_redis() { has redis-server; }
has_zookeeper() { any /usr/share/java/zookeeper.jar "$brew"/opt/zookeeper/libexec/lib/zookeeper-[0-9]*.jar; }
has_java() { { [ "$(uname)" != Darwin ] && has java; } || any "${JAVA_HOME:-/nonexistent}/bin/java" "$brew/opt/openjdk/bin/java"; }
has_curl() { has curl; } # macOS has it
has_npm() { has npm && has node; }
# Both are in /usr/sbin, which the PATH of an ordinary user does not have.
has_haproxy() { has haproxy || any /usr/sbin/haproxy; }
has_pgbouncer() { has pgbouncer || any /usr/sbin/pgbouncer; }
has_prometheus() { has prometheus && has promtool; }
# Go asks for gcc on Linux. Without the headers it compiles nothing that needs cgo.
has_compiler() { [ "$(uname)" = Darwin ] || { has "${CC:-gcc}" && [ -e /usr/include/stdlib.h ]; }; }
has_browser() {
	has chromium-headless-shell || has chromium || has chromium-browser || has google-chrome ||
		any "/Applications/Chromium.app" "/Applications/Google Chrome.app"
}

# need CHECK PACKAGE REASON adds the package to the list when the check fails.
missing=
need() {
	"$1" && return
	missing="$missing $2"
	say "$2 is missing: $3"
}

run_as_root() {
	if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# Debian's packages start their servers at once, and PostgreSQL's makes a database cluster, unless these two files
# tell them not to. They are there during the installation only.
policy=/usr/sbin/policy-rc.d
no_cluster=/etc/postgresql-common/createcluster.d/fencepost.conf
forbid_services() {
	trap 'run_as_root rm -f $temporary' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	temporary=$no_cluster
	run_as_root mkdir -p "${no_cluster%/*}"
	echo 'create_main_cluster = false' | run_as_root tee "$no_cluster" >/dev/null
	[ -e "$policy" ] && return # somebody has a policy already, and it is not ours to change
	temporary="$temporary $policy"
	printf '#!/bin/sh\nexit 101\n' | run_as_root tee "$policy" >/dev/null
	run_as_root chmod 755 "$policy"
}

install_with_apt() {
	if [ "$(id -u)" -ne 0 ] && ! has sudo; then
		fail "run this as root, or install sudo: sh cmd/lab/deps.sh $purpose"
	fi
	say "installing with apt-get:$missing"
	say "no system service is started or enabled, and no database cluster is made"
	forbid_services
	run_as_root apt-get -qq update
	# shellcheck disable=SC2086 # the list is meant to be split
	run_as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends $missing >/dev/null
	for service in postgresql redis-server haproxy pgbouncer prometheus; do
		case $missing in *$service*) ;; *) continue ;; esac
		if has systemctl; then run_as_root systemctl --quiet disable "$service" 2>/dev/null || true; fi
	done
	say "installed"
}

brew=/opt/homebrew
[ -d "$brew" ] || brew=/usr/local
check_go

if [ "$(uname)" = Darwin ]; then
	postgres=postgresql@17 redis=redis zookeeper=zookeeper java=openjdk npm=node browser=chromium
else
	postgres=postgresql redis=redis-server zookeeper=libzookeeper-java java=default-jre-headless npm=npm browser=chromium-headless-shell
fi

need has_postgres "$postgres" "the database, and the judge of every write"
need has_redis "$redis" "the locks of the strategies redis and redlock"
need has_zookeeper "$zookeeper" "the locks of the strategy zookeeper"
need has_java "$java" "ZooKeeper runs on it"
need has_curl curl "the README has lines for it, which a test runs too"
if [ "$purpose" = test ]; then
	need has_compiler "gcc libc6-dev" "the race detector needs cgo"
	need has_browser "$browser" "the tests of the page drive it"
	need has_npm "$npm" "the tests of the page check its types and its accessibility with tools from npm"
	need has_haproxy haproxy "tests put three instances behind it, as deploy/haproxy.cfg does"
	need has_pgbouncer pgbouncer "tests put it before PostgreSQL, as deploy/pgbouncer.ini does"
	need has_prometheus prometheus "tests have it watch three instances, with the alerts and the dashboard of deploy/"
fi
[ -z "$missing" ] && exit 0

if [ "$(uname)" = Darwin ]; then
	has brew || fail "install Homebrew from https://brew.sh, then run: brew install$missing"
	say "installing with brew:$missing"
	# shellcheck disable=SC2086
	brew install --quiet $missing
	exit 0
fi
has apt-get || fail "this is neither Debian, Ubuntu nor macOS: install your system's packages for$missing"
install_with_apt
