"""Run commands of this project one after the other where time is short: each a section with a limit of its own.

    python -m experiments.bench.sections --config=configs/bench/accelerator.py --output=DIRECTORY --data=DIRECTORY \
        --prompts=prompts.jsonl --time_limit=840

A section is a process; what it prints is in DIRECTORY/NAME.log. At its limit it gets a signal to stop and soon another
that it cannot refuse; one that fails does not end the others. The same command goes on: sections that ended by
themselves are not run again, the others are, and continue what they have written.
"""

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags
from ml_collections import config_flags

from eagle_jax.evaluation.summary import markdown_table
from eagle_jax.files import Record, check_directory
from eagle_jax.journal import Journal
from eagle_jax.provenance import git_commit
from experiments.cli import launch

FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file(
    "config",
    None,
    "the sections: a file of configs/bench; its fields are flags, as in --config.sections.costs.seconds=60",
    flag_values=FLAGS,
)
flags.DEFINE_string("output", None, "directory for all that is written", flag_values=FLAGS)
flags.DEFINE_string(
    "data", "", "stands for {data} in commands: questions, as for experiments.evaluate", flag_values=FLAGS
)
flags.DEFINE_string("prompts", "", "stands for {prompts}: conversations to be answered", flag_values=FLAGS)
flags.DEFINE_list("sections", [], "run these; left out, all of the config in its order", flag_values=FLAGS)
flags.DEFINE_float("time_limit", None, "seconds for all of them; left out, their own limits count", flag_values=FLAGS)

GRACE = 20.0
"""Seconds between the request to stop and the end of a section."""

SHORTEST = 10.0
"""A section that would have fewer seconds is not begun."""


class Section(NamedTuple):
    """One command."""

    name: str
    seconds: float  # its limit
    command: str  # what follows `python -m`, with places for values in braces


class Outcome(NamedTuple):
    """What became of it."""

    how: str  # ended, stopped at its limit, failed, no time left
    seconds: float
    last_line: str = ""


def main() -> None:
    """Run what has not ended yet, and say what came out."""
    started = time.monotonic()
    launch.need(FLAGS, "config", "output")
    sections = read_sections(FLAGS.config.sections.to_dict(), FLAGS.sections or FLAGS.config.order)
    folder = check_directory(FLAGS.output)
    values = {"output": str(folder), "data": FLAGS.data, "prompts": FLAGS.prompts}
    for section in sections:
        _arguments(section, {**values, "seconds": ""})
    limit = FLAGS.time_limit or sum(section.seconds + GRACE for section in sections)
    folder.mkdir(parents=True, exist_ok=True)
    with Journal(folder / "sections.jsonl", {}) as journal:
        done = {(record["section"], record["command"]) for record in journal.records if record["how"] == "ended"}
        for section in sections:
            if (section.name, section.command) in done:
                continue
            left = limit - (time.monotonic() - started) - GRACE
            with launch.status(section.name):
                outcome = run(section, values, min(section.seconds, left), folder / f"{section.name}.log")
            record = {"section": section.name, "command": section.command, **outcome._asdict()}
            journal.add({**record, "commit": git_commit()})
        print(markdown_table(*table(sections, journal.records)))
        newest = {record["section"]: record["how"] for record in journal.records}
    failed = [section.name for section in sections if newest[section.name] == "failed"]
    if failed:
        raise ValueError(f"sections that failed: {', '.join(failed)}; what they printed is in {folder}")


def read_sections(config: Record, names: Sequence[str]) -> list[Section]:
    """The sections of these names.

    Args:
      config: by name, the limit and the command of a section.
      names: in the order in which they run.

    Raises:
      ValueError: a name that no section has, a limit that is none, or an empty command.
    """
    for name in names:
        if name not in config:
            raise ValueError(f"sections are {', '.join(config)}, got {name!r}")
    sections = [Section(name, **config[name]) for name in names]
    for section in sections:
        if not section.seconds > 0 or not section.command.split():
            raise ValueError(
                f"section {section.name} needs seconds above 0 and a command, got {section.seconds!r} and"
                f" {section.command!r}"
            )
    return sections


def run(section: Section, values: dict[str, str], seconds: float, log: pathlib.Path) -> Outcome:
    """Run a section in a process of its own.

    Args:
      section: what to run.
      values: what stands for the names in braces; `seconds` joins them.
      seconds: its limit. A command that limits itself to {seconds} stops soon after by itself.
      log: to which what it prints is appended.
    """
    if seconds < SHORTEST:
        return Outcome("no time left", 0.0)
    command = [sys.executable, "-m", *_arguments(section, {**values, "seconds": f"{seconds:.0f}"})]
    started = time.monotonic()
    with log.open("a") as file:
        print(f"$ {shlex.join(command[1:])}", file=file, flush=True)
        # A session of its own, so that workers that it starts end with it.
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = _wait(process, seconds)
        finally:
            _signal(process, signal.SIGKILL)
    spent = time.monotonic() - started
    how = "stopped" if spent >= seconds else "failed" if code else "ended"
    return Outcome(how, round(spent, 1), _last_line(log))


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The exit code; None where it had to be killed. A process that stops itself at `seconds` has time to."""
    for patience in (seconds + GRACE / 2, GRACE / 2):
        try:
            return process.wait(patience)
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGTERM)
    return None


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Reach the process and all that it started."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
    if number == signal.SIGKILL:
        process.wait()


def table(sections: list[Section], records: list[Record]) -> tuple[list[str], list[list[object]]]:
    """A line a section: what became of it last."""
    newest = {record["section"]: record for record in records}
    rows: list[list[object]] = []
    for section in sections:
        record = newest[section.name]
        rows.append([section.name, record["how"], record["seconds"], record["last_line"]])
    return ["section", "how", "seconds", "last line"], rows


def _arguments(section: Section, values: dict[str, str]) -> list[str]:
    """The command in words.

    Raises:
      ValueError: a name in braces that stands for nothing, or for nothing given.
    """
    try:
        words = [word.format(**values) for word in shlex.split(section.command)]
    except (LookupError, ValueError) as error:
        raise ValueError(f"section {section.name}: {section.command!r} cannot be filled in: {error}") from error
    for name in ("data", "prompts"):
        if f"{{{name}}}" in section.command and not values[name]:
            raise ValueError(f"section {section.name} needs --{name}")
    return words


def _last_line(log: pathlib.Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").replace("\r", "\n").splitlines()]
    return next((line for line in reversed(lines) if line), "")[:120]


if __name__ == "__main__":
    launch.run(main, FLAGS)
