"""What only an extra of the package brings, and how to say that it is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from niblick.errors import NiblickError

# Extra -> the top-level packages of it that are imported.
EXTRAS: dict[str, tuple[str, ...]] = {
    "lab": ("torch", "matplotlib"),
    "data": ("pyarrow",),
    "hub": ("huggingface_hub",),
    "serve": ("starlette", "uvicorn", "httptools", "prometheus_client"),
    "export": ("python_minifier",),
    "hf": ("tokenizers", "transformers"),
    "onnx": ("onnx",),
    "gguf": ("gguf",),
    "lm-eval": ("lm_eval",),
}


def missing(what: str, package: str, extra: str) -> str:
    """That `what` needs a package of an extra, and the command that installs it."""
    return f"{what} needs {package}, which is not installed; run: pip install 'niblick[{extra}]'"


@contextmanager
def needs(
    what: str, extra: str = "lab", failure: type[NiblickError] = NiblickError
) -> Iterator[None]:
    """Imports of an extra's packages in the block; `failure` tells how to install what lacks."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS[extra]:
            raise
        raise failure(missing(what, package, extra)) from None
