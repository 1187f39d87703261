import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the public corpora; tests that want it are skipped where it is not named."""
    folder = os.environ.get("ERCKIT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("ERCKIT_DATA names no folder with the public corpora")
    return Path(folder)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the examples of one property may share."""
    return tmp_path_factory.mktemp("scratch")
