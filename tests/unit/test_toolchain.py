"""Which build of a library is taken, where it comes from, and what happens without one."""

from __future__ import annotations

import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import pytest

from niblick import toolchain
from niblick.cli import _format_warning
from niblick.engine import choice
from niblick.errors import NiblickError, NiblickWarning
from niblick.plan import make_plan
from niblick.recipe import load_recipe
from niblick.toolchain import (
    AVX2,
    AVX512,
    BASELINE,
    CODECS,
    ENGINE,
    FEATURES,
    KERNELS,
    VARIANTS,
    CLibrary,
    choose_variant,
    forced_variant,
    processor_features,
)

FLAGS_OF = {  # what /proc/cpuinfo calls the features, where there is one
    "v3": {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"},
    "v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "vnni": {"avx512_vnni"},
    "bf16": {"avx512_bf16"},
}


@pytest.fixture
def carrying(tmp_path, monkeypatch):
    """A package that carries nothing yet, an empty cache and no compiler."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    monkeypatch.setattr(
        CLibrary,
        "prebuilt",
        lambda self, variant, suffix=".so": tmp_path / f"{self.name}-{variant.name}{suffix}",
    )
    processor_features.cache_clear()
    yield
    processor_features.cache_clear()


@pytest.mark.parametrize(
    ("features", "engine", "kernels"),
    [
        ((), "baseline", "baseline"),
        (("v3",), "avx2", "avx2"),  # Haswell, Zen 2
        (("v3", "v4"), "avx2", "avx2"),  # Skylake-X
        (("v3", "v4", "vnni"), "avx512", "avx512"),  # Ice Lake
        (("v3", "v4", "vnni", "bf16"), "avx512", "avx512-bf16"),  # Sapphire Rapids, Zen 4
        (("bf16", "vnni"), "baseline", "baseline"),  # the system saves no wide registers
    ],
)
def test_the_best_build_that_the_processor_can_run_is_taken(features, engine, kernels):
    assert choose_variant(ENGINE.variants, features).name == engine
    assert choose_variant(KERNELS.variants, features).name == kernels
    assert choose_variant(CODECS.variants, features) is BASELINE


def test_features_are_those_that_the_system_lists(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    info = Path("/proc/cpuinfo")
    if not (library := toolchain.PROCESSOR.obtain()) or not info.exists():
        pytest.skip("needs a C compiler and /proc")
    bits = library.niblick_features()
    found = {name for bit, name in enumerate(FEATURES) if bits >> bit & 1}
    lines = info.read_text().splitlines()
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    assert found == {name for name, needed in FLAGS_OF.items() if needed <= flags}


def test_a_carried_build_is_preferred_to_compiling_and_chosen_by_the_processor(
    carrying, monkeypatch
):
    monkeypatch.setattr(toolchain, "processor_features", lambda: frozenset({"v3"}))
    assert not ENGINE.build() and ENGINE.load() is None
    for variant in (BASELINE, AVX512):
        ENGINE.prebuilt(variant).write_bytes(b"")
    assert not ENGINE.build()
    ENGINE.prebuilt(AVX2).write_bytes(b"")
    assert ENGINE.build() and ENGINE._carried() == ENGINE.prebuilt(AVX2)
    assert ENGINE.load() is None  # it is no library; callers use their plain forms


def test_a_carried_build_of_other_sources_is_not_taken(monkeypatch):
    before = ENGINE.prebuilt(BASELINE)
    sources = ENGINE._sources()
    changed = {**sources, "api.c": sources["api.c"] + b"\n"}
    monkeypatch.setattr(CLibrary, "_sources", lambda self: changed)
    assert ENGINE.prebuilt(BASELINE) != before


def test_a_forced_variant_is_the_best_that_the_library_has_up_to_it():
    for name in ("baseline", "avx2", "avx512"):
        with forced_variant(name):
            assert ENGINE._chosen().name == KERNELS._chosen().name == name
    with forced_variant("avx512-bf16"):
        assert ENGINE._chosen() is AVX512 and CODECS._chosen() is BASELINE
    with pytest.raises(NiblickError, match=r"'sse'.*baseline, avx2"), forced_variant("sse"):
        pass


def test_zig_is_the_compiler_where_the_system_has_none(carrying, monkeypatch):
    assert ENGINE.compiler() is None
    monkeypatch.setattr(toolchain, "find_spec", lambda name: name == "ziglang")
    compiler = ENGINE.compiler()
    assert compiler == (sys.executable, "-m", "ziglang", "cc")
    assert AVX2.options_for(compiler) == ("-mcpu=x86_64_v3",)
    assert AVX2.options_for(("gcc",)) == ("-march=x86-64-v3",)


def test_the_numpy_engine_says_once_that_it_stands_in(carrying, monkeypatch):
    monkeypatch.setattr(choice, "unsupported", lambda plan: None)
    plan = make_plan(load_recipe("token-shift-small").model)
    monkeypatch.setattr("niblick.engine.plain.NumpyEngine", lambda *_, **__: "numpy")
    choice.say_once.cache_clear()
    with pytest.warns(NiblickWarning, match=r"numpy engine.*C compiler") as told:
        assert choice.open_engine(plan, {}) == "numpy"
    assert len(told) == 1
    line = _format_warning(told[0].message, told[0].category, "file.py", 1)
    assert line.startswith("niblick: the numpy engine") and line.count("\n") == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choice.open_engine(plan, {}) == choice.open_engine(plan, {}, kind="numpy")


def test_every_variant_needs_what_those_below_it_need():
    for lower, higher in pairwise(VARIANTS):
        assert lower.needs < higher.needs <= set(FEATURES)


def test_setup_names_the_targets_it_knows():
    root = Path(__file__).parents[2]
    script = (  # as a front end of builds runs it: what is required is not fetched
        "import runpy, setuptools, sys; setuptools.Distribution.fetch_build_eggs = lambda *_: [];"
        "sys.argv = ['setup.py', '-q', 'bdist_wheel', '--target=amiga'];"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode and "'amiga'" in result.stderr and "macos-arm64" in result.stderr
