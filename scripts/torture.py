"""python scripts/torture.py [--counts 20,5,10] [--seed 0] [--only kills,stage2] [--out runs/torture]

Disturb the commands that write, and see whether they resume. Each job runs once undisturbed. Then, in a new folder, it
is killed at a random moment, its disk fills up, and so on (`FAULTS`), and the same command must end with the same
tensors, log, answers or records, to the bit, without times. A command that a bad disk stops must say why in one line,
with an exit code of docs/failures.md.

torture.md and torture.json in --out are written anew after each try; logs/ has what is printed. Exit code 1: a command
refused to resume, or was wrong. What may not be mounted in a namespace of this process is skipped.
"""

import argparse
import base64
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import psutil
from safetensors import deserialize

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from langdc.failures import guarded  # noqa: E402
from langdc.jsonl import read, write_json, write_lines, write_text  # noqa: E402

LIMIT = 600.0
"""Seconds after which a command hangs."""
MARK = "LANGDC_TORTURE"  # environment variable by which the processes of a command are found
TIMES = {"seconds", "samples_per_second", "tokens_per_second", "data_wait", "mfu", "peak_bytes", "date"}
"""Fields that are not compared."""


class Job(NamedTuple):
    """A command, patterns of the files it ends with, and its number of processes."""

    words: str
    results: tuple[str, ...]
    processes: int = 1


RUN = ("run/model.safetensors", "run/log.jsonl")
TRAIN = "output={work}/run features={data}/features train.data=[{data}/train.jsonl] start=null train.steps=10 "
TRAIN += "save_steps=2 log_steps=1 train.batch_size="
STAGE2 = f"train/stage2.py --config sample/langdc/stage2_density {TRAIN}"
STAGE3 = f"train/stage3.py --config sample/langdc/stage3 train.lora.dropout=0.1 {TRAIN}"
TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node 2 "
DEEPSPEED = "-m deepspeed.launcher.runner --num_accelerators 2 --master_port {port} "
EVAL, ANSWERS = "eval/run.py --config {data}/eval.yaml output={work}/eval", ("eval/results/*/*.jsonl",)
DATA, CAPTIONS = "-m langdc.cli data", ("captions.jsonl", "captions.jsonl.work/*.jsonl")
CAPTION = f"{DATA} caption {{data}}/train.jsonl --out {{work}}/captions.jsonl --teacher sample:langdc --captioner"
FEATURES = "--train sample/langdc/stage3 train.data=[{data}/train.jsonl] features={work}/features start=null"
FAULTY = ("check/media*.jsonl", "check/faults.jsonl", "check/quarantine.jsonl")
JOBS = {
    "stage2": Job(f"{STAGE2}4", RUN),
    "stage3": Job(f"{STAGE3}4", RUN),
    "stage2-deepspeed": Job(f"{DEEPSPEED}{STAGE2}2 --deepspeed configs/deepspeed/zero2.json", RUN, 2),
    "stage3-torchrun": Job(f"{TORCHRUN}{STAGE3}2", RUN, 2),
    "features": Job(f"{DATA} features {FEATURES}", ("features/*/*",)),
    "caption": Job(f"{CAPTION} --batch 4", CAPTIONS),
    "check": Job(f"{DATA} check {{data}}/faulty.jsonl --out {{work}}/check", FAULTY),
    "import": Job(f"{DATA} import {{data}}/foreign.jsonl --out {{work}}/mine.jsonl", ("mine.jsonl", "mine_media/*")),
    "eval-torchrun": Job(f"{TORCHRUN}{EVAL}", ANSWERS, 2),
    "eval-deepspeed": Job(f"{DEEPSPEED}{EVAL}", ANSWERS, 2),
    "export": Job("-m langdc.cli export sample:langdc {work}/exported", ("exported/**/*",)),
}
Reference = namedtuple("Reference", "code startup seconds size files result")
"""A job undisturbed: seconds before its first file and from it to the last, the most it had on the disk, the result."""


class Outcome(Exception):
    """How a try ends, and why: equal, refused (one line where it had to resume), wrong, missed (too late), skipped."""


def result(job: Job, work: Path) -> dict[str, Any]:
    """Tensors, fields of lines, and files by name; lines of several processes are joined, and ordered by key."""
    found, lines = dict[str, Any](), dict[str, list[dict]]()
    for pattern in job.results:
        for path in sorted(path for path in work.glob(pattern) if path.is_file() and path.suffix != ".partial"):
            name = path.relative_to(work).as_posix()
            if path.suffix == ".safetensors":
                found |= {f"{name} {tensor}": content for tensor, content in deserialize(path.read_bytes())}
            elif path.suffix == ".jsonl":
                lines.setdefault(f"{path.parent.name}/*" if "*" in pattern else name, []).extend(read(path))
            else:
                found[name] = path.read_bytes()
    for name, read_lines in lines.items():
        kept = [line for line in read_lines if line.get("type") != "timing"]
        for number, line in enumerate(sorted(kept, key=lambda line: line["key"]) if "*" in name else kept, 1):
            found |= {f"{name}, line {number}, {key}": value for key, value in line.items() if key not in TIMES}
    return found


def family(mark: str, rank: str = "", send: signal.Signals | None = None) -> list[psutil.Process]:
    """The living processes of a command, or of one of its ranks, whatever their parents are; `send` them a signal."""
    members = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            variables = process.environ()
            of_command = variables.get(MARK) == mark and rank in ("", variables.get("RANK"))
            if of_command and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
                if send is not None:
                    process.send_signal(send)
    return members


def tool(*words: str | Path) -> None:
    """Run a program of the system; where it fails, a try that needs it is skipped."""
    done = subprocess.run(["env", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Outcome("skipped", f"{words[0]}: {done.stderr.strip()[:200]}")


def in_own_mounts() -> None:
    """Start this program again with mounts of its own, which end with it, if the system allows that."""
    for way in () if MARK in os.environ else (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        with suppress(Outcome):
            tool(*way, "true")
            os.execvpe(way[0], [*way, sys.executable, *sys.argv], {**os.environ, MARK: ""})


def memory_disk(place: Path, *limits: str) -> None:
    """Mount a file system in memory with limits, such as size=4096, or change those of the one there."""
    again = ["remount"] if os.path.ismount(place) else []
    tool("mount", "-t", "tmpfs", "-o", ",".join([*again, *limits]), "tmpfs", place)


def image_disk(place: Path, image: Path) -> None:
    """Mount an ext4 image, a new one if there is none: names reach it within a second, unsynced contents after 30."""
    if not image.exists():
        with image.open("wb") as file:
            file.truncate(256 << 20)
        tool("mkfs.ext4", "-q", "-F", image)
    tool("mount", "-o", "loop,commit=1,noauto_da_alloc", image, place)


def unmount(place: Path) -> None:
    """Take away what is mounted at a place."""
    while os.path.ismount(place):
        with suppress(Outcome):
            tool("umount", place)
        time.sleep(0.02)


class Torture:
    """Jobs in one place, one after the other, and what disturbs them. `now` is what the pages say of a try."""

    def __init__(self, out: Path, seed: int = 0) -> None:
        self.out, self.seed, self.work, self.data, self.logs = out, seed, out / "work", out / "data", out / "logs"
        self.references: dict[str, Reference] = {}
        self.logs.mkdir(parents=True, exist_ok=True)
        alone = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        self.environment = {**os.environ, **alone, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}

    def prepare(self) -> None:
        """Make the data: sample videos, records with two faults, rows of another format with pictures in them."""
        words = f"{DATA} sample --out {self.data} --train 32 --test 8 --images 0 --workers 1"
        subprocess.run([sys.executable, *words.split()], cwd=ROOT, env=self.environment, check=True)
        entries = [{"name": "langdc", "model": "sample:langdc"}]
        entries += [{**entries[0], "name": "text", "control": "caption_text"}]
        task = {"name": "sample", "data": f"{self.data}/test.jsonl"}
        write_json(self.data / "eval.yaml", {"task": task, "entries": entries, "max_new_tokens": 8, "batch_size": 2})
        records = read(self.data / "train.jsonl")
        (self.data / "cut.mp4").write_bytes((self.data / records[0]["video"]).read_bytes()[:-700])
        records += [{"id": name, "video": f"{name}.mp4"} for name in ("cut", "missing")]
        write_lines(self.data / "faulty.jsonl", records)
        made = (base64.b64encode(random.Random(n).randbytes(2000)).decode() for n in range(4000))
        rows = ({"image": f"data:image/png;base64,{each}", "question": "what ?", "answer": "a"} for each in made)
        write_lines(self.data / "foreign.jsonl", rows)

    def empty(self) -> None:
        """Make the place of the work empty."""
        if self.work.is_symlink():
            shutil.rmtree(self.work.resolve(), ignore_errors=True)
            self.work.unlink()
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()

    def sizes(self) -> list[int]:
        """Bytes on the disk, in whole pages, of each file in the work folder."""
        sizes = []
        for path in (Path(folder, name) for folder, _, names in os.walk(self.work) for name in names):
            with suppress(OSError):
                sizes.append(-(-path.lstat().st_size // 4096) * 4096)
        return sizes

    @contextmanager
    def started(self, job: Job, log: Path) -> Iterator[tuple[subprocess.Popen, str]]:
        """Start a job's command and wait for its first file; all its processes are killed afterwards."""
        port = random.randrange(20_000, 32_000)  # below those that systems give out
        words = job.words.format(work=self.work, data=self.data, port=port).split()
        command, mark, began = [sys.executable, *words], uuid4().hex, time.monotonic()
        with log.open("a") as output:
            output.write(f"$ python {' '.join(words)}\n")
            output.flush()
            self.environment[MARK] = mark
            process = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=output, stderr=output)
        try:
            while process.poll() is None and not self.sizes() and time.monotonic() < began + LIMIT:
                time.sleep(0.005)
            yield process, mark
        except subprocess.TimeoutExpired:
            family(mark, send=signal.SIGABRT)  # each then prints its stack
            time.sleep(1)
            raise Outcome("wrong", f"it hangs: no end after {LIMIT:.0f} s") from None
        finally:
            while left := family(mark, send=signal.SIGKILL):
                psutil.wait_procs(left, 1)
            process.wait()

    def reference(self, name: str) -> Reference:
        """A job undisturbed; it runs once."""
        if name not in self.references:
            self.empty()
            job, log, seen, began = JOBS[name], self.logs / f"undisturbed-{name}.log", [(0.0, 0, 0)], time.monotonic()
            with self.started(job, log) as (process, _):
                first = time.monotonic()
                while process.poll() is None and time.monotonic() < first + LIMIT:
                    sizes = self.sizes()
                    if seen[-1][1:] != (sum(sizes), len(sizes)):
                        seen.append((time.monotonic() - first, sum(sizes), len(sizes)))
                    time.sleep(0.02)
            if process.returncode not in (0, 1) or not (found := result(job, self.work)):
                raise SystemExit(f"{name} ends with {process.returncode}, undisturbed; see {log}.")
            seconds, size, files = map(max, zip(*seen, strict=True))
            self.references[name] = Reference(process.returncode, first - began, seconds, size, files, found)
        return self.references[name]

    def attempt(self, fault: str, name: str, number: int) -> dict[str, Any]:
        """Disturb a job, run its command again, and compare what it ends with."""
        self.job, self.wanted, self.log = JOBS[name], self.reference(name), self.logs / f"{fault}-{name}-{number}.log"
        self.now = {"fault": fault, "job": name, "struck": False, "stopped": None, "code": None, "reason": ""}
        self.rng, began = random.Random(f"{self.seed} {fault} {name} {number}"), time.monotonic()
        self.log.unlink(missing_ok=True)
        self.empty()
        try:
            FAULTS[fault](self)
            if self.now["struck"]:
                self.now["code"], last = self.run()
                if self.now["code"] != self.wanted.code:
                    raise Outcome("refused", f"it ended with {self.now['code']}: {last}")
            found, right = result(self.job, self.work), self.wanted.result
            if other := sorted(name for name in {**found, **right} if found.get(name) != right.get(name)):
                raise Outcome("wrong", f"{len(other)} of {len(right)} parts of its result are others, as {other[0]}")
            raise Outcome("equal" if self.now["struck"] else "missed", "")
        except (Outcome, ValueError) as end:  # ValueError: a result that cannot be read
            self.now["outcome"], self.now["reason"] = end.args if isinstance(end, Outcome) else ("wrong", str(end))
        finally:
            unmount(self.work)
            if self.work.is_symlink():
                self.empty()
        return {**self.now, "log": str(self.log), "seconds": time.monotonic() - began}

    def run(self) -> tuple[int, str]:
        """Run the command to its end: its exit code and last line; wrong if an error is not one line with a file."""
        start = self.log.stat().st_size if self.log.exists() else 0
        with self.started(self.job, self.log) as (process, mark):
            code = process.wait(LIMIT)
            if psutil.wait_procs(family(mark), 15)[1]:
                raise Outcome("wrong", "it left processes")
        printed = self.log.read_bytes()[start:].decode(errors="replace")
        errors = re.findall(r"^(?:\[process \d+\] )?error: .*", printed, re.MULTILINE)
        last = (errors or printed.rstrip().split("\n"))[-1][:300]
        named = str(self.work) in last if code == 3 else code == 2 and "No space" not in last
        stated = errors and (self.job.processes > 1 or (named and not errors[1:]))  # launchers have other codes
        own = re.search(rf'File "{re.escape(str(ROOT))}/(?!\.venv)', printed)  # torchrun prints a traceback of its own
        if own or not (code == self.wanted.code or stated):
            raise Outcome("wrong", f"it ended with {code} and a traceback, or not as docs/failures.md says: {last}")
        return code, last

    @contextmanager
    def halfway(self) -> Iterator[tuple[subprocess.Popen, str]]:
        """The command at work, at a random moment after its first file; it is killed afterwards."""
        span = self.wanted.seconds + (self.wanted.startup if self.sizes() else 0.0)
        with self.started(self.job, self.log) as (process, mark):
            time.sleep(0.9 * self.rng.uniform(0, span))
            if process.poll() is not None:
                raise Outcome("missed", "")
            yield process, mark
        self.now["struck"] = True

    # ---- faults

    def kill(self) -> None:
        """Kill all processes at once, or one of several, whose launcher must then end."""
        with self.halfway() as (process, mark):
            rank = str(self.rng.randrange(2 * self.job.processes)) if self.job.processes > 1 else "none"
            if not family(mark, rank, signal.SIGKILL):
                family(mark, send=signal.SIGKILL)
            self.now["stopped"] = process.wait(LIMIT)

    def cut_power(self) -> None:
        """Lose what was not on the disk at a random moment."""
        image, copy = self.out / "disk.img", self.out / "copy.img"
        image.unlink(missing_ok=True)
        image_disk(self.work, image)
        with self.halfway() as (_, mark):
            family(mark, send=signal.SIGSTOP)
            number = self.work.stat().st_dev
            device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat")
            before = None
            while before != (now := device.read_text().split()[4:9]) or now[4] != "0":  # writes, ..., those under way
                before = now
                tool("cp", "--sparse=always", image, copy)  # of one moment, if nothing was written meanwhile
        unmount(self.work)
        image_disk(self.work, copy)

    def spoil_disk(self, *given: str) -> None:
        """A disk as given, else one that is full at a random byte or, one time in four, a random number of files."""
        size, files = self.rng.randrange(self.wanted.size), self.rng.randrange(2, self.wanted.files + 2)
        limit = f"size={size + 1}" if self.rng.random() < 0.75 else f"nr_inodes={files}"
        memory_disk(self.work, *(given or [limit]))
        self.now["struck"] = True
        self.now["stopped"], _ = self.run()
        self.now["struck"] = self.now["stopped"] != self.wanted.code
        memory_disk(self.work, "rw", "size=4g", "nr_inodes=0")

    def move(self) -> None:
        """Kill it where the work is a link to another file system."""
        tool("mountpoint", "/dev/shm")
        self.work.rmdir()
        self.work.symlink_to(tempfile.mkdtemp(dir="/dev/shm"))
        self.kill()

    def turn_back_clock(self) -> None:
        """Kill it, and let its files be from tomorrow."""
        self.kill()
        for path in self.work.rglob("*"):
            os.utime(path, (time.time() + 86400, time.time() + 86400))


FAULTS = {
    "kills": Torture.kill,
    "power-cuts": Torture.cut_power,
    "full-disks": Torture.spoil_disk,
    "read-only": lambda torture: torture.spoil_disk("ro"),
    "other-disk": Torture.move,
    "clock": Torture.turn_back_clock,
}


def page(tries: Sequence[dict[str, Any]]) -> str:
    """Counts by fault and by job, and what was wrong or skipped, in Markdown."""
    lines = ["| fault | job | tried | struck | resumed | equal | refused | wrong |", "|---" * 8 + "|"]
    for fault, job in dict.fromkeys((a_try["fault"], name or a_try["job"]) for name in ("all", "") for a_try in tries):
        some = [a_try for a_try in tries if a_try["fault"] == fault and job in (a_try["job"], "all")]
        counts = [len(some), sum(a_try["struck"] for a_try in some), sum(a_try["code"] in (0, 1) for a_try in some)]
        counts += [sum(a_try["outcome"] == name for a_try in some) for name in ("equal", "refused", "wrong")]
        lines.append(f"| {fault} | {job} | {' | '.join(map(str, counts))} |")
    bad = ["* {fault}, {job}: {outcome}: {reason} ({log})".format(**a_try) for a_try in tries if a_try["reason"]]
    return "\n".join([*lines, "", *bad, ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tries and write the pages; 1 if anything was refused or wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--counts", default="20,5,10", help="kills, power cuts, full disks; full: 100,20,30")
    parser.add_argument("--seed", type=int, default=0, help="of jobs, moments and sizes (default: 0)")
    parser.add_argument("--only", default="", help=f"faults and jobs of these: {', '.join([*FAULTS, *JOBS])}")
    parser.add_argument("--out", type=Path, default=Path("runs/torture"), help="folder (default: runs/torture)")
    options = parser.parse_args(argv)
    chosen = set(filter(None, options.only.split(",")))
    if unknown := chosen - FAULTS.keys() - JOBS.keys():
        parser.error(f"--only {', '.join(unknown)}: there are {', '.join([*FAULTS, *JOBS])}.")
    counts = [int(number) for number in options.counts.replace("full", "100,20,30").split(",")]
    wanted = dict(zip(FAULTS, [*counts, *[-(-counts[0] * 3 // 20)] * 3], strict=True))
    torture, tries = Torture(options.out.resolve(), options.seed), list[dict]()
    torture.prepare()
    jobs = [name for name in JOBS if name in chosen or not chosen & JOBS.keys()]
    for fault in [name for name in FAULTS if name in chosen or not chosen & FAULTS.keys()]:
        order = random.Random(f"{options.seed} {fault}").sample(jobs, len(jobs))
        for number in range(3 * wanted[fault]):  # a command may end before its fault
            done = [a_try for a_try in tries if a_try["fault"] == fault]
            skipped = any(a_try["outcome"] == "skipped" for a_try in done)
            if skipped or sum(a_try["struck"] for a_try in done) >= wanted[fault]:
                break
            tries.append(torture.attempt(fault, order[number % len(order)], number))
            print("{fault}, {job}: {outcome} {reason} ({seconds:.0f} s)".format(**tries[-1]), flush=True)
            write_json(torture.out / "torture.json", {"seed": options.seed, "tries": tries})
            write_text(torture.out / "torture.md", page(tries))
    print(page(tries))
    return int(any(a_try["outcome"] in ("refused", "wrong") for a_try in tries))


if __name__ == "__main__":
    in_own_mounts()
    sys.exit(guarded(main, sys.argv[1:]))
