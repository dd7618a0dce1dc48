#!/usr/bin/env python3
"""Changes the program in small ways, one at a time, and sees whether a test fails for each: docs/testing.md has the results.

    cargo install cargo-mutants --locked     # lists what may be changed
    scripts/mutants.py                       # 80 minutes on two busy cores; interrupted, it goes on where it was
    scripts/mutants.py --survivors           # those again that survived, with the tests as they are now
    scripts/mutants.py --list                # every mutant, and the test that caught it

`cargo mutants` itself builds everything anew for each mutant, more than a minute every time. Here all are compiled at once, in a
copy of the tree: each mutant is a second body of its function, taken where VTRAIN_MUTANT has its number. A first run of the tests
notes which mutants each test comes by; only those tests are asked about a mutant, each in a process of its own, quick and
special ones first, until one fails twice. A test that takes far longer than without the mutant has failed as well.

The sample is drawn from all mutants by a fixed seed. Left out are those whose second body does not compile (the type system
caught them, or the form cannot have two bodies: `const fn`, `impl Trait`), and those of code for GPUs, which is not compiled.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from plant_mutants import HOOK, planted

ROOT = Path(__file__).resolve().parent.parent
CARGO = os.environ.get("CARGO", "cargo")
SEED = 22
MODULES = "ops train optim diffusion lora data sample config hub video nn".split()
GPU = re.compile(r"/(cuda|cudnn|nccl)(/|\.rs)")
MEMORY = 8 << 30  # bytes of address space: a mutant may ask for any number


def output(command, cwd=ROOT):
    return subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout


def module(mutant):
    return Path(mutant["file"]).parts[1].removesuffix(".rs")


def digest(files):
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def note(path, line):
    with open(path, "a") as out:
        out.write(json.dumps(line) + "\n")


def drawn():
    """All mutants of the modules, in the order of the sample."""
    listed = json.loads(output([CARGO, "mutants", "--list", "--json"]))
    listed = [m for m in listed if m["function"] and module(m) in MODULES and not GPU.search(m["file"])]
    listed.sort(key=lambda m: m["name"])
    order = random.Random(SEED).sample(listed, len(listed))
    return [mutant | {"number": number} for number, mutant in enumerate(order)]


def plant(tree, mutants):
    """Writes the mutants into the copy; the lines of each by file."""
    by_file = {}
    for mutant in mutants:
        by_file.setdefault(mutant["file"], []).append(mutant)
    places = {}
    for source in (ROOT / "src").rglob("*.rs"):
        file = str(source.relative_to(ROOT))
        text, places[file] = planted(source.read_text(), by_file.get(file, []))
        write(tree / file, (text + (HOOK if file == "src/lib.rs" else "")).encode())
    return places


def write(path, content):
    """Leaves alone what is as it should be: cargo looks at times."""
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def copy(tree):
    """Brings the copy of the tree, sources aside, to what it is now."""
    files = {name for name in output(["git", "ls-files", "-co", "--exclude-standard"]).splitlines() if (ROOT / name).is_file()}
    for name in files:
        if not (name.startswith("src/") and name.endswith(".rs")):
            write(tree / name, (ROOT / name).read_bytes())
            (tree / name).chmod((ROOT / name).stat().st_mode)
    for stale in [path for path in tree.rglob("*") if path.is_file() and str(path.relative_to(tree)) not in files]:
        stale.unlink()


# Building


def cargo(tree, verb, args):
    """What the compiler says, what it made, and whether it was content."""
    command = [CARGO, *verb, "--locked", "--message-format=json", "--features", args.features]
    env = os.environ | {"CARGO_TARGET_DIR": str(args.folder / "build")}
    done = subprocess.run(command, cwd=tree, env=env, stdout=subprocess.PIPE, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    made = {line["target"]["name"]: line["executable"] for line in lines if line["reason"] == "compiler-artifact"}
    return [line["message"] for line in lines if line["reason"] == "compiler-message"], made, done.returncode == 0


def viable(tree, order, args):
    """The first mutants of the sample that compile; how many did not, and how many are not compiled here at all."""
    many, dead, off = args.count * 5 // 4, set(), set()
    while True:
        plan = [m for m in order[:many] if m["number"] not in dead | off]
        places = plant(tree, plan)
        messages, _, content = cargo(tree, ["check", "--lib"], args)
        wrong, seen = set(), set()
        for message in messages:
            for span in message["spans"]:
                lines = places.get(span["file_name"], {}).items()
                hit = {number for number, (first, last) in lines if first <= span["line_start"] <= last}
                if message["level"] == "error":
                    wrong |= hit
                elif (message["code"] or {}).get("code") == "deprecated":
                    seen |= hit
        print(f"{len(plan)} mutants, {len(wrong)} of them do not compile", flush=True)
        if not content and not wrong:
            sys.exit("\n".join(m["rendered"] for m in messages if m["level"] == "error"))
        dead |= wrong
        if content:
            off |= {m["number"] for m in plan} - seen
            good = [m for m in plan if m["number"] in seen]
            if len(good) >= args.count or many >= len(order):
                last = good[: args.count][-1]["number"]
                return good[: args.count], len([n for n in dead if n < last]), len([n for n in off if n < last])
            many += args.count - len(good) + 5


# Running


def run(exe, test, tree, temp, limit, **env):
    """Runs one test by itself, within the limit of seconds."""
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(parents=True)
    env = os.environ | {"TMPDIR": str(temp), "CARGO_MANIFEST_DIR": str(tree)} | env
    small = lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    quiet = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.DEVNULL)
    child = subprocess.Popen([exe, "--exact", test], cwd=tree, env=env, start_new_session=True, preexec_fn=small, **quiet)
    try:
        return "passed" if child.wait(limit) == 0 else "failed"
    except subprocess.TimeoutExpired:
        return "too long"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def parallel(work, items, args):
    """Does the work for all, with a folder for temporary files for each thread."""
    pool = ThreadPoolExecutor(args.jobs)
    try:
        list(pool.map(lambda item: work(item, args.folder / f"tmp-{threading.get_ident()}"), items))
    finally:
        pool.shutdown(cancel_futures=True)
        for temp in args.folder.glob("tmp-*"):
            shutil.rmtree(temp, ignore_errors=True)


def measure(exe, tree, args):
    """Runs every test without a mutant: its seconds and the mutants that it comes by. Tests that have not changed, only once."""
    journal = args.folder / "tests.jsonl"
    lines = output([exe, "--list", "--format", "terse"], tree).splitlines()
    tests = [line.removesuffix(": test") for line in lines if line.endswith(": test") and not re.search(args.without, line)]

    @functools.cache
    def version_of(room):
        files = [tree / "tests" / f"{room}.rs", *sorted((tree / "tests" / room).rglob("*.rs"))]
        return digest(file for file in files if file.exists())

    version = lambda test: version_of(test.split("::")[0])
    known = {t["test"]: t for t in lines_of(journal)}
    due = [t for t in tests if known.get(t, {}).get("version") != version(t)]

    def work(test, temp):
        reached = args.folder / "reached" / test.replace("::", ".")
        reached.parent.mkdir(exist_ok=True)
        reached.unlink(missing_ok=True)
        began = time.time()
        result = run(exe, test, tree, temp, 900, VTRAIN_REACHED=str(reached))
        took = time.time() - began
        numbers = sorted({int(n) for n in reached.read_text().split()}) if reached.exists() else []
        known[test] = {"test": test, "version": version(test), "result": result, "seconds": took, "reached": numbers}
        note(journal, known[test])
        if result != "passed":
            print(f"without a mutant: {test}: {result}", flush=True)

    parallel(work, due, args)
    return [known[t] for t in tests if known[t]["result"] == "passed"]


def judge(exe, tree, mutants, tests, args):
    """Asks the tests about every mutant that has no result yet."""
    journal = args.folder / "results.jsonl"
    before = {r["name"]: r for r in lines_of(journal)}

    def work(mutant, temp):
        passed = before.get(mutant["name"], {}).get("passed", {})
        asked = [t for t in tests if mutant["number"] in t["reached"] and passed.get(t["test"]) != t["version"]]
        asked.sort(key=lambda t: (t["seconds"] > 2, t["seconds"] > 20, len(t["reached"]) * (t["seconds"] + 0.1)))
        found, began = {"result": "survived", "passed": passed}, time.time()
        for test in asked[: args.most]:
            again = lambda test=test: run(
                exe, test["test"], tree, temp, 30 + 8 * test["seconds"], VTRAIN_MUTANT=str(mutant["number"])
            )
            result = again()
            if result == "failed":
                result = again()
            if result != "passed":
                found = {"result": "caught", "test": test["test"], "how": result}
                break
            passed[test["test"]] = test["version"]
        found |= {"name": mutant["name"], "seconds": round(time.time() - began, 1)}
        note(journal, found)
        print(f"{found['result']}: {mutant['name']} ({found.get('test', f'{len(passed)} tests')})", flush=True)

    due = lambda mutant: before.get(mutant["name"], {}).get("result") in [None, "survived" if args.survivors else None]
    parallel(work, [m for m in mutants if due(m)], args)


# Telling


def tell(known, results, args):
    """The table, or the list."""
    page = ROOT / "docs/testing.md"
    text, kinds = page.read_text() if page.exists() else "", ["caught", "survived", "equivalent", "not tried"]
    for mutant in known["mutants"]:
        result = results.get(mutant["name"], {"result": "not tried"})
        mutant["kind"] = "equivalent" if f"- `{mutant['name']}`: " in text else result["result"]
        mutant["by"] = f" by {result['test']}" if mutant["kind"] == "caught" else ""
    if args.list:
        for mutant in sorted(known["mutants"], key=lambda m: (m["file"], m["span"]["start"]["line"], m["name"])):
            print(f"{mutant['name']}: {mutant['kind']}{mutant['by']}")
        return
    print(
        f"\nseed {SEED}: {args.count} of {known['of']} mutants; on the way to them {known['dead']} that do not compile, "
        f"{known['off']} that are not compiled at all\n\n| module | {' | '.join(kinds)} |\n| --- |{' --- |' * len(kinds)}"
    )
    for row in MODULES + ["all"]:
        counts = [sum(m["kind"] == kind and row in (module(m), "all") for m in known["mutants"]) for kind in kinds]
        print(f"| {row} | {' | '.join(map(str, counts))} |")


def go_on(tree, sample, journal, args):
    """Everything, as far as it is not done yet."""
    copy(tree)
    key = [digest(sorted((ROOT / "src").rglob("*.rs"))), SEED, args.count, args.features]
    if not sample.exists() or json.loads(sample.read_text())["key"] != key:
        (args.folder / "tests.jsonl").unlink(missing_ok=True)
        journal.unlink(missing_ok=True)
        order = drawn()
        mutants, dead, off = viable(tree, order, args)
        sample.write_text(json.dumps({"key": key, "of": len(order), "dead": dead, "off": off, "mutants": mutants}))
    mutants = json.loads(sample.read_text())["mutants"]
    plant(tree, mutants)
    messages, made, content = cargo(tree, ["test", "--test", "tests", "--no-run"], args)
    if not content:
        sys.exit("\n".join(m["rendered"] for m in messages if m["level"] == "error"))
    judge(made["tests"], tree, mutants, measure(made["tests"], tree, args), args)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=150, help="mutants in the sample")
    parser.add_argument("--folder", type=Path, default=ROOT / "target/mutants", help="the copy, its build, the results")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="tests at a time")
    parser.add_argument("--features", default="mpi" if shutil.which("mpicc") else "")
    parser.add_argument("--without", default="^$", help="tests that are not asked, a regular expression: slow ones, at first")
    parser.add_argument("--most", type=int, help="tests that a mutant is asked by in this pass; without, all")
    parser.add_argument("--survivors", action="store_true", help="ask about those again that survived")
    parser.add_argument("--list", action="store_true", help="list what is known, and do nothing else")
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    sample, journal = args.folder / "sample.json", args.folder / "results.jsonl"
    if not args.list:
        go_on(args.folder / "tree", sample, journal, args)
    tell(json.loads(sample.read_text()), {r["name"]: r for r in lines_of(journal)}, args)


if __name__ == "__main__":
    main()
