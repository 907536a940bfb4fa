#!/usr/bin/python3
"""Checks data/man/cellar-semantics.7: every paragraph that promises something names, in comments of
the form `.\\" test: FILE::FUNCTION`, tests that exist. One line for each violation, exit 1."""

import os
import re
import sys

PAGE = "data/man/cellar-semantics.7"
NO_PROMISES = {"", "NAME", "DESCRIPTION", "SEE ALSO"}
TEST = re.compile(r'^\.\\" test: (\S+)::(\w+)$')
LOOKS_LIKE_ONE = re.compile(r"tests?[:/]|::test")
BREAK = re.compile(r"^\.(Sh|Ss|Pp|It|Bl|El|Bd|Ed)\b")
FUNCTION = {".py": r"^def {}\(", ".c": r"^static void {}\(void \*\*state\)"}


def exists(path, name):
    kind = os.path.splitext(path)[1]
    if kind not in FUNCTION or not os.path.isfile(path):
        return False
    with open(path, encoding="utf-8") as f:
        return re.search(FUNCTION[kind].format(re.escape(name)), f.read(), re.MULTILINE) is not None


def check(lines):
    """Yields (line number, problem)."""
    section, start, said, held = "", 0, "", 0
    for number, line in enumerate([*lines, ".Sh END"], 1):
        line = line.rstrip("\n")
        test = TEST.match(line)
        if test:
            held += 1
            if not exists(*test.groups()):
                yield number, f"there is no {test.group(1)}::{test.group(2)}"
        elif line.startswith('.\\"'):
            if number > 2 and LOOKS_LIKE_ONE.search(line):
                yield number, f"not understood: {line}"
        elif BREAK.match(line):
            if said and not held and section not in NO_PROMISES:
                yield start, f"no test holds: {said[:60]}"
            said, held = "", 0
            if line.startswith(".Sh "):
                section = line[4:]
        elif line.strip():
            if not said:
                start = number
            elif held:
                yield number, "text behind the tests of its paragraph"
            said += line + " "


def main():
    os.chdir(os.environ.get("CELLAR_SOURCE") or os.path.join(os.path.dirname(__file__), ".."))
    with open(PAGE, encoding="utf-8") as f:
        lines = f.readlines()
    problems = list(check(lines))
    for number, problem in problems:
        print(f"{PAGE}:{number}: {problem}")
    # a check that finds nothing in a page that promises nothing is none
    broken = [l for l in lines if "test:" not in l]
    if not any(".Sh" in l for l in lines) or len(list(check(broken))) < 20:
        print(f"{PAGE}: this script does not recognise its paragraphs")
        return 1
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
