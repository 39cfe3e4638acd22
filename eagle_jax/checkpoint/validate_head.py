"""Says what is wrong with the files of a draft head before an engine loads them.

SGLang skips tensors that it does not know and keeps random values for those that it misses; vLLM refuses the former and
does not report the latter either. So everything is checked here that can be without running them: names, shapes,
types, the draft vocabulary, the config's keys, and the conventions in which the two differ. A directory of the library
speculators is checked as what it would be in the flat format, and for what vLLM asks of its config.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from eagle_jax.checkpoint.assemble import DTYPES, TensorSource
from eagle_jax.checkpoint.draft_vocabulary import ids_from_offsets, read_target_ids
from eagle_jax.checkpoint.head_config import (
    LAYER_IDS,
    OWN_EMBEDDING,
    config_from_flat,
    fit_to_target,
    missing_parts,
    taps_from_flat,
    tidied,
)
from eagle_jax.checkpoint.head_formats import (
    D2T,
    EMBEDDING,
    ENGINES,
    FLAT,
    HEAD_FORMATS,
    LM_HEAD,
    T2D,
    Engine,
    HeadFormat,
    count_layers,
    head_tensors,
)
from eagle_jax.checkpoint.heads import open_head
from eagle_jax.checkpoint.hf_config import rope_from_hf
from eagle_jax.checkpoint.speculators import LAYER as NESTED_LAYER
from eagle_jax.checkpoint.speculators import TYPE, flatten, missing_keys
from eagle_jax.files import read_json
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import HeadConfig, head_kind

_KEYS = (
    *("architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "vocab_size", "rms_norm_eps", "hidden_act", "max_position_embeddings"),
    "tie_word_embeddings",
)


@dataclasses.dataclass(frozen=True)
class _Files:
    """What the directory holds."""

    mapping: Mapping[str, Any]  # config.json, flat
    source: TensorSource  # under flat names
    names: Mapping[str, str]  # of the file, by flat names
    config: HeadConfig
    engines: Sequence[Engine]
    target: ModelConfig | None

    @property
    def format(self) -> HeadFormat:
        """How heads of this kind are stored."""
        return HEAD_FORMATS[self.config.kind]

    @property
    def reads_taps(self) -> bool:
        """Whether heads of this kind read layers of the target."""
        return head_kind(self.config.kind).reads_taps

    @property
    def draft_vocab_size(self) -> int:
        """U."""
        return self.mapping.get("draft_vocab_size") or self.config.layer.vocab_size


def validate(
    directory: str | os.PathLike[str],
    *,
    engines: Sequence[Engine] | None = None,
    target: ModelConfig | None = None,
) -> list[str]:
    """Everything that is wrong with a head, one line each; empty where nothing is.

    Args:
      directory: of the head.
      engines: that shall load it; left out, those that its format is for, if any have heads of its kind. No EAGLE-1
        head suits both SGLang and vLLM, since they disagree about the bias of fc.
      target: shape of the model that it drafts for, where that shall be checked too.
    """
    directory = pathlib.Path(directory)
    problems: list[str] = []
    try:
        mapping = read_json(directory / "config.json")
        nested = TYPE in mapping
        served: tuple[Engine, ...] = ("speculators",) if nested else FLAT
        for engine in engines or ():
            if engine not in served:
                has = "has" if nested else "has no"
                problems.append(f"{ENGINES[engine]}: does not read this format: config.json {has} {TYPE}")
        if nested:
            problems += missing_keys(mapping)
            mapping = flatten(mapping)
        mapping = tidied(mapping)
        problems += _key_problems(mapping, nested)
        with open_head(directory) as (source, names):
            problems += _reasons(lambda: config_from_flat(mapping, source.shapes))
            agreeing = {**mapping, "bias": "fc.bias" in source.shapes}  # else there would be no config to go on with
            config = config_from_flat(agreeing, source.shapes)
            if engines is None:
                engines = served if HEAD_FORMATS[config.kind].architectures else ()
            meant = [engine for engine in engines if engine in served]
            files = _Files(mapping, source, names, config, meant, target)
            for check in (_tensors, _types, _vocabulary, _layer_ids, _target, _for_engines):
                problems += check(files)
    except ValueError as error:
        problems.append(str(error))
    return list(dict.fromkeys(problems))


def _reasons(attempt: Callable[[], object]) -> list[str]:
    """Why a check of the loader refuses the files."""
    try:
        attempt()
    except ValueError as error:
        return [str(error)]
    return []


def _key_problems(mapping: Mapping[str, Any], nested: bool) -> Iterator[str]:
    for key in _KEYS:
        if key not in mapping and not (nested and key == "tie_word_embeddings"):
            yield f"config.json has no {key}"
    if mapping.get("model_type", "llama") != "llama" and not nested:
        yield f"model_type is {mapping['model_type']!r}: the heads of both engines are llama"
    if mapping.get("tie_word_embeddings") and not nested:
        yield "tie_word_embeddings is true: SGLang then takes the embedding for the LM head"
    if not mapping.get("rope_theta") and not (mapping.get("rope_parameters") or {}).get("rope_theta"):
        yield "config.json has no rope_theta: engines then take 10000, whatever the head was trained with"
    spellings = [{**mapping, key: None} for key in ("rope_scaling", "rope_parameters") if mapping.get(key)]
    readings = {str(rope_from_hf(one)) for one in spellings}
    if len(readings) > 1:
        yield "rope_theta with rope_scaling says something else than rope_parameters"


def _tensors(files: _Files) -> Iterator[str]:
    """Names and shapes."""
    config, shapes = files.config, files.source.shapes
    layer = config.layer
    wanted = {name: spec.stored_shape for name, spec in head_tensors(config).items()}
    known: dict[str, tuple[int, ...]] = {EMBEDDING: (layer.vocab_size, layer.width)}
    if config.target_width != layer.width or files.mapping.get(OWN_EMBEDDING):
        wanted, known = wanted | known, {}
    if files.format.own_lm_head:
        known |= {D2T: (files.draft_vocab_size,), T2D: (layer.vocab_size,)}
        stored_head = {LM_HEAD: (files.draft_vocab_size, layer.width)}
        if files.mapping.get("draft_vocab_size") is None:
            known |= stored_head
        else:
            wanted |= stored_head
    for name in wanted:
        if name not in shapes:
            yield f"tensor {name} is missing"
    for name, shape in shapes.items():
        expected = (wanted | known).get(name)
        if expected is None:
            yield f"tensor {files.names[name]} {tuple(shape)} has no place in this head"
        elif tuple(shape) != expected:
            yield f"tensor {files.names[name]} has shape {tuple(shape)}, expected {expected}"
    declared, stored = files.mapping.get("num_hidden_layers"), count_layers(shapes)
    if declared is not None and declared != stored:
        yield f"num_hidden_layers is {declared}, as many layers as engines make; the file holds {stored}"
    prefixed = [name for name in files.names.values() if name.startswith("model.")]
    if prefixed:
        yield f"tensor {prefixed[0]}: names of the flat format carry no prefix model."


def _types(files: _Files) -> Iterator[str]:
    """Types of all tensors, and values that are no numbers."""
    declared = files.mapping.get("torch_dtype", files.mapping.get("dtype"))  # the name of transformers 5
    if declared not in DTYPES:
        yield f"torch_dtype is {declared!r}; {', '.join(DTYPES)} are loaded"
    for name in files.source.shapes:
        value = files.source.read(name)
        stored, wanted = value.dtype.name, {D2T: "int64", T2D: "bool"}.get(name, declared)
        if stored != wanted and wanted is not None:
            yield f"tensor {files.names[name]} is {stored}, expected {wanted}"
        if not np.isfinite(value).all():
            yield f"tensor {files.names[name]} holds values that are NaN or infinite"


def _vocabulary(files: _Files) -> Iterator[str]:
    """Range, agreement and order of d2t and t2d."""
    size, vocab_size = files.draft_vocab_size, files.config.layer.vocab_size
    if not files.format.own_lm_head:
        return
    if "draft_vocab_size" not in files.mapping:
        yield "config.json has no draft_vocab_size (null stands for the target's LM head)"
    refused = _reasons(lambda: read_target_ids(files.source, size, vocab_size))
    yield from refused
    if not refused and size != vocab_size:
        ids = ids_from_offsets(files.source.read(D2T), vocab_size)
        falls = np.flatnonzero(np.diff(ids) < 0)
        if falls.size:
            draft = falls[0]
            yield f"d2t is not in order: draft token {draft} is token {ids[draft]}, the next one token {ids[draft + 1]}"


def _layer_ids(files: _Files) -> Iterator[str]:
    """Which layers are tapped, in the conventions of both engines."""
    inputs, outputs = (m.get(LAYER_IDS) for m in (files.mapping, files.mapping.get("eagle_config") or {}))
    if not files.reads_taps or not (inputs or outputs):
        return
    if inputs and outputs:
        yield from _reasons(lambda: taps_from_flat(files.mapping))
    elif outputs and len(files.engines) > 1:
        above = [index + 1 for index in outputs]
        yield f"{LAYER_IDS} in eagle_config alone: SGLang taps the inputs of layers {above}, vLLM of {list(outputs)}"
    elif inputs and "sglang" in files.engines:
        yield f"SGLang: does not see {LAYER_IDS} outside eagle_config and taps the default layers"
    count = len(inputs or outputs or ())
    if count != files.config.num_taps:
        yield f"{LAYER_IDS} names {count} layers, fc.weight reads {files.config.num_taps}"


def _target(files: _Files) -> Iterator[str]:
    """Does it fit the target."""
    target = files.target
    if target is None:
        return
    yield from _reasons(lambda: fit_to_target(files.mapping, files.config, target))
    if target.num_layers in (files.mapping.get(LAYER_IDS) or ()):
        yield f"{LAYER_IDS} names {target.num_layers}, the last hidden state: engines give none after the final norm"
    declared = files.config.layer.max_positions
    if declared != target.max_positions:
        yield f"max_position_embeddings is {declared}, the target's context {target.max_positions}"


def _for_engines(files: _Files) -> Iterator[str]:
    """What one engine needs and the other does not."""
    for engine in files.engines:
        if engine not in files.format.architectures:
            yield f"{ENGINES[engine]}: has no {head_kind(files.config.kind).title} heads"
            continue
        for problem in _FOR_ENGINES[engine](files):
            yield f"{ENGINES[engine]}: {problem}"
        for part, given in missing_parts(files.config, engine).items():
            if given:
                yield f"{ENGINES[engine]}: has no {part}"
        if engine in files.format.fc_bias and "fc.bias" not in files.source.shapes:
            yield f"{ENGINES[engine]}: tensor fc.bias is missing and would be left random; zeros will do"
        named, known = files.mapping.get("architectures") or [], files.format.architectures[engine]
        if not set(named) & set(known):
            yield f"{ENGINES[engine]}: architectures is {named}, expected [{known[0]!r}]"


def _for_sglang(files: _Files) -> Iterator[str]:
    config, shapes = files.config, files.source.shapes
    if files.format.own_lm_head and LM_HEAD in shapes and files.mapping.get("draft_vocab_size") is None:
        yield f"takes the target's LM head where draft_vocab_size is null, not the {LM_HEAD} of the file"
    if files.reads_taps and config.layer.width == config.feature_width:
        yield f"cannot tell taps from states, both are {config.feature_width} wide"


def _for_vllm(files: _Files) -> Iterator[str]:
    if "fc.bias" in files.source.shapes:
        yield "has no bias of fc and refuses the tensor fc.bias"
    all_tokens = files.draft_vocab_size == files.config.layer.vocab_size
    if files.format.own_lm_head and all_tokens and D2T in files.source.shapes:
        yield "wants no d2t where the draft vocabulary is the whole one"


def _for_speculators(files: _Files) -> Iterator[str]:
    yield from _for_vllm(files)
    if files.mapping.get("draft_vocab_size") is None:
        yield "config.json has no draft_vocab_size, which is 32000 then"
    layer = files.format.layer
    named = [files.names[name] for name in files.source.shapes if name.startswith(layer)]
    if any(name.removeprefix("model.").startswith(layer) for name in named):
        yield f"tensor {named[0]}: the layer's tensors are called {NESTED_LAYER}*"


_FOR_ENGINES: Mapping[Engine, Callable[[_Files], Iterator[str]]] = {
    "sglang": _for_sglang,
    "vllm": _for_vllm,
    "speculators": _for_speculators,
}
