"""The validator: silent about what we write, and naming everything that is wrong at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eagle_jax.checkpoint.head_formats import Engine
from eagle_jax.checkpoint.heads import save_head
from eagle_jax.checkpoint.validate_head import validate
from eagle_jax.models.config import RopeScaling
from eagle_jax.testing import tiny_transformer
from tests import golden
from tests.checkpoint.heads import CONFIG, DRAFT_VOCAB, edit_config, edit_tensors, random_head, rename

OTHER_TAPS = tiny_transformer(num_layers=7, tap_layers=(1, 4, 5))[0]
LLAMA3 = tiny_transformer(rope_scaling=RopeScaling(kind="llama3", factor=8.0, original_max_positions=64))[0]
IDS = "eagle_aux_hidden_state_layer_ids"
UP = "midlayer.mlp.up_proj.weight"


def saved(folder: Path, kind: str = "eagle3", target: Any = CONFIG, engine: Engine = "sglang", **flags: Any) -> Path:
    config, params = random_head(kind, target, **flags)
    save_head(folder / "head", config, params, target, engine=engine)
    return folder / "head"


@pytest.mark.parametrize("target", [CONFIG, OTHER_TAPS, LLAMA3], ids=["plain", "taps", "llama3"])
@pytest.mark.parametrize("flags", [{}, {"fc_norm": True, "norm_output": True}, {"width": 16}], ids=str)
def test_eagle3_heads_suit_both_engines(target: Any, flags: dict[str, Any], tmp_path: Path) -> None:
    folder = saved(tmp_path, target=target, **flags)
    assert validate(folder) == []
    assert validate(folder, target=target) == []


def test_no_engine_gives_the_last_hidden_state(tmp_path: Path) -> None:
    folder = saved(tmp_path, parts=(2, 3))
    assert validate(folder) == []  # how many layers the target has is not in the files
    last = f"{IDS} names 7, the last hidden state: engines give none after the final norm"
    assert validate(folder, target=CONFIG) == [last]


def test_eagle_heads_suit_one_engine(tmp_path: Path) -> None:
    for engine in ("sglang", "vllm"):
        saved(tmp_path / engine, "eagle", engine=engine)
        assert validate(tmp_path / engine / "head", engines=[engine], target=CONFIG) == []
    assert validate(tmp_path / "sglang/head") == [
        "vLLM: has no bias of fc and refuses the tensor fc.bias",
        "vLLM: architectures is ['LlamaForCausalLMEagle'], expected ['EagleLlamaForCausalLM']",
    ]
    assert validate(tmp_path / "vllm/head") == [
        "SGLang: tensor fc.bias is missing and would be left random; zeros will do",
        "SGLang: architectures is ['EagleLlamaForCausalLM'], expected ['LlamaForCausalLMEagle']",
    ]


def test_frozen_heads_and_heads_of_the_whole_vocabulary(tmp_path: Path) -> None:
    config, params = random_head("eagle3", CONFIG)
    borrowed = params.replace(lm_head=None, target_ids=None)
    save_head(tmp_path / "frozen", config, borrowed, CONFIG, frozen_lm_head=True)
    whole = params.replace(lm_head=np.ones((64, 32), np.float32), target_ids=None)
    save_head(tmp_path / "whole", config, whole, CONFIG)
    assert validate(tmp_path / "frozen") == validate(tmp_path / "whole") == []
    edit_tensors(tmp_path / "whole", lambda tensors: tensors.update(d2t=np.zeros(64, np.int64)))
    assert validate(tmp_path / "whole") == ["vLLM: wants no d2t where the draft vocabulary is the whole one"]


def put(**tensors: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, lambda stored: stored.update(tensors))


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, lambda stored: stored.pop(name))


def set_keys(*dropped: str, **changed: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, *dropped, **changed)


def swap_offsets(folder: Path) -> None:
    """The first two draft tokens change places."""

    def change(stored: dict[str, np.ndarray]) -> None:
        ids = np.arange(DRAFT_VOCAB) + stored["d2t"]
        ids[:2] = ids[1::-1]
        stored["d2t"] = ids - np.arange(DRAFT_VOCAB)

    edit_tensors(folder, change)


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "no key": (set_keys("max_position_embeddings"), "config.json has no max_position_embeddings"),
    "no draft_vocab_size": (set_keys("draft_vocab_size"), "config.json has no draft_vocab_size (null stands for"),
    "no rope_theta": (set_keys("rope_theta", "rope_parameters"), "config.json has no rope_theta: engines then take"),
    "two thetas": (
        set_keys(rope_scaling={"rope_type": "linear", "factor": 2.0}),
        "says something else than rope_param",
    ),
    "tied": (set_keys(tie_word_embeddings=True), "tie_word_embeddings is true: SGLang then takes the embedding"),
    "model type": (set_keys(model_type="qwen3"), "model_type is 'qwen3': the heads of both engines are llama"),
    "type": (set_keys(torch_dtype="float8"), "torch_dtype is 'float8'; float32, bfloat16, float16 are loaded"),
    "other type": (set_keys(torch_dtype="float16"), f"tensor {UP} is bfloat16, expected float16"),
    "plain name": (set_keys(architectures=["LlamaForCausalLM"]), "SGLang: architectures is ['LlamaForCausalLM'], exp"),
    "no name": (set_keys(architectures=[]), "vLLM: architectures is [], expected ['LlamaForCausalLMEagle3']"),
    "norm": (set_keys(norm_before_fc=True), "tensor input_norm.weight is missing"),
    "norm of vLLM": (set_keys(norm_before_residual=True), "SGLang: has no norm_before_residual"),
    "layers": (
        set_keys(num_hidden_layers=40),
        "num_hidden_layers is 40, as many layers as engines make; the file holds 1",
    ),
    "bias": (set_keys(bias=True), "config.json says bias: true, but the file holds no tensor fc.bias"),
    "stored bias": (put(**{"fc.bias": np.zeros(32, np.float32)}), "vLLM: has no bias of fc and refuses the tensor"),
    "missing": (drop(UP), f"tensor {UP} is missing"),
    "no LM head": (drop("lm_head.weight"), "tensor lm_head.weight is missing"),
    "unknown": (put(extra=np.zeros(3, np.float32)), "tensor extra (3,) has no place in this head"),
    "misshapen": (put(**{UP: np.zeros((32, 64), np.float32)}), f"tensor {UP} has shape (32, 64), expected (64, 32)"),
    "nan": (put(**{UP: np.full((64, 32), np.nan, np.float32)}), f"tensor {UP} holds values that are NaN or infinite"),
    "embedding": (
        put(**{"embed_tokens.weight": np.zeros((9, 32))}),
        "embed_tokens.weight has shape (9, 32), expected (64",
    ),
    "no embedding": (set_keys(target_hidden_size=16), "tensor embed_tokens.weight is missing"),
    "prefix": (
        lambda folder: edit_tensors(folder, rename("model.{}".format)),
        "names of the flat format carry no prefix",
    ),
    "no d2t": (drop("d2t"), "tensor d2t is missing: draft_vocab_size is 24, vocab_size 64"),
    "d2t of i32": (put(d2t=np.zeros(24, np.int32)), "tensor d2t is int32, expected int64"),
    "t2d of u8": (put(t2d=np.zeros(64, np.uint8)), "tensor t2d is uint8, expected bool"),
    "range": (put(d2t=np.full(24, 60)), "d2t sends draft token 4 to token 64 of a vocabulary of 64"),
    "order": (swap_offsets, "d2t is not in order: draft token 0 is token"),
    "t2d": (put(t2d=np.zeros(64, bool)), "in the draft vocabulary of d2t, but not in that of t2d"),
    "null": (set_keys(draft_vocab_size=None), "SGLang: takes the target's LM head where draft_vocab_size is null"),
    "ids for vLLM": (set_keys(**{IDS: [1, 4, 5]}), f"SGLang: does not see {IDS} outside eagle_config"),
    "ids for one": (
        set_keys(eagle_config={IDS: [1, 4, 5]}),
        "SGLang taps the inputs of layers [2, 5, 6], vLLM of [1, 4",
    ),
    "equal ids": (set_keys(**{IDS: [1, 4, 5], "eagle_config": {IDS: [1, 4, 5]}}), "which eagle_config."),
    "number of ids": (set_keys(**{IDS: [1, 4], "eagle_config": {IDS: [0, 3]}}), "names 2 layers, fc.weight reads 3"),
    "files": (lambda folder: (folder / "model.safetensors").unlink(), "has neither model.safetensors"),
    "config": (lambda folder: (folder / "config.json").write_text("{"), "config.json: not JSON"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case: str, tmp_path: Path) -> None:
    spoil, message = WRONG[case]
    folder = saved(tmp_path)
    spoil(folder)
    problems = validate(folder)
    assert any(message in problem for problem in problems), problems
    assert len(set(problems)) == len(problems)
    assert not any("\n" in problem for problem in problems)


def test_all_problems_at_once(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    edit_config(folder, "rms_norm_eps", tie_word_embeddings=True)
    edit_tensors(folder, lambda tensors: [tensors.pop(UP), tensors.pop("norm.weight")])
    problems = validate(folder)
    for part in ("no rms_norm_eps", "tie_word_embeddings", f"{UP} is missing", "norm.weight is missing"):
        assert any(part in problem for problem in problems), problems


def test_target(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    edit_config(folder, max_position_embeddings=64)
    assert validate(folder) == []
    assert validate(folder, target=CONFIG) == ["max_position_embeddings is 64, the target's context 512"]
    other = tiny_transformer(num_layers=7, vocab_size=70, max_positions=64)[0]
    assert validate(folder, target=other) == ["the head is for a vocabulary of 64, the target has 70 tokens"]


def test_width_of_three_targets_confuses_sglang(tmp_path: Path) -> None:
    problem = "SGLang: cannot tell taps from states, both are 96 wide"
    assert validate(saved(tmp_path, width=96)) == [problem]


@pytest.mark.parametrize("name", golden.HEADS)
def test_published_layout(name: str) -> None:
    """The official files lack what only engines ask for, and nothing else is said of them."""
    problems = validate(golden.GOLDEN / name, target=golden.target(golden.seed_of(name))[0])
    expected = [
        "architectures is ['LlamaForCausalLM']",
        "no rope_theta",
        "fc.bias",
        "no d2t",
        "no biases on q, k and v",
    ]
    assert [problem for problem in problems if not any(part in problem for part in expected)] == []
    assert any(expected[0] in problem for problem in problems)
