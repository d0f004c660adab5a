"""What running a script needs to know of its folder."""

from __future__ import annotations

from pathlib import Path

from niblick.audit.orders import declared_packages, documented_environment
from niblick.audit.submission import read_submission


def test_documented_variables_go_along_but_not_placeholders(tmp_path: Path) -> None:
    (tmp_path / "train_gpt.py").write_text("x = 1\n")
    command = (
        "```bash\nNUM_LAYERS=9 SEED=$SEED DATA_PATH=<your path> torchrun --nproc_per_node=8"
        " train_gpt.py\n```\n"
    )
    (tmp_path / "README.md").write_text(command)
    environment = documented_environment(read_submission(tmp_path))
    assert environment.get("NUM_LAYERS") == "9"
    assert "SEED" not in environment


def test_requirements_name_their_packages(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text(
        "torch>=2\n# note\nFlash-Attn[x]==2.1 ; python_version>'3'\n\n-r other.txt\n"
    )
    assert declared_packages(tmp_path) == {"torch", "Flash-Attn"}
