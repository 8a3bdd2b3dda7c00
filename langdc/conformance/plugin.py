"""The options of the conformance tests, for pytest; nothing heavy is imported before they are used."""

import json
from importlib import import_module
from typing import Any

import pytest

GROUPS = {
    "compressor": "token_candidate",
    "kvcompressor": "kv_candidate",
    "layercompressor": "layer_candidate",
    "frameselector": "frame_candidate",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --compressor, --kvcompressor, --layercompressor, --frameselector and --settings."""
    group = parser.getgroup("langdc", "conformance tests of video-token compressors")
    for option in GROUPS:
        group.addoption(f"--{option}", action="append", default=[], metavar="PACKAGE:CLASS", help=f"a {option} to test")
    group.addoption("--settings", default="{}", metavar="JSON", help="keyword arguments of the class")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of this package on every class that was named."""
    if not str(getattr(metafunc.module, "__name__", "")).startswith("langdc.conformance."):
        return
    for option, fixture in GROUPS.items():
        if fixture in metafunc.fixturenames:
            named = list(metafunc.config.getoption(option) or [])
            settings = _settings(str(metafunc.config.getoption("settings")))
            metafunc.parametrize(fixture, [_candidate(option, name, settings) for name in named], ids=named)


def _settings(text: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise pytest.UsageError(f"--settings is not JSON ({error}): {text}") from None
    if not isinstance(settings, dict):
        raise pytest.UsageError(f'--settings needs keyword arguments, such as {{"strength": 2}}; {text} was given.')
    return settings


def _candidate(option: str, name: str, settings: dict[str, Any]) -> Any:
    package, colon, attribute = name.partition(":")
    if not colon:
        raise pytest.UsageError(f"--{option} {name}: give PACKAGE:CLASS, such as mypkg.methods:MyCompressor.")
    try:
        kind = getattr(import_module(package), attribute)
    except (ImportError, AttributeError) as error:
        raise pytest.UsageError(f"--{option} {name}: {error}") from None
    from langdc.conformance.candidates import Candidate

    return Candidate(name, kind, settings)
