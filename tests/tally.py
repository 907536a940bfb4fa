"""Sums up what tests/run left in its results directory and prints the last line.

  units-BUILD-WHO/PROGRAM.GROUP.xml, .rc, .log   cmocka programs
  mounts-BUILD-WHO/junit.xml, rc, log            pytest
  checks/NAME.rc, .log or NAME.skip              single commands

A program that crashed, hung or left no report counts as one failure. Exit status 1 when
anything failed; under CI=true a skip that no line of the list of allowed skips (regular
expressions, each with its reason behind a #) matches is a failure too.
"""

import os
import re
import sys
import xml.etree.ElementTree as xml


SLOWEST = 12  # tests whose times are shown


class Tally:
    def __init__(self):
        self.passed = 0
        self.failed = []  # (what, text)
        self.skipped = []  # "what: reason"
        self.times = []  # (seconds, what)

    def add_report(self, where, path):
        """The testcases of one XML file; False where it is none."""
        try:
            root = xml.parse(path).getroot()
        except (OSError, xml.ParseError):
            return False
        for case in root.iter("testcase"):
            name = f"{where}: {case.get('name')}"
            self.times.append((float(case.get("time") or 0), name))
            bad = [e for e in case if e.tag in ("failure", "error")]
            skips = [e for e in case if e.tag == "skipped"]
            if bad:
                self.failed.append((name, "\n".join((e.text or "").strip() for e in bad)))
            elif skips:
                reason = skips[0].get("message") or (skips[0].text or "").strip()
                self.skipped.append(f"{name}: {reason}" if reason else name)
            else:
                self.passed += 1
        return True


def read(path, most=20000):
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            text = f.read()
    except OSError:
        return ""
    return text if len(text) <= most else "[…]\n" + text[-most:]


def status_of(path):
    try:
        return int(read(path))
    except ValueError:
        return -1


def add_units(tally, where, top):
    files = sorted(os.listdir(top))
    programs = sorted({f.split(".")[0] for f in files})
    if not programs:
        tally.failed.append((where, "no unit test was built"))
    for program in programs:
        name = f"{where}/{program}"
        before = len(tally.failed)
        reports = [f for f in files if f.startswith(program + ".") and f.endswith(".xml")]
        good = [tally.add_report(name, os.path.join(top, r)) for r in reports]
        status = status_of(os.path.join(top, program + ".rc"))
        log = read(os.path.join(top, program + ".log"))
        if not good or not all(good) or (status != 0 and len(tally.failed) == before):
            tally.failed.append((name, f"exit status {status}\n{log}"))
        elif len(tally.failed) > before and log:
            what, text = tally.failed[-1]
            tally.failed[-1] = (what, text + "\n" + log)


def add_mounts(tally, where, top):
    before = len(tally.failed)
    status = status_of(os.path.join(top, "rc"))
    log = read(os.path.join(top, "log"), 200000)
    reported = tally.add_report(where, os.path.join(top, "junit.xml"))
    if status == 77:
        tally.skipped.append(f"{where}: {log.strip().splitlines()[-1] if log else 'not possible'}")
    elif not reported or (status != 0 and len(tally.failed) == before):
        tally.failed.append((where, f"exit status {status}\n{log}"))
    elif len(tally.failed) > before:  # what pytest shows: output and the daemons' logs
        what, text = tally.failed[-1]
        tally.failed[-1] = (what, f"{text}\n---- all of {where}\n{log}")


def add_checks(tally, top):
    for file in sorted(os.listdir(top)):
        name, kind = os.path.splitext(file)
        if kind == ".skip":
            tally.skipped.append(f"{name}: {read(os.path.join(top, file)).strip()}")
        elif kind == ".rc":
            status = status_of(os.path.join(top, file))
            log = read(os.path.join(top, name + ".log"))
            if status == 0:
                tally.passed += 1
            elif status == 77:
                tally.skipped.append(f"{name}: {log.strip().splitlines()[-1] if log else ''}")
            else:
                tally.failed.append((name, f"exit status {status}\n{log}"))


def read_allowed(path):
    """[(pattern, reason)] of the list of allowed skips."""
    found = []
    for line in read(path).splitlines():
        pattern, _, reason = line.partition(" # ")
        if pattern.strip() and not line.startswith("#"):
            found.append((re.compile(pattern.strip()), reason.strip()))
    return found


def main(results, allowed_path):
    tally = Tally()
    for part in sorted(os.listdir(results)):
        top = os.path.join(results, part)
        if part.startswith("units-"):
            add_units(tally, part[6:], top)
        elif part.startswith("mounts-"):
            add_mounts(tally, part, top)
        elif part == "checks":
            add_checks(tally, top)
    allowed = read_allowed(allowed_path)
    for i, skip in enumerate(tally.skipped):
        reason = next((why for pattern, why in allowed if pattern.search(skip)), None)
        if reason is not None and ": " not in skip.replace(": test_", ""):
            tally.skipped[i] = f"{skip}: {reason}"  # cmocka's skip() gives none
        if reason is None and os.environ.get("CI") == "true":
            tally.failed.append((skip, "this skip is not in tests/skips-allowed"))
    for what, text in tally.failed:
        print(f"\n#### FAILED {what}\n{text}")
    for seconds, what in sorted(tally.times, reverse=True)[:SLOWEST]:
        print(f"{seconds:6.1f} s  {what}")
    for skip in tally.skipped:
        print(f"skipped {skip}")
    if tally.failed:
        print("\nfailed:")
        for what, _ in tally.failed:
            print(f"  {what}")
    print(f"{tally.passed} passed, {len(tally.failed)} failed, {len(tally.skipped)} skipped")
    return 1 if tally.failed or not tally.passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
