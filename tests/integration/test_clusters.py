"""Preparing on the executors of Dask and Ray gives the bytes of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

FACTORIES = {
    "distributed": """
from distributed import Client, LocalCluster


def make():
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    return Client(cluster).get_executor()
""",
    "ray": """
from concurrent.futures import Executor

import ray


class RayExecutor(Executor):
    def submit(self, function, /, *args, **kwargs):
        return ray.remote(function).remote(*args, **kwargs).future()


def make():
    ray.init(num_cpus=2, include_dashboard=False)
    return RayExecutor()
""",
}


def prepare(folder: Path, out: str, *options: str) -> dict[str, bytes]:
    """Prepare the corpus in `folder`, where the module of the factory is; the files written."""
    command = [sys.executable, "-m", "niblick", "data", "prepare", "corpus", "--stream"]
    command += ["--tokenizer", "bytes", "--out", out, *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in (folder / out).iterdir()}


@pytest.mark.parametrize("package", FACTORIES)
def test_a_cluster_prepares_the_bytes_of_one_process(package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    (tmp_path / "cluster.py").write_text(FACTORIES[package])
    (tmp_path / "corpus").mkdir()
    for file in range(6):
        lines = (json.dumps({"text": f"text {n} of file {file}"}) for n in range(200))
        (tmp_path / "corpus" / f"{file}.jsonl").write_text("\n".join(lines))
    by_cluster = prepare(tmp_path, "a", "--executor", "cluster:make")
    assert by_cluster == prepare(tmp_path, "b", "--workers", "1")
