"""What several property tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from niblick.model.kernels import Kernels, load_kernels, operators


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of this session's, for compiled libraries."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def kernels(kernel_cache: Path) -> Kernels:
    """The kernels, which the operators call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(kernel_cache))
        kernels = load_kernels()
    if kernels is None:
        pytest.skip("no C compiler")
    operators.use(kernels)
    return kernels
