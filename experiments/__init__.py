"""Scripts: each is a command, `python -m experiments.NAME`, with its flags at the top and its main below."""

import sys
from importlib.abc import MetaPathFinder

MOVED = {
    "exactness": "experiments.evaluate --config=configs/eval/exactness.py",
    "replay": "experiments.evaluate --config=configs/eval/trees.py",
    "playback": "experiments.sweep --mode=teacher_forced",
    "points": "experiments.sweep",
    "measure": "experiments.bench.measure",
    "batches": "experiments.bench.batches",
    "contexts": "experiments.bench.contexts",
    "loading": "experiments.bench.loading",
    "compile": "experiments.scaling.compile",
    "fit": "experiments.scaling.fit",
}
"""Commands of earlier versions, by the command that does the same now."""


class _Moved(MetaPathFinder):
    """Ends `python -m experiments.OLD` with one line that names the new command."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        package, _, module = name.rpartition(".")
        if package == __name__ and module in MOVED:
            sys.exit(f"error: python -m {name} is now python -m {MOVED[module]}")


sys.meta_path.append(_Moved())
