"""Configuration files: YAML checked by pydantic; every mistake in one line with the nearest valid name."""

import difflib
import hashlib
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from features.artifacts import write_whole
from features.errors import ConfigError

T = TypeVar("T", bound=BaseModel)

RUN_CONFIG = "config.yaml"
"""The file of a run's folder that holds its configuration."""
_SEAL = "# SHA-256 of the lines above: "


def builtin_names() -> list[str]:
    """The configurations that ship with the package."""
    folder = resources.files("pipeline") / "configs"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read(model: type[T], name: str, overrides: Sequence[str] = ()) -> T:
    """Reads a configuration.

    Args:
      model: what the file must hold.
      name: a built-in configuration's name, or the path of a YAML file.
      overrides: `key=value` texts; the key is dotted (`source.path`), the value is YAML.

    Raises:
      ConfigError: no such file, not YAML, a key that is there twice, an unknown key (the nearest one is named), a value
        that does not fit, or an override that would add a generator (`apply_overrides`).
    """
    value, where = read_settings(name)
    defaults = model.model_fields["generators"].default if "generators" in model.model_fields else ()
    apply_overrides(value, overrides, tuple(defaults))
    return validate(model, value, where)


def read_settings(name: str, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
    """The settings of a configuration, not checked against any model, and the file; arguments as of `read`.

    Raises:
      ConfigError: no such file, not YAML, a key that is there twice, or an override that is not `key=value` or does not
        fit into the settings.
    """
    text, where = _text_of(name)
    try:
        value = _load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise ConfigError(
            f"{where}: expected a mapping of settings, found {'nothing' if value is None else type(value).__name__}"
        )
    apply_overrides(value, overrides)
    return value, where


def validate(model: type[T], value: Mapping[str, Any], where: str) -> T:
    """Checks `value` against `model`, with the first mistake as one line."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(model, error)}") from error


def write_run(folder: Path, config: BaseModel) -> None:
    """Writes a run's configuration, complete, with a last line that tells whether it is as it was written."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_whole(folder / RUN_CONFIG, f"{text}{_SEAL}{_sha256(text)}\n")


def read_run(model: type[T], folder: Path) -> T:
    """Reads the configuration of a run's folder.

    Raises:
      ConfigError: there is none, or it is not what `write_run` wrote.
    """
    path = folder / RUN_CONFIG
    if not path.is_file():
        raise ConfigError(f"{folder}: expected a run's folder with {RUN_CONFIG}, found none; run `upnext run` first")
    text, seal, told = _text_of(str(path))[0].rpartition(_SEAL)
    if not seal or told.strip() != _sha256(text):
        raise ConfigError(
            f"{path}: expected the configuration as the run wrote it, found it changed or cut off; give the run's "
            "command again, which writes it anew"
        )
    return validate(model, yaml.safe_load(text), str(path))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _text_of(name: str) -> tuple[str, str]:
    path = Path(name)
    if name in builtin_names() and not path.is_file():
        return (resources.files("pipeline") / "configs" / f"{name}.yaml").read_text(encoding="utf-8"), f"{name}.yaml"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: expected a YAML file in UTF-8, cannot read it ({error})") from error
    near = difflib.get_close_matches(name, builtin_names(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"configuration {name!r}: no such file, and not one of {', '.join(builtin_names())}{hint}")


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, of which YAML's own loader drops the first."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            line, name = key.start_mark.line + 1, (key.tag, str(key.value))
            if name in seen and not key.tag.endswith(":merge"):
                raise yaml.YAMLError(
                    f"key {key.value!r} in line {seen[name]} and again in line {line}, one of which would be dropped; "
                    "remove it"
                )
            seen[name] = line
        return node


def _load(text: str) -> Any:
    return yaml.load(text, _Loader)


def apply_overrides(value: dict[str, Any], overrides: Sequence[str], default_generators: tuple[str, ...] = ()) -> None:
    """Puts `key=value` texts (dotted key, YAML value) into nested settings.

    Args:
      value: the settings, which are changed.
      overrides: in order; later ones win.
      default_generators: the names of the candidate generators where the settings give none.

    Raises:
      ConfigError: an override is not `key=value` or does not fit into the settings, or it sets a part of a generator
        that is not there and of which no override gives the model (or all of it).
    """
    for override in overrides:
        there = value.get("generators", default_generators)
        if there and isinstance(there, Mapping | tuple):
            _refuse_misnamed_generator(override, overrides, list(there))
        apply_override(value, override)


def _refuse_misnamed_generator(override: str, overrides: Sequence[str], there: Sequence[str]) -> None:
    group, _, rest = override.partition("=")[0].partition(".")
    name, _, setting = rest.partition(".")
    whole = {f"generators.{name}", f"generators.{name}.model", f"generators.{name}.model.kind"}
    if group != "generators" or not setting or name in there:
        return
    if not whole & {other.partition("=")[0] for other in overrides}:
        near = difflib.get_close_matches(name, there, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(there)};"
        raise ConfigError(
            f"--set {override!r}: no generator {name!r}; {hint} to add one give its model, as --set "
            f"'generators.{name}.model={{kind: two_tower}}'"
        )


def apply_override(value: dict[str, Any], override: str) -> None:
    """Puts `key=value` (dotted key, YAML value) into nested settings."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: expected key=value, such as source.path=logs")
    *parents, last = key.split(".")
    node = value
    for depth, parent in enumerate(parents):
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(
                f"--set {override!r}: {'.'.join(parents[: depth + 1])} is a value, not a group of settings"
            )
    try:
        node[last] = _load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML: {' '.join(str(error).split())}") from error


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    first = error.errors()[0]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        *parents, key = first["loc"]
        shown, known = _place(model, parents)
        near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"{'.'.join([*shown, str(key)])}: no such setting; {hint}{more}"
    location = ".".join(_place(model, first["loc"])[0])
    if first["type"] == "union_tag_invalid":
        kind, there = first["ctx"]["tag"], first["ctx"]["expected_tags"].replace("'", "")
        return f"{location}.kind: no kind {kind!r}; there are {there}{more}"
    place = f"{location}: " if location else ""
    if first["type"] == "value_error" and isinstance(first["input"], Mapping):  # a rule between several settings
        return f"{place}{first['ctx']['error']}{more}"
    return f"{place}{first['msg']}, found {first['input']!r:.80}{more}"


def _place(model: type[BaseModel], location: Sequence[int | str]) -> tuple[list[str], list[str]]:
    """A place in the tree as it is written in a file, without the tags of unions, and the settings that exist there."""
    current: list[type[BaseModel]] = [model]
    shown = []
    for part in location:
        inside = [
            found
            for owner in current
            if isinstance(part, str) and part in owner.model_fields
            for found in _models_in(owner.model_fields[part].annotation)
        ]
        tagged = [owner for owner in current if getattr(owner.model_fields.get("kind"), "default", None) == part]
        if inside or not tagged:
            shown.append(str(part))
        current = inside or tagged or current
    return shown, sorted({name for owner in current for name in owner.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for argument in typing.get_args(annotation) for found in _models_in(argument)]
