"""Plain decoding by `transformers` and PyTorch from the same weights: the external baseline of `measure`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from eagle_jax.checkpoint.names import lookup, target_tensors
from eagle_jax.checkpoint.pretrained import PIP_INSTALL, LoadedModel
from eagle_jax.checkpoint.save_target import config_to_hf
from eagle_jax.kernels.packed import unpack
from eagle_jax.models.config import ModelConfig, RopeScaling


def torch_writer(model: LoadedModel, **options: Any) -> Callable[[list[int], int], list[int]]:
    """A function (prompt, number of new tokens) -> greedy tokens, by `generate` of `LlamaForCausalLM` in float32.

    Raises:
      ValueError: PyTorch is not installed, or the model is not a plain Llama.
    """
    try:
        import torch
    except ImportError as error:
        remedy = f"{PIP_INSTALL} torch==2.13.0"
        raise ValueError(f"the comparison needs PyTorch, which is not installed: {remedy}") from error
    from transformers import LlamaConfig, LlamaForCausalLM

    reference: Any = LlamaForCausalLM(LlamaConfig(**llama_settings(model.name, model.config)))
    params = unpack(model.params)
    tensors = {
        name: torch.from_numpy(spec.to_stored(np.array(lookup(params, spec.path), np.float32)))
        for name, spec in target_tensors(model.config).items()
    }
    if model.config.tie_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    reference.load_state_dict(tensors)
    reference.eval()

    def write(prompt: list[int], num_new: int) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            text = reference.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=num_new,
                min_new_tokens=num_new,
                **options,
            )
        return [int(token) for token in text[0, len(prompt) :]]

    return write


def llama_settings(name: str, config: ModelConfig) -> dict[str, Any]:
    """The arguments of `LlamaConfig`; no token ends a text.

    Raises:
      ValueError: a variation that Llama does not have.
    """
    endless = dataclasses.replace(config, bos_id=None, eos_ids=())
    settings = config_to_hf(endless, "float32")
    if settings["model_type"] != "llama":
        raise ValueError(f"the comparison with PyTorch knows plain Llama models, {name} is another one")
    if config.rope_scaling != RopeScaling():
        raise ValueError(f"the comparison with PyTorch knows no RoPE scaling, {name} has {config.rope_scaling.kind}")
    del settings["torch_dtype"]  # of files; a model that is made here is float32
    return {**settings, "pad_token_id": None}
