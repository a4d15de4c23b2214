"""Let NeMo-Aligner 0.7.0 be imported beside today's transformers.

Its trainers live in modules of NeMo whose packages import, in their `__init__`, everything NeMo has: much of it does
not import any more, and none of it is used here. `prepare()` installs an import hook that leaves those `__init__`
files out (the modules inside are NeMo's own, unchanged) and stands in for two model classes that the trainers name in
a type annotation only. Call it before the first import of `nemo_aligner`.
"""

import importlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from types import ModuleType
from typing import Any

from tqdm import tqdm

CHECKED_VERSIONS = {"nemo_toolkit": "2.4.1", "nemo-aligner": "0.7.0"}
_SKIPPED_PACKAGES = frozenset(
    (
        "nemo.collections.nlp",
        "nemo.collections.nlp.data",
        "nemo.collections.nlp.data.language_modeling",
        "nemo.collections.nlp.data.language_modeling.megatron",
        "nemo.collections.nlp.modules",
    )
)
_ANNOTATION_ONLY = {
    "nemo_aligner.models.nlp.gpt.megatron_gpt_ppo_actor": "MegatronGPTActorModel",
    "nemo_aligner.models.nlp.gpt.megatron_gpt_reinforce_actor": "MegatronGPTReinforceActorModel",
}


class _EmptyModule(importlib.abc.Loader):
    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ in _ANNOTATION_ONLY:
            name = _ANNOTATION_ONLY[module.__name__]
            setattr(module, name, type(name, (), {"__module__": module.__name__}))


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name in _ANNOTATION_ONLY:
            return importlib.machinery.ModuleSpec(name, _EmptyModule())
        if name not in _SKIPPED_PACKAGES:
            return None
        folders = [os.path.join(parent, name.rpartition(".")[2]) for parent in path or ()]
        spec = importlib.machinery.ModuleSpec(name, _EmptyModule(), is_package=True)
        spec.submodule_search_locations = [folder for folder in folders if os.path.isdir(folder)]
        return spec


def prepare() -> None:
    """Install the import hook, once.

    Raises:
        ImportError: the installed versions are not those that this was checked with.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    for package, wanted in CHECKED_VERSIONS.items():
        if version(package) != wanted:
            raise ImportError(f"{package} {version(package)} is installed; qedmeg needs {wanted}: run make install")
    sys.meta_path.insert(0, _Finder())


def supervised_trainer() -> Any:
    """NeMo-Aligner's `SupervisedTrainer`."""
    return _algorithm("supervised").SupervisedTrainer


def ppo() -> Any:
    """NeMo-Aligner's module of PPO: `PPOTrainer`, and the functions that it computes advantages with."""
    return _algorithm("ppo")


def reinforce() -> Any:
    """NeMo-Aligner's module of REINFORCE, with a `chunk` that minds the rank.

    In 0.7.0 `ReinforceRolloutBatch.chunk` gives every data-parallel rank the whole batch, and each trains on all of it.
    """
    module = _algorithm("reinforce")
    module.ReinforceRolloutBatch.chunk = _rows_of_rank
    return module


def _rows_of_rank(batch: Any, rank: int, split_size: int, seed: int) -> Any:
    """The rows that this rank has put in, in their order: a prompt's rollouts stay together, as its baseline needs."""
    return type(batch)({name: tensor.tensor_split(split_size)[rank].clone() for name, tensor in batch.items()})


def _algorithm(name: str) -> Any:
    """A module of `nemo_aligner.algorithms`, imported without the noise of what NeMo tries on the way."""
    prepare()
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # NeMo looks for image processors, which nothing here needs
    try:
        module: Any = importlib.import_module(f"nemo_aligner.algorithms.{name}")
    finally:
        logging.set_verbosity(verbosity)
    module.tqdm = partial(tqdm, disable=True)  # its bars: one for each rank, over each other
    return module
