"""What many tests need: where the shared pictures lie."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

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
