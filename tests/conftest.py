"""What several test rooms share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every run, so that no change is blamed for chance; HYPOTHESIS_PROFILE=search looks further.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("search")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets, which are not part of the project: tests that need it skip where it is absent."""
    path = Path(os.environ.get("FEEDFWD_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real data not found at {path}; set FEEDFWD_DATA to the folder that holds it")
    return path
