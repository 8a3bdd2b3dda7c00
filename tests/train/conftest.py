"""What tests of several processes share: data, and what one process makes of it, uninterrupted."""

from pathlib import Path

import pytest

from langdc.config import RunConfig

pytest.register_assert_rewrite("tests.train.ranks", "tests.train.kill")

from tests.train import ranks  # noqa: E402 - after what makes its failures say more


@pytest.fixture(scope="session")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records with captions of 0 to 100 tokens, and text: see `ranks.make_data`."""
    return ranks.make_data(tmp_path_factory.mktemp("varied"))


@pytest.fixture(scope="session")
def trained(varied: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[RunConfig]]:
    """Every recipe, after one process without DeepSpeed has run it to its end."""
    folder = tmp_path_factory.mktemp("one")
    configs = {name: ranks.recipe(name, varied, folder / name) for name in ranks.RECIPES}
    ranks.run(1, *(config for chain in configs.values() for config in chain))
    return configs
