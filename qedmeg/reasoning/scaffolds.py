"""All scaffolds by name, and how one is made from its settings."""

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from qedmeg.errors import UserError, near_miss
from qedmeg.reasoning.call import Model
from qedmeg.reasoning.deepseek_math import DeepSeekMathSettings, deepseek_math
from qedmeg.reasoning.nomos import NomosSettings, nomos
from qedmeg.reasoning.planning_agent import PLANNER, PlanningAgentSettings, planning_agent
from qedmeg.reasoning.prompts import prompts_hash
from qedmeg.reasoning.reasoning_cache import SUMMARISER, ReasoningCacheSettings, reasoning_cache
from qedmeg.reasoning.rsa import RsaSettings, rsa
from qedmeg.reasoning.selection import SELECTOR
from qedmeg.reasoning.selfcheck import SelfcheckSettings, selfcheck
from qedmeg.reasoning.session import PROVER, Scaffold, ScaffoldModel, Session
from qedmeg.reasoning.single import SingleSettings, single
from qedmeg.reasoning.static_agent import StaticAgentSettings, static_agent
from qedmeg.reasoning.steps import IMPROVER, VERIFIER
from qedmeg.settings import Settings, check_settings

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Entry(Generic[S]):
    """A scaffold of the table."""

    run: Callable[[Session, S], Awaitable[str]]
    settings: type[S]
    roles: tuple[str, ...]
    """Whom it asks; the prover stands in for roles that no model is given for."""


SCAFFOLDS: dict[str, Entry[Any]] = {
    "single": Entry(single, SingleSettings, (PROVER,)),
    "reasoning_cache": Entry(reasoning_cache, ReasoningCacheSettings, (PROVER, SUMMARISER)),
    "deepseek_math": Entry(deepseek_math, DeepSeekMathSettings, (PROVER, VERIFIER, IMPROVER)),
    "rsa": Entry(rsa, RsaSettings, (PROVER, SELECTOR)),
    "nomos": Entry(nomos, NomosSettings, (PROVER, VERIFIER, SELECTOR)),
    "selfcheck": Entry(selfcheck, SelfcheckSettings, (PROVER, VERIFIER, IMPROVER)),
    "static_agent": Entry(static_agent, StaticAgentSettings, (PROVER, VERIFIER, IMPROVER, SELECTOR)),
    "planning_agent": Entry(planning_agent, PlanningAgentSettings, (PLANNER, PROVER, VERIFIER, IMPROVER, SELECTOR)),
}


def make_scaffold(name: str, settings: Mapping[str, Any], origin: str = "scaffold") -> Scaffold:
    """The scaffold of this name; what its settings leave out has its published value.

    Raises:
        UserError: there is no such scaffold or setting, or a value that it may not have; named as part of `origin`.
    """
    entry = find_scaffold(name, origin)
    checked = check_settings(entry.settings, settings, origin)
    return lambda session: entry.run(session, checked)


def find_scaffold(name: str, origin: str = "scaffold") -> Entry[Any]:
    """The scaffold of this name. Raises `UserError` where there is none."""
    if name not in SCAFFOLDS:
        raise UserError(f"{origin}: no scaffold '{name}'{near_miss(name, SCAFFOLDS)}; there are {', '.join(SCAFFOLDS)}")
    return SCAFFOLDS[name]


def make_scaffold_model(
    name: str, settings: Mapping[str, Any], models: Mapping[str, Model], origin: str = "scaffold"
) -> ScaffoldModel:
    """A scaffold over `models`, by role, that stands where a model is asked. Its name changes with its settings, with
    the wording of the prompts and with the models. Raises `UserError` as `make_scaffold`."""
    scaffold = make_scaffold(name, settings, origin)
    resolved = check_settings(find_scaffold(name).settings, settings, origin).model_dump(mode="json")
    used = {role: models.get(role, models[PROVER]).name for role in find_scaffold(name).roles}
    whole = json.dumps([name, resolved, used, prompts_hash()], sort_keys=True)
    version = hashlib.sha256(whole.encode()).hexdigest()[:12]
    return ScaffoldModel(f"{name} over {models[PROVER].name}/{version}", scaffold, models)
