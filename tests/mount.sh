#!/bin/bash
# Runs the mounted tests with the programs of $CELLAR_BUILD, those in $CELLAR_TEST_PLACES (". ../crash");
# arguments go to pytest.
# make check calls it, and tests/run. Exit 77: mounting is not possible here, the last line
# says why.
set -u

cannot() {
	printf 'mounted tests: %s\n' "$*"
	exit 77
}

: "${CELLAR_SOURCE:=$(cd "$(dirname "$0")/.." && pwd)}"
: "${CELLAR_BUILD:?must name the build directory}"
export CELLAR_SOURCE CELLAR_BUILD
# Nothing is left among the sources.
[ -n "${PYTHONPYCACHEPREFIX:-}" ] || export PYTHONDONTWRITEBYTECODE=1

python=/usr/bin/python3 # Debian's: the one that python3-pytest belongs to
[ -x "$python" ] || python=$(command -v python3) || cannot "no python3"
"$python" -c 'import pytest' 2>/dev/null || cannot "$python has no pytest (python3-pytest)"

# make distcheck: the source is read-only there, and only the units are run
case $(stat -c %A "$CELLAR_SOURCE") in
*w*) ;;
*) cannot "the source directory is read-only" ;;
esac

[ -e /dev/fuse ] || cannot "there is no /dev/fuse"
if ! { : <>/dev/fuse; } 2>/dev/null; then
	cannot "$(id -un) may not open /dev/fuse"
fi
if [ "$(id -u)" != 0 ]; then
	helper=$(command -v fusermount3) || cannot "fusermount3 is missing (fuse3)"
	[ -u "$helper" ] || cannot "$helper is not setuid root"
fi

if [ -z "${CELLAR_TEST_SANITIZER:-}" ]; then
	if grep -qs '^SAN = .*=thread' "$CELLAR_BUILD/Makefile"; then
		CELLAR_TEST_SANITIZER=tsan
	elif grep -qs '^SAN = .*=address' "$CELLAR_BUILD/Makefile"; then
		CELLAR_TEST_SANITIZER=asan
	fi
	export CELLAR_TEST_SANITIZER=${CELLAR_TEST_SANITIZER:-}
fi

# TSan maps fixed addresses: without randomisation of the address space they are free.
plain_addresses=()
if [ "$CELLAR_TEST_SANITIZER" = tsan ] && setarch "$(uname -m)" -R true 2>/dev/null; then
	plain_addresses=(setarch "$(uname -m)" -R)
fi

read -ra places <<<"${CELLAR_TEST_PLACES:-. ../crash}"
cd "$CELLAR_SOURCE/tests/mount" || exit 1
exec "${plain_addresses[@]}" "$python" -m pytest -q -ra --tb=short -p no:cacheprovider \
	--rootdir="$CELLAR_SOURCE/tests" "$@" "${places[@]}"
