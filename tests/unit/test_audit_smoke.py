"""The smoke test: what imports, what does not, and whose fault that is. Programs here are our own
and tiny.
"""

from __future__ import annotations

import base64
import lzma
import textwrap
from pathlib import Path

from niblick.audit.smoke import smoke_test
from niblick.audit.submission import read_submission
from niblick.audit.types import Smoke

MODEL = """
    import os
    import flash_attn_interface
    import torch
    import torch.distributed as dist
    import triton
    import triton.language as tl
    from kernels import get_kernel
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel as DDP

    dist.init_process_group("nccl")
    assert dist.get_world_size() == int(os.environ["WORLD_SIZE"]) == 1
    assert torch.cuda.get_device_capability() >= (9, 0)
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    table = torch.arange(4, device=device).cuda()
    flash = get_kernel("somebody/flash-attn3")
    out = flash.flash_attn_func(*(torch.ones(1, 4, 2, 8, device="cuda") for _ in range(3)), causal=True)
    assert out.shape == (1, 4, 2, 8)

    @triton.autotune(configs=[triton.Config({"BLOCK": 64}, num_warps=4)], key=["n"])
    @triton.jit
    def kernel(x, n, BLOCK: tl.constexpr):
        pass

    class Hyperparameters:
        vocab_size = int(os.environ.get("VOCAB_SIZE", 96))
        model_dim = 32
        num_layers = 3

    class Layer(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.proj = nn.Linear(dim, dim, bias=False)

    class Net(nn.Module):
        def __init__(self, vocab_size, dim, depth):
            super().__init__()
            self.embed = nn.Embedding(vocab_size, dim)
            self.blocks = nn.ModuleList(Layer(dim) for _ in range(depth))

    @torch.compile(fullgraph=True)
    def step(x):
        return x + 1

    def main():
        args = Hyperparameters()
        depth = args.num_layers
        model = Net(args.vocab_size, dim=args.model_dim, depth=depth).to(device).bfloat16()
        return DDP(model)

    if __name__ == "__main__":
        raise SystemExit("ran as main")
"""


def smoke(folder: Path, program: str, **files: str) -> Smoke:
    """Writes a folder with `train_gpt.py` and `files` (dots for underscores in names) and
    smoke-tests it.
    """
    (folder / "train_gpt.py").write_text(textwrap.dedent(program))
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(textwrap.dedent(text))
    return smoke_test(read_submission(folder), trust=True)


def test_a_gpu_script_imports_on_a_cpu_and_is_measured(tmp_path: Path) -> None:
    seen = smoke(
        tmp_path,
        MODEL,
        README__md="```\nVOCAB_SIZE=128 torchrun --nproc_per_node=8 train_gpt.py\n```\n",
    )
    assert seen.error is None
    assert seen.status == "SMOKE_TEST_PASS"
    assert (seen.dim, seen.layers, seen.vocab) == (32, 3, 128)
    assert seen.parameters == 128 * 32 + 3 * 32 * 32
    assert set((seen.missing or "").split(", ")) >= {"flash_attn_interface", "triton", "kernels"}
    assert seen.code_bytes == (tmp_path / "train_gpt.py").stat().st_size


def test_a_sibling_module_is_found_when_it_ships_and_missed_as_the_authors_fault_when_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    program = "import my_own_helper\nx = my_own_helper.y\n"
    assert smoke(tmp_path / "with", program, my_own_helper__py="y = 1").status == "SMOKE_TEST_PASS"
    seen = smoke(tmp_path / "without", program)
    assert (seen.status, seen.own_fault, seen.missing) == ("IMPORT_FAIL", True, "my_own_helper")


def test_a_package_from_requirements_that_is_absent_gets_a_stand_in(tmp_path: Path) -> None:
    program = (
        "import obscure_package_q7\nfrom obscure_package_q7.sub import thing\nthing.call(1)[2]\n"
    )
    seen = smoke(tmp_path, program, requirements__txt="torch\nobscure-package-q7>=1\n")
    assert (seen.status, seen.missing) == ("SMOKE_TEST_PASS", "obscure_package_q7")


def test_a_failure_inside_a_stand_in_is_the_machines(tmp_path: Path) -> None:
    seen = smoke(tmp_path, "import mamba_ssm\nraise TypeError(f'bad {mamba_ssm.Mamba!r}')\n")
    assert (seen.status, seen.own_fault, seen.missing) == ("ENVIRONMENT", False, "mamba_ssm")
    assert "mamba-ssm" in (seen.cure or "")


def test_a_package_of_another_version_is_the_machines(tmp_path: Path) -> None:
    seen = smoke(tmp_path, "import numpy\nnumpy.no_such_function(1)\n")
    assert (seen.status, seen.own_fault, seen.missing) == ("ENVIRONMENT", False, "numpy")
    seen = smoke(tmp_path, "from numpy import no_such_name\n")
    assert (seen.status, seen.own_fault) == ("ENVIRONMENT", False)


def test_a_variable_parsed_wrongly_is_the_authors_fault(tmp_path: Path) -> None:
    seen = smoke(tmp_path, "import os\nFLAG = bool(int(os.environ.get('FLAG', 'False')))\n")
    assert (seen.status, seen.own_fault) == ("IMPORT_FAIL", True)
    assert "train_gpt.py:2" in (seen.error or "")


def test_a_variable_that_the_launcher_sets_is_set(tmp_path: Path) -> None:
    program = """
        import os
        where = os.environ["DATA_ROOT"]
        if not os.environ.get("TOKENIZER_PATH"):
            raise RuntimeError("TOKENIZER_PATH env var required; use run.sh")
    """
    assert smoke(tmp_path, program).status == "SMOKE_TEST_PASS"


def test_a_missing_data_set_is_the_machines_and_a_missing_part_the_authors(tmp_path: Path) -> None:
    seen = smoke(tmp_path, "open('./data/datasets/fineweb10B/fineweb_val_000000.bin', 'rb')\n")
    assert (seen.status, seen.own_fault) == ("ENVIRONMENT", False)
    seen = smoke(tmp_path, "open('table_of_mine.json')\n")
    assert (seen.status, seen.missing) == ("IMPORT_FAIL", "table_of_mine.json")


def test_leaving_or_looping_at_import_is_the_authors_fault(tmp_path: Path) -> None:
    assert smoke(tmp_path, "import os\nos._exit(0)\n").own_fault
    assert smoke(tmp_path, "raise SystemExit('needs arguments')\n").own_fault


def test_a_script_that_hands_over_to_another_program_is_not_at_fault(tmp_path: Path) -> None:
    seen = smoke(
        tmp_path, "import os, sys\nos.execv(sys.executable, [sys.executable, 'other.py'])\n"
    )
    assert (seen.status, seen.own_fault) == ("ENVIRONMENT", False)
    assert "other.py" in (seen.error or "")


def test_a_packed_script_runs_its_packing(tmp_path: Path) -> None:
    inner = "class Hyperparameters:\n    vocab_size = 77\n    model_dim = 8\n"
    packed = base64.b85encode(lzma.compress(inner.encode())).decode()
    seen = smoke(
        tmp_path, f"import lzma, base64\nexec(lzma.decompress(base64.b85decode('{packed}')))\n"
    )
    assert (seen.status, seen.vocab, seen.dim) == ("SMOKE_TEST_PASS", 77, 8)


def test_nested_quotes_of_newer_pythons_and_byte_order_marks_are_no_fault(tmp_path: Path) -> None:
    program = (
        "d = {'a': 1}\nassert f'{d['a']}' == '1'\nexec(\"e = f'{d['a']}'\")\nassert e == '1'\n"
    )
    (tmp_path / "train_gpt.py").write_bytes(b"\xef\xbb\xbf" + program.encode())
    assert smoke_test(read_submission(tmp_path), trust=True).status == "SMOKE_TEST_PASS"


def test_the_result_says_what_ran_it(tmp_path: Path) -> None:
    seen = smoke(
        tmp_path, "import sys\nassert __name__ != '__main__' and __name__ in sys.modules\n"
    )
    assert seen.status == "SMOKE_TEST_PASS"
    assert seen.python.count(".") == 2
    assert seen.isolation in {"namespaces", "bubblewrap", "bare"}
