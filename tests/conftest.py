"""`pytest --variant NAME` runs tests on that build of the libraries; `make test-variants`."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from niblick.toolchain import PROCESSOR, VARIANTS, forced_variant, processor_features


def pytest_addoption(parser: pytest.Parser) -> None:
    names = [variant.name for variant in VARIANTS]
    parser.addoption("--variant", choices=names, help="force this build of the native libraries")


def pytest_configure(config: pytest.Config) -> None:
    """Before tests are imported, as some of them load a library there."""
    name = config.getoption("--variant")
    if name is None:
        return
    PROCESSOR.build()
    needs = next(variant.needs for variant in VARIANTS if variant.name == name)
    if lacking := sorted(needs - processor_features()):
        pytest.exit(f"{name} is not run: this processor lacks {', '.join(lacking)}", returncode=0)
    stack = ExitStack()
    stack.enter_context(forced_variant(name))
    config.add_cleanup(stack.close)


def pytest_report_header(config: pytest.Config) -> str | None:
    name = config.getoption("--variant")
    return name and f"native libraries: {name}"
