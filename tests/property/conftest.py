"""What several property tests share."""

from __future__ import annotations

import pytest

from niblick.model.fused import FusedOps, load_kernels


@pytest.fixture(scope="session")
def ops(tmp_path_factory: pytest.TempPathFactory) -> FusedOps:
    """The fused operations, their kernels compiled into a cache of this session's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        kernels = load_kernels()
    if kernels is None:
        pytest.skip("no C compiler")
    return FusedOps(kernels)
