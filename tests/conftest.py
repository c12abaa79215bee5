"""What many tests need: where the shared pictures lie, and pretrained weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from sam_inspect.errors import WeightsMissing
from sam_inspect.weights import LoadedWeights, load_weights

# No test depends on how busy the machine is.
settings.register_profile("any_speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_speed")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real pictures beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real pictures here: {SHARED / 'data'} is absent")
    return SHARED


@pytest.fixture(scope="session")
def weights() -> Callable[[str], LoadedWeights]:
    """Known weights by name, out of the user's cache; a test that needs absent ones is skipped."""

    def known(name: str) -> LoadedWeights:
        try:
            return load_weights(name)
        except WeightsMissing as error:
            pytest.skip(str(error))

    return known
