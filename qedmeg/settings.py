"""Settings: typed, frozen, documented where they are declared, read from YAML and checked before anything is begun.

A settings class is a `Settings` with a docstring under each field; a section is a field whose type is another one.
`load_config` reads the file, lays `a.b=value` overrides from the command line over it, and answers every mistake in
one `UserError`, a line each. `describe` prints all of it for --help, `save_config` writes what a run resolved to.

Numbers and truth values are read as in YAML 1.2: `3e-5` is a number, `no` and `12:30` are text, as people mean them
(PyYAML's own 1.1 reads them the other way round). `010`, on which the versions differ, is text, and a key given twice
is an error.
"""

import json
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from qedmeg.errors import UserError, near_miss

COMMAND_LINE = "command line"
_SHOWN_VALUE_CHARS = 80


class Settings(BaseModel):
    """Base of every settings class: immutable, no unknown keys, no nan or inf, the field docstrings kept."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


S = TypeVar("S", bound=Settings)


def load_config(cls: type[S], path: str | Path, overrides: Sequence[str] = ()) -> S:
    """The settings `cls` from the YAML file `path` with dotted overrides (`a.b=value`, the value in YAML) over it.

    Types are strict: text is not a number, 1.0 is not an integer. Raises UserError naming file (or 'command line'),
    dotted field, value and what is allowed, a line for each problem.
    """
    tree = _plain(_parse_yaml(_read(path), str(path)), str(path))
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected settings ('key: value' lines), found {_shown(tree)}")
    given = [_apply_override(tree, override) for override in overrides]
    return check_settings(cls, tree, str(path), given)


def check_settings(cls: type[S], tree: Mapping[str, Any], origin: str, overridden: Sequence[str] = ()) -> S:
    """The settings `cls` from what YAML or JSON holds; `overridden` names what came from the command line.

    Raises UserError as `load_config`, which names `origin` in place of the file.
    """
    try:
        # By way of JSON, whose strict mode still takes text for a path and a list for a tuple, as YAML gives them.
        return cls.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise UserError("\n".join(_explain(cls, problem, origin, overridden) for problem in problems)) from None


def save_config(config: Settings, path: str | Path) -> None:
    """Write the resolved settings as YAML, which `load_config` reads back to an equal object. Atomic."""
    text = yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    partial = Path(f"{path}.tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def describe(cls: type[Settings], prefix: str = "") -> str:
    """Every setting of `cls` with its type, default and docstring, for --help."""
    lines = []
    for name, field in cls.model_fields.items():
        section = _section_type(field.annotation)
        if section is not None:
            lines.append(describe(section, f"{prefix}{name}."))
            continue
        default = "required" if field.is_required() else f"default {_shown(field.get_default())}"
        lines.append(f"{prefix}{name} ({_type_name(field.annotation)}, {default})")
        lines += [f"    {line.strip()}" for line in (field.description or "").splitlines()]
    return "\n".join(lines)


# --- reading YAML ---------------------------------------------------------------------------------------------------

_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_CORE_SCHEMA = [  # https://yaml.org/spec/1.2.2/#103-core-schema with _ between digits; the first that matches counts
    ("null", re.compile(r"(?:~|null|Null|NULL|)"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)"), list("tTfF")),
    ("int", re.compile(r"[-+]?(?:0|[1-9][0-9_]*)"), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("merge", re.compile(r"<<"), ["<"]),
]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012  (PyYAML's own way to declare a schema)


class _Dumper(yaml.SafeDumper):
    """PyYAML's own, so that any reader gets the same: quotes text that YAML 1.1 would take for something else..."""


for _tag, _pattern, _first in _CORE_SCHEMA:
    _whole = re.compile(rf"^(?:{_pattern.pattern})$")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _whole, _first)
    if _tag == "float":  # ... and the text '3e-5', which only 1.2 takes for a number
        _Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _whole, _first)


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such settings file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a settings file: {error}") from None


def _parse_yaml(text: str, origin: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_duplicates(node, origin, set())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{origin}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()


def _refuse_duplicates(node: yaml.Node, origin: str, seen_nodes: set[int]) -> None:
    if id(node) in seen_nodes:  # an alias: looked at already, and possibly inside itself
        return
    seen_nodes.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(item, origin, seen_nodes)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise UserError(f"{origin}:{line}: '{name}' is given twice, first on line {lines[name]}; keep one")
            lines[name] = line
            _refuse_duplicates(value, origin, seen_nodes)


def parse_value(text: str, origin: str) -> Any:
    """A value in YAML, as an override has it. Raises UserError naming `origin`."""
    return _plain(_parse_yaml(text, origin), origin)


def _plain(tree: Any, origin: str) -> Any:
    """The tree as JSON has it: no aliases that share an object, keys that are text, no dates."""
    try:
        return json.loads(json.dumps(tree, default=str))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{origin}: not usable as settings: {error}") from None


def _apply_override(tree: dict[str, Any], override: str) -> str:
    """Set `a.b=value` in the tree; gives back `a.b`."""
    key, equals, text = override.partition("=")
    names = key.split(".")
    if not equals or not all(re.fullmatch(r"\w+", name) for name in names):
        raise UserError(f"{COMMAND_LINE}: '{override}': expected key=value, such as data.seed=1")
    value = parse_value(text, f"{COMMAND_LINE}: {key}")
    section = tree
    for depth, name in enumerate(names[:-1], start=1):
        if section.get(name) is None:
            section[name] = {}
        section = section[name]
        if not isinstance(section, dict):
            raise UserError(f"{COMMAND_LINE}: {key}: '{'.'.join(names[:depth])}' is not a section but a value")
    section[names[-1]] = value
    return key


# --- saying what is wrong -------------------------------------------------------------------------------------------


def _explain(cls: type[Settings], problem: ErrorDetails, path: str, overridden: Sequence[str]) -> str:
    loc = problem["loc"]
    dotted = ".".join(str(part) for part in loc)
    origin = path
    if any(dotted == key or dotted.startswith(f"{key}.") for key in overridden):
        origin = COMMAND_LINE
    elif any(key.startswith(f"{dotted}." if dotted else "") for key in overridden):
        origin = f"{path} with the {COMMAND_LINE}"  # settings of both that do not go together
    where = f"{origin}: {dotted}" if dotted else origin
    kind, message = problem["type"], problem["msg"]
    if kind == "extra_forbidden":
        return f"{where}: unknown setting{_nearest(cls, loc)}"
    if kind == "missing":
        return f"{where}: missing and has no default: {_field_doc(cls, loc)}"
    if kind == "value_error":  # raised by a validator of a section, which names the values itself
        return f"{where}: {message.removeprefix('Value error, ')}"
    allowed = message.replace("Input should be an object", "should be a section of settings")
    return f"{where}: {_shown(problem['input'])}: {allowed.replace('Input should be', 'should be')}"


def _nearest(cls: type[Settings], loc: tuple[int | str, ...]) -> str:
    """The known setting nearest to an unknown one: among its neighbours, else one of that name in any section."""
    name = str(loc[-1])
    section = _section_at(cls, loc[:-1])
    elsewhere = [dotted for dotted in _dotted_names(cls) if dotted.rpartition(".")[2] == name]
    if elsewhere:
        return f"; did you mean '{elsewhere[0]}'?"
    return near_miss(name, section.model_fields if section else ())


def _dotted_names(cls: type[Settings], prefix: str = "") -> Iterator[str]:
    for name, field in cls.model_fields.items():
        yield prefix + name
        if section := _section_type(field.annotation):
            yield from _dotted_names(section, f"{prefix}{name}.")


def _field_doc(cls: type[Settings], loc: tuple[int | str, ...]) -> str:
    section = _section_at(cls, loc[:-1])
    field = section.model_fields.get(str(loc[-1])) if section else None
    return " ".join((field.description or "").split()) if field else ""


def _section_at(cls: type[Settings], loc: tuple[int | str, ...]) -> type[Settings] | None:
    section: type[Settings] | None = cls
    for part in loc:
        if isinstance(part, str):  # a number is an index into a list of sections
            field = section.model_fields.get(part) if section else None
            section = _section_type(field.annotation) if field else None
    return section


def _section_type(annotation: Any) -> type[Settings] | None:
    """The settings class in a field's annotation, `X` as well as `X | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    return next(filter(None, map(_section_type, typing.get_args(annotation))), None)


def _type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " | ".join(map(repr, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_type_name, arguments))
    if annotation is type(None):
        return "None"
    return str(annotation) if origin else getattr(annotation, "__name__", str(annotation))


def _shown(value: Any) -> str:
    text = str(value) if isinstance(value, Path) else repr(value)
    return text if len(text) <= _SHOWN_VALUE_CHARS else text[:_SHOWN_VALUE_CHARS] + "..."
