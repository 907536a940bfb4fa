#!/bin/bash
# Rules of the source that a compiler does not know. Exit 1 and one line for each violation.
set -u
: "${CELLAR_SOURCE:=$(cd "$(dirname "$0")/.." && pwd)}"
cd "$CELLAR_SOURCE" || exit 1

problems=0
bad() {
	printf '%s\n' "$*"
	problems=$((problems + 1))
}

# Reads lines "FILE:LINE:TEXT" and complains of each.
bad_lines() {
	local line
	while IFS= read -r line; do bad "$1: $line"; done
}

# ---- layers: a folder uses itself and those before it ----

layers="base codec store catalog tree pool upkeep mount control cellard cellarctl"

layer_number() {
	local n=0 l
	for l in $layers; do
		[ "$l" = "$1" ] && { echo $n; return; }
		n=$((n + 1))
	done
	echo -1
}

check_layers() {
	local folder number used_number file rest used
	for folder in src/*/; do
		[ "$(layer_number "$(basename "$folder")")" -ge 0 ] ||
			bad "$folder: not one of the layers ($layers)"
	done
	while IFS=: read -r file rest; do
		folder=${file#src/}
		folder=${folder%%/*}
		used=${rest#*\"}
		used=${used%%\"*}
		case $used in
		*/*) used=${used%%/*} ;;
		*) continue ;; # config.h, uthash.h, a table beside the file
		esac
		number=$(layer_number "$folder")
		used_number=$(layer_number "$used")
		[ "$used" = "$folder" ] && continue
		if [ "$used_number" -lt 0 ]; then
			bad "$file: includes from $used/, which is no layer"
		elif [ "$used_number" -gt "$number" ]; then
			bad "$file: $folder/ may not use $used/ (a later layer)"
		elif [ "$folder" = cellarctl ] && [ "$used" = cellard ]; then
			bad "$file: the programs do not use each other"
		fi
	done < <(grep -rE '^[[:space:]]*#[[:space:]]*include[[:space:]]+"' src --include='*.[ch]' --include='*.def')
}

# ---- what may be used where ----

check_uses() {
	grep -rnE '\bsqlite3_|<sqlite3' src --include='*.[ch]' | grep -v '^src/catalog/' |
		bad_lines "SQL outside catalog/"
	grep -rnE '#[[:space:]]*include[[:space:]]*<(fuse|linux/fuse)' src --include='*.[ch]' |
		grep -v '^src/mount/' | bad_lines "FUSE outside mount/"
	grep -rnE '\b(strcpy|strcat|sprintf|vsprintf|gets|strtok)[[:space:]]*\(' src tests/unit tests/fault tests/fuzz tests/mount \
		--include='*.[ch]' | bad_lines "banned function"
}

# ---- magics, sizes, the list of sources ----

check_magics() {
	grep -rhoE '#define[[:space:]]+[A-Z0-9_]*MAGIC[[:space:]]+0x[0-9A-Fa-f]+' src --include='*.[ch]' |
		awk '{ print tolower($3) }' | sort | uniq -d | bad_lines "the same magic twice"
}

check_sizes() {
	local file lines most
	while IFS= read -r file; do
		lines=$(wc -l <"$file")
		case $file in
		src/*) most=900 ;;
		*) most=1500 ;;
		esac
		[ "$lines" -le $most ] || bad "$file: $lines lines, more than $most"
	done < <(find src tests \( -name '*.[ch]' -o -name '*.py' \) -type f)
}

check_makefile() {
	local file
	while IFS= read -r file; do
		[ -e "$file" ] || bad "Makefile.am: $file does not exist"
	done < <(grep -oE '\b(src|tests)/[A-Za-z0-9_/.-]+\.(c|h|def)\b' Makefile.am | sort -u)
	while IFS= read -r file; do
		grep -qF "$file" Makefile.am || bad "$file: not in Makefile.am"
	done < <(find src tests/unit tests/fault \( -name '*.h' -o -path 'src/*.c' -o -name '*.def' \) -type f)
	while IFS= read -r file; do
		grep -qE "${file%.c}(\\.c)?( |\\\\|\$)" Makefile.am || bad "$file: not in Makefile.am"
	done < <(find tests/unit tests/fault tests/fuzz tests/mount -name '*.c' -type f)
	while IFS= read -r file; do
		[ -e "$file.c" ] || bad "Makefile.am: $file has no source"
	done < <(grep -oE '\btests/(unit/test|fuzz/fuzz)-[a-z0-9-]+' Makefile.am | sort -u)
}

# ---- what must be written down ----

check_documents() {
	local name
	while IFS= read -r name; do
		grep -qF "$name" tests/README || bad "tests/README: says nothing of the step $name"
	done < <(grep -rhoE '\bstep\("[^"]+"\)' src --include='*.c' | cut -d'"' -f2 | sort -u)
	while IFS= read -r name; do
		grep -qF "$name" tests/README || bad "tests/README: says nothing of $name"
	done < <(grep -rhoE '\bCELLAR_(TEST_[A-Z_]+|BOOT_ID)\b' src tests --include='*.[ch]' --include='*.py' \
		--include='*.sh' --include=run | sed 's/_$//' | sort -u)
	grep -rnE '(^|[^A-Za-z])(TODO|FIXME|XXX)\b' src tests data --include='*' |
		grep -v '^tests/lint.sh:' | grep -v 'XXXXXX' | bad_lines "unfinished"
}

# ---- tools, where they are installed ----

# Every promise to users names the tests that hold it; and the page is well-formed.
check_pages() {
	local page
	if [ -x /usr/bin/python3 ]; then
		/usr/bin/python3 tests/semantics.py | bad_lines "promise"
	else
		echo "python3 is not here: promises not checked"
	fi
	command -v mandoc >/dev/null || {
		echo "mandoc is not here: manual pages not checked"
		return
	}
	for page in data/man/*.[1-9]; do
		mandoc -T lint -W warning "$page" 2>&1 | grep -v 'outdated mandoc.db' |
			bad_lines "page"
	done
}

c_files() { find src tests/unit tests/fault tests/fuzz tests/mount tests/tools -name '*.[ch]' -type f; }

check_format() {
	local tool
	for tool in clang-format-14 clang-format; do
		command -v "$tool" >/dev/null || continue
		# other versions format differently
		"$tool" --version | grep -q 'version 14\.' || continue
		c_files | xargs "$tool" --dry-run -Werror 2>&1 |
			grep -E 'error:' | cut -d: -f1 | sort | uniq -c |
			awk '{ print $2 ": " $1 " places (clang-format -i)" }' | bad_lines "format"
		return
	done
	echo "clang-format 14 is not here: formatting not checked"
}

check_scripts() {
	command -v shellcheck >/dev/null || {
		echo "shellcheck is not here: scripts not checked"
		return
	}
	shellcheck -f gcc autogen.sh tests/run tests/*.sh .ci/run data/quickstart \
		| grep -E ': (error|warning):' | bad_lines "shellcheck"
}

# Suppressed is what it gets wrong here: it knows no cleanup attribute (memleak: that is
# ASan's), no statement expressions (internalAstError), and does not see that a pointer was
# checked by way of an error code, or filled through another one.
check_cppcheck() {
	local uthash=() header
	command -v cppcheck >/dev/null || {
		echo "cppcheck is not here: not run"
		return
	}
	for header in /usr/include/uthash.h /usr/include/utlist.h; do
		[ -e $header ] && uthash+=("--include=$header")
	done
	cppcheck --quiet -j2 --inline-suppr --std=c11 --max-configs=2 \
		--enable=warning,performance,portability --template='{file}:{line}: {id}: {message}' \
		--suppress=missingInclude --suppress=missingIncludeSystem --suppress=unknownMacro \
		--suppress=memleak --suppress=internalAstError --suppress=nullPointerRedundantCheck \
		--suppress=uninitvar --suppress='*:/usr/include/*' "${uthash[@]}" \
		-D_GNU_SOURCE -DCELLAR_DEVELOPER=1 -D__GNUC__=12 -Isrc src 2>&1 |
		grep -E '^[^ ]+:[0-9]+: ' | bad_lines "cppcheck"
}

# Lines of a pipe are read in a subshell: let the last part of a pipe run in this one.
shopt -s lastpipe

check_layers
check_uses
check_magics
check_sizes
check_makefile
check_documents
check_pages
check_format
check_scripts
check_cppcheck

if [ $problems -gt 0 ]; then
	echo "lint: $problems problems"
	exit 1
fi
echo "lint: no problems"
