"""Tau by the length of the context, for a head that attends to all of it or to a window of its last tokens.

    python -m experiments.bench.contexts --prompts_file=mt_bench/question.jsonl --documents=sum/question.jsonl

Every question follows as many documents as the context has room for, so the question stays the same while the text
before it grows. Plain decoding writes the answers and records the target's outputs, and drafts are evaluated teacher
forced along them (`eagle_jax.evaluation.teacher_forced`). A context holds the prompt, the answer and the deepest draft.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import flags

from eagle_jax.checkpoint.pretrained import LoadedModel, load_target
from eagle_jax.decode import Models
from eagle_jax.drafters import Drafter
from eagle_jax.evaluation import runner
from eagle_jax.evaluation.metrics import n_alpha
from eagle_jax.evaluation.recording import write_recorded
from eagle_jax.evaluation.summary import markdown_table, tree_size
from eagle_jax.evaluation.tasks import from_prompt, read_questions
from eagle_jax.evaluation.teacher_forced import accept_known
from eagle_jax.files import local
from eagle_jax.models.transformer import make_target
from eagle_jax.provenance import device_kind, git_commit
from eagle_jax.sampling import SamplingOptions
from eagle_jax.types import Params
from experiments.cli import launch, methods

FLAGS = flags.FlagValues()
flags.DEFINE_string("target", "smollm2-135m", "as for experiments.generate", flag_values=FLAGS)
methods.define_flags(FLAGS, method=False)
flags.DEFINE_string("draft_method", "eagle3:60/7/10", "METHOD or METHOD:NODES/DEPTH/TOP_K", flag_values=FLAGS)
flags.DEFINE_list("contexts", ["512", "1024", "2048", "4096", "8192"], "their lengths in tokens", flag_values=FLAGS)
text = "attention windows of the head in tokens, 0 for none; left out where a context is not longer"
flags.DEFINE_list("windows", ["0", "512", "1024"], text, flag_values=FLAGS)
flags.DEFINE_string("prompts_file", None, "questions, as for experiments.generate", flag_values=FLAGS)
flags.DEFINE_string("documents", None, "questions whose texts fill the context before each prompt", flag_values=FLAGS)
flags.DEFINE_integer("num_prompts", 4, "questions, all of them one batch", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("max_new_tokens", 64, "longest answer", lower_bound=2, flag_values=FLAGS)
flags.DEFINE_float("temperature", 0.0, "0 is greedy", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "seed of sampling", flag_values=FLAGS)
flags.DEFINE_string("output", None, "JSON lines to write, one a context and window; must not exist", flag_values=FLAGS)

Row = dict[str, Any]


def main() -> None:
    """Measure every context and window and print a table."""
    contexts, windows = numbers("contexts", 1), numbers("windows", 0)
    if FLAGS.head_window is not None:
        raise ValueError(f"--windows says how far the head looks back, got --head_window={FLAGS.head_window}")
    output = local(FLAGS.output) if FLAGS.output else None
    launch.check_file("output", FLAGS.output, new=True)
    if not FLAGS.prompts_file or not FLAGS.documents:
        raise ValueError(f"give --prompts_file and --documents, got {FLAGS.prompts_file!r} and {FLAGS.documents!r}")
    questions = [question.turns[0] for question in read_questions(FLAGS.prompts_file, FLAGS.num_prompts)]
    documents = [document.turns[0] for document in read_questions(FLAGS.documents)]
    label, name, settings = methods.read_draft(FLAGS.draft_method, FLAGS)
    by_window = {window: settings._replace(head_window=window or None) for window in windows}
    for windowed in by_window.values():
        methods.check_settings(name, windowed)
    with launch.status(f"Loading {FLAGS.target}") as progress:
        model = load_target(FLAGS.target, FLAGS.dtype, packed=True, progress=progress)
    drafts = {window: methods.make_method(name, model, windowed) for window, windowed in by_window.items()}
    tree = tree_size(drafts[windows[0]][0])
    rows: list[Row] = []
    for row in measure(model, drafts, questions, documents, contexts):
        rows.append({**about(), "draft": label, "tree": tree, **row, "commit": git_commit()})
        if output:
            output.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"tau of {label}, {FLAGS.target}, {FLAGS.dtype}, T = {FLAGS.temperature:g}, {len(questions)} prompts\n")
    print(table(rows, windows))


def about() -> Row:
    """The settings of all rows."""
    decides = ("target", "dtype", "temperature", "seed", "max_new_tokens")
    return {**{flag: getattr(FLAGS, flag) for flag in decides}, "device": device_kind()}


def numbers(flag: str, least: int) -> list[int]:
    """A list of numbers, ascending; ValueError where it is none."""
    given = FLAGS[flag].value or []
    if not given or not all(one.isdecimal() and int(one) >= least for one in given):
        raise ValueError(f"--{flag} takes numbers of at least {least}, got {','.join(given)!r}")
    return sorted(map(int, given))


def measure(
    model: LoadedModel,
    drafts: dict[int, tuple[Drafter, Params]],
    questions: Sequence[str],
    documents: Sequence[str],
    contexts: Sequence[int],
) -> Iterator[Row]:
    """A row for each context and window."""
    target = make_target(model.config)
    if contexts[-1] > target.max_positions:
        raise ValueError(f"--contexts: {contexts[-1]} is more than the {target.max_positions} of {FLAGS.target}")
    beyond = FLAGS.max_new_tokens + max(drafter.max_depth for drafter, _ in drafts.values()) + 1
    sampling: SamplingOptions = {
        "temperature": FLAGS.temperature,
        "seed": FLAGS.seed,
        "stop_ids": model.stop_ids,
        "max_new_tokens": FLAGS.max_new_tokens,
    }
    by_context = {context: long_prompts(model, questions, documents, context - beyond) for context in contexts}
    for context, prompts in by_context.items():
        with launch.status(f"{context}: plain decoding"):  # one capacity: the programs are the same for all contexts
            answers, recording = write_recorded(target, model.params, prompts, capacity=contexts[-1], **sampling)
            jax.block_until_ready(recording)
        for window, (drafter, params) in drafts.items():
            if window >= context:
                continue
            with launch.status(f"{context}: {f'the last {window}' if window else 'all'}"):
                models = Models(target, drafter, model.params, params)
                result = accept_known(models, prompts, answers, recording=recording, **sampling)
            yield {
                "context": context,
                "head_window": window or None,
                "prompts": len(prompts),
                "prompt_tokens": len(prompts[0]),
                "tokens": result.num_tokens,
                "rounds": sum(result.rounds),
                "tau": result.tau,
                "n_alpha": n_alpha(result.accepted.sum(0)),
            }


def long_prompts(
    model: LoadedModel, questions: Sequence[str], documents: Sequence[str], length: int
) -> list[list[int]]:
    """Every question after documents of its own, truncated at the front: exactly `length` tokens each.

    The documents next to a question are the same for all lengths.

    Raises:
      ValueError: documents that do not suffice, or a question that is longer.
    """
    return [
        _long_prompt(model, question, documents[index :: len(questions)], length)
        for index, question in enumerate(questions)
    ]


def _long_prompt(model: LoadedModel, question: str, documents: Sequence[str], length: int) -> list[int]:
    alone = runner.prompt_ids(model, from_prompt(question))
    full = runner.prompt_ids(model, from_prompt("\n\n".join([*reversed(documents), question])))
    if not len(alone) <= length <= len(full):
        raise ValueError(
            f"a prompt of {length} tokens: the question alone has {len(alone)}, with its documents {len(full)}"
        )
    same = (index for index, (one, other) in enumerate(zip(alone, full, strict=False)) if one != other)
    front = next(same, 0)  # what the chat template puts first
    return full[:front] + full[len(full) - length + front :]


def table(rows: Sequence[Row], windows: Sequence[int]) -> str:
    """A line for each context, a column for each window."""
    taus = {(row["context"], row["head_window"] or 0): row["tau"] for row in rows}
    header = ["context", *(f"window {window}" if window else "no window" for window in windows)]
    contexts = sorted({row["context"] for row in rows})
    return markdown_table(header, [[one, *(taus.get((one, w), "") for w in windows)] for one in contexts])


if __name__ == "__main__":
    launch.run(main, FLAGS)
