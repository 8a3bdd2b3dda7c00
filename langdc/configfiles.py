"""Config files as trees of settings: found by name, laid over each other, with dotted overrides."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from langdc import jsonl

CHAIN = "chain.yaml"
"""The file of a recipe's folder that lists its runs."""
_INSTALLED = Path(__file__).with_name("configs")
SHIPPED = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "configs"
"""The configs that ship: inside the installed package, or in the repository."""


HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SOURCES = (
    "Give a folder in Hugging Face layout, an id such as Qwen/Qwen2.5-VL-7B-Instruct, 'sample:NAME', 'tiny:NAME', or "
    "{config: {...}, init: random} for random weights."
)


def check_source(source: str) -> None:
    """ValueError for a source of weights that is no folder and cannot be a Hugging Face id."""
    if Path(source).is_file():
        raise ValueError(f"{source} is a file. Give the folder that it lies in.")
    if not (Path(source).is_dir() or HUB_ID.fullmatch(source)):
        raise ValueError(f"There is no checkpoint directory {source!r}. {SOURCES}")


def find_config(name: str | Path, beside: Path | None = None) -> Path:
    """The file of that name: beside another file, at that path, or among the configs that ship.

    ".yaml" may be left out. Of a folder, its chain.yaml. ValueError lists where it was looked for.
    """
    for place in filter(None, (beside, Path(), SHIPPED)):
        for path in (place / name, place / f"{name}.yaml", place / name / CHAIN):
            if path.is_file():
                return path
    near = difflib.get_close_matches(str(name), _shipped_configs(), n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else f" {SHIPPED} has those that ship, such as sample/langdc/stage1."
    raise ValueError(f"There is no file {name}.{hint}")


class _Loader(yaml.SafeLoader):
    """Reads YAML as safe_load does, numbers as YAML 1.2 does; ValueError for a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        names = [self.construct_object(k) if k.tag in self.yaml_constructors else k.value for k in keys]  # 0x1 is 1
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"the key {twice[0]!r} is given twice, the first time in line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        return super().construct_object(node, deep=True)  # which refuses a value that holds itself


class Dumper(yaml.SafeDumper):
    """Writes YAML as safe_dump does, with text in quotes that `parse_yaml` would read as a number."""


# YAML 1.1 reads 010 as 8, 1:30 as 90 and 1e-3 as text
_Loader.yaml_implicit_resolvers = {
    first: [each for each in resolvers if not each[0].endswith((":int", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_NUMBERS = {
    "int": r"[-+]?(0|[1-9][0-9_]*|0b[01_]+|0o[0-7]+|0x[0-9a-fA-F_]+)",
    "float": r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
for _name, _pattern in _NUMBERS.items():
    for _each in (_Loader, Dumper):
        _each.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^({_pattern})$"), list("-+.0123456789"))


def parse_yaml(text: str | bytes, where: str) -> Any:
    """The values in a YAML text; ValueError in one line, which begins with `where`, if it is malformed."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        own = isinstance(error, yaml.YAMLError | ValueError)  # not those of a tag such as !!bool on another value
        reason = " ".join(str(error).split()) if own else "a value does not fit its tag, or is nested too deeply"
        raise ValueError(f"{where} is not valid YAML: {reason}") from None


def _shipped_configs() -> list[str]:
    """Names of the config files that ship, and of folders with a chain of runs."""
    files = [path.relative_to(SHIPPED) for path in sorted(SHIPPED.rglob("*.yaml"))]
    return [str(path.parent if path.name == CHAIN else path.with_suffix("")) for path in files]


def read_tree(path: str | Path, overrides: Iterable[str] = ()) -> dict:
    """The settings of a file, as `load` checks them."""
    tree = _read(find_config(path))
    for override in overrides:
        _set(tree, override)
    return _with_files(tree, None)


def _with_files(tree: dict, beside: Path | None) -> dict:
    """The settings with the path of the DeepSpeed file that they name."""
    given = tree.get("deepspeed")
    if not isinstance(given, str):
        return tree
    if not isinstance(jsonl.read_json(path := find_config(given, beside)), dict):
        raise ValueError(f"deepspeed: {path} holds no JSON mapping of DeepSpeed's settings.")
    return {**tree, "deepspeed": str(path)}


def _read(path: Path, readers: tuple[Path, ...] = ()) -> dict:
    if path.resolve() in readers:
        raise ValueError(f"{path} extends itself, by way of {readers[-1]}.")
    tree = parse_yaml(path.read_bytes(), str(path)) or {}
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds a {type(tree).__name__}; a config file is a mapping of keys to values.")
    tree = _with_files(tree, path.parent)
    if "extends" not in tree:
        return tree
    if not isinstance(base := tree.pop("extends"), str):
        raise ValueError(f"{path}: extends: {base!r} is not the name of one config file.")
    below = _read(find_config(base, path.parent), (*readers, path.resolve()))
    return _lay_over(below, tree)


def _lay_over(below: dict, above: dict) -> dict:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        # another member of a zoo takes other settings, so nothing of the old one may stay
        other = both and "name" in value and value["name"] != below[key].get("name")
        merged[key] = _lay_over(below[key], value) if both and not other else value
    return merged


def _set(tree: dict, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ValueError(f"Override {override!r} is not of the form dotted.key=value.")
    *parents, last = key.split(".")
    node: Any = tree
    for number, parent in enumerate(parents, 1):
        path = ".".join(parents[:number])
        step = _index(node, parent, path)
        if isinstance(node, dict) and node.get(step) is None:
            node[step] = {}
        if isinstance(node, dict) and not isinstance(node[step], dict | list):
            raise ValueError(f"Override path {path!r} goes through the value {node[step]!r}, which has no keys.")
        node = node[step]
    node[_index(node, last, key)] = parse_yaml(value, f"Override of {key!r}: the value")


def _index(node: dict | list, key: str, path: str) -> str | int:
    """A key of a mapping, or the number of a list item, which is named by number or by its `name`."""
    if isinstance(node, dict):
        return key
    names = [item.get("name") for item in node if isinstance(item, dict)]
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(node):
        return int(key)
    raise ValueError(
        f"Override path {path!r}: the list has no item {key!r}; items 0 to {len(node) - 1}, names {names}."
    )
