"""`niblick-lm-eval`: the lm_eval command, which then knows `--model niblick`."""

from __future__ import annotations

import sys

from niblick.extras import missing


def main() -> None:
    """Register the model and hand over to lm_eval; exit code 2 where that is not installed."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ModuleNotFoundError:
        sys.exit(_missing())
    import niblick.exchange.harness  # noqa: F401  # registers itself

    cli_evaluate()


def _missing() -> int:
    print(f"niblick: {missing('niblick-lm-eval', 'lm_eval', 'lm-eval')}", file=sys.stderr)
    return 2
