"""What of a folder is taken into the sandbox, and what stays out."""

from __future__ import annotations

from pathlib import Path

import pytest

from niblick.audit.orders import declared_packages, documented_environment, job_for
from niblick.audit.submission import read_submission


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder like a home directory with a script in it."""
    for name, text in {
        "train_gpt.py": "import helper\n",
        "helper.py": "",
        "kernels.cu": "",
        "notes.txt": "private",
        ".env": "KEY=1",
        "tax.json": "{}",
        ".ssh/id_rsa": "secret",
        "photos/a.py": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_a_lone_script_takes_only_the_code_beside_it_along(home: Path) -> None:
    job = job_for(read_submission(home / "train_gpt.py"), "smoke")
    assert set(job.files) == {"train_gpt.py", "helper.py", "kernels.cu"}


def test_a_record_folder_goes_along_without_hidden_files_links_and_models(home: Path) -> None:
    (home / "submission.json").write_text("{}")
    (home / "final_model.int6.ptz").write_bytes(b"x")
    (home / "link.txt").symlink_to(home / ".env")
    files = set(job_for(read_submission(home), "smoke").files)
    assert {"train_gpt.py", "notes.txt", "photos/a.py"} <= files
    assert not files & {".env", ".ssh/id_rsa", "link.txt", "final_model.int6.ptz"}


def test_modules_at_the_root_of_the_repository_that_holds_the_records_are_found(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "records" / "track" / "mine"
    folder.mkdir(parents=True)
    (folder / "train_gpt.py").write_text("import core.metric\nimport unused_else\n")
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "metric.py").write_text("")
    (tmp_path / "private.py").write_text("")
    files = set(job_for(read_submission(folder), "smoke").files)
    assert files == {"train_gpt.py", "_repository/core/metric.py"}


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
