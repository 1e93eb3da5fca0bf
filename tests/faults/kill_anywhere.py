"""Kills trainings, evaluations, predictions and merges anywhere; the same again must end the same.

Run by hand: `make faults`, or `python tests/faults/kill_anywhere.py --help`.

Every trial is a process, forked where everything is imported already, that is ended by SIGKILL: at
a file operation (before it is done, counted from the start), or at a moment.  Half of the former
also lose power: what was written and not flushed is cut short, and renamings whose folder was not
flushed are undone.  Then the same command is given again, perhaps killed again, until it ends.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from fixtures.runs import Recorder, run_settings, write_records

from ptune.base.folder import find_base_model
from ptune.commands.merge import merge
from ptune.commands.predict.run import predict
from ptune.config.predict_settings import PredictSettings
from ptune.config.settings import EvalSettings
from ptune.evaluation.evaluate import evaluate
from ptune.training.train import train

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
_PATIENCE = 120  # seconds that a process may take


class Journal:
    """The file operations of a process below a folder, written where a kill does not reach them.

    Args:
        folder: whose files count.
        log: gets a line of JSON for each operation.
        kill_at: number of the operation before which the process is killed.
    """

    def __init__(self, folder, log, kill_at=None):
        self.folder, self.kill_at, self.count = str(folder), kill_at, 0
        self.log = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self.fsync = os.fsync
        os.fsync = self.flush
        sys.addaudithook(self.audit)

    def audit(self, event, args):
        if event not in _OPERATIONS:
            return
        if event == "open":
            path, mode, flags = args
            reads = not flags & _WRITING if isinstance(flags, int) else "r" in str(mode)
            if isinstance(path, int) or reads:
                return
            self.note("write", path)
        elif event == "os.rename":
            self.note("rename", args[0], args[1])
        else:
            self.note(event, args[0])

    def flush(self, handle):
        path = os.readlink(f"/proc/self/fd/{handle}")
        self.note("flushing", path)
        self.fsync(handle)
        self.note("flushed", path)

    def note(self, what, *paths):
        paths = [os.path.abspath(os.fsdecode(path)) for path in paths]
        if not paths[0].startswith(self.folder):
            return
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1
        os.write(self.log, (json.dumps([what, *paths]) + "\n").encode())


def lose_power(log, rng):
    """Cut what was not flushed, and undo renamings whose folder was not."""
    written, renamed = {}, []
    for line in log.read_text().splitlines():
        what, path, *more = json.loads(line)
        if what == "write":
            written[path] = True
        elif what == "flushed":
            written.pop(path, None)
            renamed = [pair for pair in renamed if os.path.dirname(pair[1]) != path]
        elif what == "rename":
            source, target = path, more[0]
            for old in [old for old in written if old == source or old.startswith(source + "/")]:
                written[target + old[len(source) :]] = written.pop(old)
            renamed.append((source, target))
        elif what in ("os.remove", "os.rmdir"):
            written.pop(path, None)
    for path in written:
        if os.path.isfile(path) and not path.endswith("/.lock"):
            size = os.path.getsize(path)
            kept = rng.choice([0, rng.randint(0, size), size])
            with open(path, "r+b") as stream:
                stream.truncate(kept)
                if rng.random() < 0.3:  # room that was given and never filled
                    stream.truncate(size)
    for source, target in reversed(renamed):
        if os.path.lexists(target) and not os.path.lexists(source) and rng.random() < 0.5:
            os.rename(target, source)


class Trial:
    """A command that is given again and again until it ends.

    Args:
        command: what to do, in a folder.
        result: what it must come to, from that folder.
        folder: where.
        processes: that do it together.
    """

    def __init__(self, command, result, folder, processes=1):
        self.command, self.result, self.folder = command, result, folder
        self.processes = processes
        self.log = folder.with_name(f"{folder.name}.log")

    def fork(self, rank, port, kill_at):
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            if self.processes > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                os.environ |= {"WORLD_SIZE": str(self.processes), "MASTER_ADDR": "127.0.0.1"}
                os.environ |= {"MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(self.processes)}
            if rank == 0:
                Journal(self.folder, self.log, kill_at)
            self.command(self.folder)
            code = 0
        except BaseException:
            with open(f"{self.log}.error", "w") as stream:
                traceback.print_exc(file=stream)
        finally:
            os._exit(code)

    def run(self, kill_at=None, after=None, victim=0):
        """Run it once.

        Args:
            kill_at: file operation of the first process before which it is killed.
            after: seconds after which `victim` is killed.
            victim: number of the process.

        Returns:
            How it ended: `ended`, `killed`, `failed` or `hung`.
        """
        self.log.unlink(missing_ok=True)
        port = free_port() if self.processes > 1 else 0
        children = [self.fork(rank, port, kill_at) for rank in range(self.processes)]
        began, codes, killed = time.monotonic(), {}, False
        while len(codes) < len(children):
            for child in children:
                if child not in codes:
                    done, status = os.waitpid(child, os.WNOHANG)
                    if done:
                        codes[child] = os.waitstatus_to_exitcode(status)
            elapsed = time.monotonic() - began
            if after is not None and not killed and elapsed >= after:
                killed = True
                with contextlib.suppress(ProcessLookupError):
                    if children[victim] not in codes:
                        os.kill(children[victim], signal.SIGKILL)
            if any(codes.values()):  # as torchrun does
                for child in children:
                    if child not in codes:
                        os.kill(child, signal.SIGKILL)
            if elapsed > _PATIENCE:
                for child in children:
                    if child not in codes:
                        os.kill(child, signal.SIGKILL)
                        os.waitpid(child, 0)
                return "hung"
            time.sleep(0.002)
        if not any(codes.values()):
            return "ended"
        return "killed" if -signal.SIGKILL in codes.values() else "failed"

    def operations(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def training(root, model, **changes):
    """Ten records, a part of them held out; six steps, three saves, each removing another."""
    changes = {"save_steps": 2, "save_total_limit": 1, "eval_fraction": 0.2} | changes

    def command(folder):
        asked = run_settings(root, model, output=folder, prefix_dropout=0.2, **changes)
        train(asked, Recorder())

    return command


def finished_prefix(folder):
    left = [path.name for path in folder.iterdir() if path.name.endswith(".partial")]
    return (folder / "prefix_encoder.safetensors").read_bytes(), left


def evaluation(checkpoint):
    def command(folder):
        class Silent:
            def phase(self, name, total, done):
                pass

            def advanced(self, done):
                pass

        asked = {"checkpoint": checkpoint, "output": folder, "batch_size": 2, "device": "cpu"}
        evaluate(EvalSettings(max_new_tokens=8, **asked), Silent())

    return command


def answers(folder):
    results = json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))
    scores = {name: value for name, value in results.items() if "per_second" not in name}
    return (folder / "generated_predictions.jsonl").read_bytes(), scores


def prediction(checkpoint, questions):
    """Eighteen questions in two files, in shards of four."""

    def command(folder):
        class Silent:
            def phase(self, name, total, done):
                pass

            advanced = noticed = lambda self, what: None

        asked = {"checkpoint": checkpoint, "data": (questions,), "output": folder}
        asked |= {"batch_size": 2, "shard_size": 4, "device": "cpu"}
        predict(PredictSettings(max_new_tokens=8, **asked), Silent())

    return command


def all_answers(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return sorted((path.relative_to(folder).as_posix(), path.read_bytes()) for path in files)


def merging(model, checkpoint):
    def command(folder):
        folder.mkdir(exist_ok=True)
        if not (folder / "merged").exists():
            merge(find_base_model(model), checkpoint, folder / "merged", max_shard_size="2MB")

    return command


def merged(folder):
    files = sorted((folder / "merged").iterdir())
    return [(file.name, file.read_bytes()) for file in files], [p.name for p in folder.iterdir()]


def campaign(name, make, trials, rng, processes=1, alone=None):
    """Kill a command in many ways.

    Args:
        name: of the campaign.
        make: a command's trial in a folder.
        trials: how many kills.
        rng: decides which.
        processes: of a trial.
        alone: what it comes to without a kill; None finds it out.

    Returns:
        Counts of what happened, and what went wrong.
    """
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    counts, wrong = collections.Counter(), []
    straight = make(root / "straight")
    began = time.monotonic()
    assert straight.run() == "ended", error_of(straight)
    seconds = time.monotonic() - began
    expected = straight.result(straight.folder)
    operations = straight.operations()
    for number in range(trials):
        trial = make(root / str(number))
        by_operation = processes == 1 and number % 2 == 0
        kill_at = (number // 2 * 7919) % len(operations) if by_operation else None
        after = None if by_operation else rng.uniform(0, seconds * 1.05)
        counts[trial.run(kill_at, after, rng.randrange(processes))] += 1
        if trial.log.exists():
            done = trial.operations()
            counts["inside a save"] += bool(done) and any(".partial" in p for p in done[-1][1:])
            if by_operation and rng.random() < 0.5:
                counts["power lost"] += 1
                lose_power(trial.log, rng)
        if rng.random() < 0.2:
            counts["killed again"] += 1
            trial.run(after=rng.uniform(0, seconds), victim=rng.randrange(processes))
        how = trial.run()
        if how == "ended" and trial.result(trial.folder) == expected:
            shutil.rmtree(trial.folder)
            continue
        what = "another result" if how == "ended" else f"{how} at the end: {error_of(trial)}"
        wrong.append(f"{number}: {kill_at=} {after=}: {what}")
        print(wrong[-1], file=sys.stderr, flush=True)
    counts["kills"] = trials
    counts["operations of a run"] = len(operations)
    if not wrong:
        shutil.rmtree(root)
    return {"campaign": name, **counts, "seconds of a run": round(seconds, 2), "wrong": wrong}


def error_of(trial):
    file = Path(f"{trial.log}.error")
    return file.read_text()[-2000:] if file.exists() else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "processes", "eval", "predict", "merge"):
        parser.add_argument(f"--{name}", type=int, default=0, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(asked.seed)
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    model = "tiny"
    write_records(root / "data.json", 10)
    (root / "questions").mkdir()
    for number, size in enumerate((7, 11)):
        write_records(root / "questions" / f"{number}.json", size)
    prefix = root / "trained"
    first = Trial(training(root, model), finished_prefix, prefix)
    assert first.run() == "ended", error_of(first)
    commands = {
        "train": (training(root, model), finished_prefix, 1),
        "processes": (training(root, model), finished_prefix, 2),
        "eval": (evaluation(prefix), answers, 1),
        "predict": (prediction(prefix, root / "questions"), all_answers, 1),
        "merge": (merging(model, prefix), merged, 1),
    }
    failed = False
    for name, (command, result, processes) in commands.items():
        if trials := getattr(asked, name):

            def make(folder, command=command, result=result, processes=processes):
                return Trial(command, result, folder, processes)

            found = campaign(name, make, trials, rng, processes)
            print(json.dumps(found), flush=True)
            failed = failed or bool(found["wrong"])
    shutil.rmtree(root)
    sys.exit(failed)


if __name__ == "__main__":
    main()
