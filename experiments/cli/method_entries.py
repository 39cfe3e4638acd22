"""The `methods` of an evaluation's config: one mapping for each, checked, then built for a target.

    {"label": "eagle3, own noise", "method": "eagle3", "nodes": 60, "depth": 7, "top_k": 10, "share_noise": False}

`label` and `method` are needed. Then whatever `MethodSettings` holds but the dtype, sizes that the method declares, how
drafts are checked (`rule`, `share_noise`), whether drafting is given up where it does not pay (`give_up`), the parts of
EAGLE-2 that an ablation leaves out (`use_value`, `reranks`), whether its tree draws children (`draws`), and
`temperatures`, where a method shall not run at all of the config's; one that runs at none of them is left out.
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from eagle_jax.checkpoint.pretrained import LoadedModel
from eagle_jax.decode import Rule
from eagle_jax.drafters import Drafter
from eagle_jax.evaluation.checks import check_type
from eagle_jax.generator import Generator
from eagle_jax.give_up import GivingUp
from eagle_jax.provenance import file_digest
from eagle_jax.types import Params, Target
from experiments.cli import draft_weights, methods
from experiments.cli.method_settings import MethodSettings, tree_sizes

_LOG = logging.getLogger(__name__)


class MethodEntry(NamedTuple):
    """One method of a config."""

    label: str
    method: str
    settings: MethodSettings
    rule: Rule = "match"
    share_noise: bool = True
    give_up: bool = False  # then rounds, and with them tau, depend on the clock; tokens do not
    use_value: bool = True
    reranks: bool = True
    draws: bool = False
    temperatures: tuple[float, ...] | None = None  # None: all of the config's

    def runs_at(self, temperature: float) -> bool:
        """Whether the method takes part at this temperature."""
        return self.temperatures is None or temperature in self.temperatures

    def at(self, temperatures: Sequence[float]) -> "MethodEntry":
        """The same without temperatures that are not among these."""
        if self.temperatures is None:
            return self
        return self._replace(temperatures=tuple(filter(self.runs_at, temperatures)))

    def files(self, target: str) -> dict[str, str]:
        """Hashes of the files of its head or draft model, by their names."""
        paths = []
        if self.method in methods.HEAD_METHODS:
            kind = methods.HEAD_METHODS[self.method].kind
            paths += draft_weights.head_files(self.settings.head, kind, target)
        if methods.METHODS[self.method].takes_draft:
            paths += draft_weights.draft_files(self.settings.draft, target)
        return {path.name: file_digest(path) for path in paths}

    @property
    def tree_is_chosen(self) -> bool:
        """Whether the sizes of its tree follow from costs measured on this machine."""
        as_published = self.use_value and self.reranks and not self.draws
        return as_published and self.method in methods.MEASURED and self.settings.triple == (None, None, None)


_OWN = tuple(field for field in MethodEntry._fields if field != "settings")
_SETTINGS = tuple(field for field in MethodSettings._fields if field not in ("dtype", "sizes", "batch"))
_TYPES = {**MethodSettings.__annotations__, **MethodEntry.__annotations__}


def read_entries(listed: Sequence[Mapping[str, Any]], dtype: str, temperatures: Sequence[float]) -> list[MethodEntry]:
    """Check the entries as far as that goes without loading anything.

    Raises:
      ValueError: no entry, or none that runs at one of the temperatures; a field unknown, missing or of another type, a
        label given twice, or settings that the method does not take.
    """
    if not listed:
        raise ValueError("the config's methods are empty: name at least one")
    entries = [_read(f"methods[{number}]", one, dtype) for number, one in enumerate(listed)]
    labels = [entry.label for entry in entries]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"two methods are labelled {label!r}")
    running = [entry for entry in entries if any(map(entry.runs_at, temperatures))]
    for entry in entries:
        if entry not in running:
            _LOG.warning("%s, of T = %s, runs at none of %s", entry.label, entry.temperatures, tuple(temperatures))
    if not running:
        raise ValueError(f"no method runs at the config's temperatures {tuple(temperatures)}")
    return [entry.at(temperatures) for entry in running]


def _read(where: str, given: Mapping[str, Any], dtype: str) -> MethodEntry:
    for field in ("label", "method"):
        if not isinstance(given.get(field), str) or not given[field]:
            raise ValueError(f"{where} needs a {field}, got {given.get(field)!r}")
    known = (*_OWN, *_SETTINGS, *methods.OWN_SIZES)
    unknown = [field for field in given if field not in known]
    if unknown:
        raise ValueError(f"{where} has the unknown field {unknown[0]!r}; known: {', '.join(known)}")
    for field, value in given.items():
        check_type(f"{where}: {field}", value, _TYPES.get(field, int | bool))
    settings = MethodSettings(
        dtype=dtype,
        sizes=tuple((field, given[field]) for field in methods.OWN_SIZES if field in given),
        **{field: given[field] for field in _SETTINGS if field in given},
    )
    methods.check_settings(given["method"], settings)
    entry = MethodEntry(settings=settings, **{field: given[field] for field in _OWN if field in given})
    if entry.temperatures is not None:
        entry = entry._replace(temperatures=tuple(entry.temperatures))
    if entry.temperatures == ():
        raise ValueError(f"{where}: temperatures must be one at least, got ()")
    if entry.give_up and entry.rule != "match":
        raise ValueError(f"{where}: give_up needs the rule match, got {entry.rule!r}")
    with_parts = [name for name, method in methods.HEAD_METHODS.items() if method.parts]
    if not (entry.use_value and entry.reranks) and entry.method not in with_parts:
        raise ValueError(f"{where}: only {' and '.join(with_parts)} have parts to leave out, got {entry.method!r}")
    if entry.draws and entry.method not in with_parts:
        raise ValueError(f"{where}: only {' and '.join(with_parts)} take draws, got {entry.method!r}")
    return entry


def with_trees(
    entries: Sequence[MethodEntry], model: LoadedModel, temperatures: Sequence[float], batch: int
) -> list[MethodEntry]:
    """The entries where dynamic trees without sizes have got the best for this machine (`methods.with_tree`)."""
    results = []
    for entry in entries:
        if entry.tree_is_chosen:
            method, settings = methods.with_tree(
                entry.method,
                entry.settings,
                model,
                batch=batch,
                temperatures=entry.temperatures or temperatures,
            )
            entry = entry._replace(method=method, settings=settings)
        results.append(entry)
    return results


def build(entries: Sequence[MethodEntry], model: LoadedModel, target: Target) -> dict[str, Generator]:
    """The methods by label; those that differ in verification alone share drafter and weights.

    Raises:
      ValueError: sizes that a method cannot have, a draft model or head that does not fit the target, or a rule under
        which the text would not follow the target's distribution.
    """
    make = functools.cache(lambda *key: _make(model, *key))
    generators = {}
    for entry in entries:
        drafter, params = make(entry.method, entry.settings, entry.use_value, entry.reranks, entry.draws)
        generators[entry.label] = (GivingUp if entry.give_up else Generator)(
            target, model.params, drafter, params, rule=entry.rule, share_noise=entry.share_noise
        )
    return generators


def _make(
    model: LoadedModel, method: str, settings: MethodSettings, use_value: bool, reranks: bool, draws: bool
) -> tuple[Drafter, Params]:
    if use_value and reranks and not draws:
        return methods.make_method(method, model, settings)
    sizes = tree_sizes(settings, batch=1)
    own = methods.HEAD_METHODS[method]
    head, params = draft_weights.load_head(own.kind, model, settings)
    return own.make(head, *sizes, use_value=use_value, reranks=reranks, draws=draws), params
