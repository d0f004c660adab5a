"""The smoke test: what imports, what does not, and whose fault that is. Programs here are our own
and tiny.
"""

from __future__ import annotations

import base64
import json
import lzma
import textwrap
from importlib.util import find_spec
from typing import Any

import pytest

from niblick.audit.sandbox import Bundle, Limits, detect
from niblick.audit.smoke import BROKEN, Program, smoke_test
from niblick.audit.types import Finding, Severity, Smoke
from niblick.audit.verdict import decide

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
    parts = (torch.ones(1, 4, 2, 8, device="cuda") for _ in range(3))
    out = flash.flash_attn_func(*parts, causal=True)
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


def run(
    program: str | bytes,
    *,
    helper: str | None = None,
    environment: dict[str, str] | None = None,
    declared: tuple[str, ...] = (),
) -> tuple[Smoke, tuple[Finding, ...]]:
    """Smoke-tests `train_gpt.py`, with `my_own_helper.py` beside it where that is given."""
    text = textwrap.dedent(program).encode() if isinstance(program, str) else program
    bundle = Bundle({"train_gpt.py": text})
    if helper is not None:
        bundle.add("my_own_helper.py", helper.encode())
    about = Program(
        script="train_gpt.py",
        text=text.decode("utf-8-sig"),
        code_bytes=len(text),
        environment=environment or {},
        declared=declared,
    )
    return smoke_test(about, bundle, trust=True)


def smoke(program: str | bytes, **options: Any) -> Smoke:
    """What `run` saw."""
    return run(program, **options)[0]


def test_a_gpu_script_imports_on_a_cpu_and_is_measured() -> None:
    seen = smoke(MODEL, environment={"VOCAB_SIZE": "128"})
    assert seen.error is None
    assert seen.status == "SMOKE_TEST_PASS"
    assert (seen.dim, seen.layers, seen.vocab) == (32, 3, 128)
    assert seen.parameters == 128 * 32 + 3 * 32 * 32
    asked = {"flash_attn_interface", "triton", "kernels"}
    absent = {name for name in asked if find_spec(name) is None}  # the tests of others bring triton
    assert asked & set((seen.missing or "").split(", ")) == absent


def test_a_sibling_module_is_found_when_it_ships_and_missed_as_the_authors_fault_when_not() -> None:
    program = "import my_own_helper\nx = my_own_helper.y\n"
    assert smoke(program, helper="y = 1").status == "SMOKE_TEST_PASS"
    seen = smoke(program)
    assert (seen.status, seen.own_fault, seen.missing) == ("IMPORT_FAIL", True, "my_own_helper")


def test_a_package_from_requirements_that_is_absent_gets_a_stand_in() -> None:
    program = (
        "import obscure_package_q7\nfrom obscure_package_q7.sub import thing\nthing.call(1)[2]\n"
    )
    seen = smoke(program, declared=("torch", "obscure-package-q7"))
    assert (seen.status, seen.missing) == ("SMOKE_TEST_PASS", "obscure_package_q7")


def test_a_failure_inside_a_stand_in_is_the_machines() -> None:
    seen = smoke("import mamba_ssm\nraise TypeError(f'bad {mamba_ssm.Mamba!r}')\n")
    assert (seen.status, seen.own_fault, seen.missing) == ("ENVIRONMENT", False, "mamba_ssm")
    assert "mamba-ssm" in (seen.cure or "")


def test_a_package_of_another_version_is_the_machines() -> None:
    seen = smoke("import numpy\nnumpy.no_such_function(1)\n")
    assert (seen.status, seen.own_fault, seen.missing) == ("ENVIRONMENT", False, "numpy")
    seen = smoke("from numpy import no_such_name\n")
    assert (seen.status, seen.own_fault) == ("ENVIRONMENT", False)


def test_a_variable_parsed_wrongly_is_the_authors_fault() -> None:
    seen = smoke("import os\nFLAG = bool(int(os.environ.get('FLAG', 'False')))\n")
    assert (seen.status, seen.own_fault) == ("IMPORT_FAIL", True)
    assert "train_gpt.py:2" in (seen.error or "")


def test_a_variable_that_the_launcher_sets_is_set() -> None:
    program = """
        import os
        where = os.environ["DATA_ROOT"]
        if not os.environ.get("TOKENIZER_PATH"):
            raise RuntimeError("TOKENIZER_PATH env var required; use run.sh")
    """
    assert smoke(program).status == "SMOKE_TEST_PASS"


def test_a_missing_data_set_is_the_machines_and_a_missing_part_the_authors() -> None:
    seen = smoke("open('./data/datasets/fineweb10B/fineweb_val_000000.bin', 'rb')\n")
    assert (seen.status, seen.own_fault) == ("ENVIRONMENT", False)
    seen = smoke("open('table_of_mine.json')\n")
    assert (seen.status, seen.missing) == ("IMPORT_FAIL", "table_of_mine.json")


def test_leaving_at_import_is_the_authors_fault() -> None:
    assert smoke("import os\nos._exit(0)\n").own_fault
    assert smoke("raise SystemExit('needs arguments')\n").own_fault


@pytest.mark.parametrize(
    ("program", "limit"),
    [
        ("while True: pass\n", "cpu"),
        ("import time\ntime.sleep(1000)\n", "idle"),
        ("held = []\nwhile True: held.append(b'x' * 10_000_000)\n", "memory"),
        ("raise MemoryError('ten exabytes')\n", "memory"),
        ("import os\nwhile True: os.write(1, bytes(1_000_000))\n", "output"),
        ("import os\nos.kill(os.getpid(), 9)\n", "killed"),
    ],
)
def test_a_script_that_breaks_a_limit_at_import_is_at_fault_and_held(
    program: str, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Limits(
        cpu_seconds=2, idle_seconds=1.0, memory_bytes=200_000_000, output_bytes=3_000_000
    )
    monkeypatch.setattr("niblick.audit.smoke._LIMITS", small)
    seen, findings = run(program)
    assert (seen.status, seen.own_fault) == ("BROKE_LIMIT", True)
    assert BROKEN[limit] in (seen.error or "")
    assert decide(findings, seen, understood=True)[0] == "hold_unclear"


@pytest.mark.parametrize("said", ["{}", '{"number": 1, "ok": true}', '{"number": 1', "[]"])
def test_a_script_that_writes_to_the_result_channel_is_flagged(said: str) -> None:
    seen, findings = run(f"import os\nos.write(198, {said.encode()!r} + b'\\n')\n")
    assert (seen.status, seen.own_fault) == ("TAMPERED", True)
    assert decide(findings, seen, understood=True)[0] == "flag_other"


def test_a_forged_pass_gains_nothing() -> None:
    forged = """
        import os
        os.write(198, b'{"number": 1, "ok": true, "measured": {"parameters": 7}}\\n')
        os._exit(0)
    """
    seen, findings = run(forged)
    suspicion = Finding(
        rule="r",
        severity=Severity.WARNING,
        verdict="flag_slot",
        span=None,
        evidence="e",
        pointer="p",
        cure="c",
    )
    with_run = decide([suspicion, *findings], seen, understood=True)
    assert with_run == decide([suspicion], None, understood=True)
    assert decide(findings, seen, understood=False)[0] == "hold_unclear"


@pytest.mark.parametrize(
    "report",
    [
        {"failure": [1]},
        {"failure": {"bases": [[]], "line": "x", "missing": {}, "path": 3}},
        {"failure": {"bases": "OSError", "message": None}, "measured": [], "stood_in": 4},
        {"ok": "yes", "seconds": -1, "measured": {"dim": "9", "layers": 10**400}},
    ],
)
def test_a_report_of_any_shape_is_described(report: dict[str, Any]) -> None:
    said = json.dumps({**report, "number": 1})
    seen, _ = run(f"import os\nos.write(198, {said!r}.encode() + b'\\n')\nos._exit(0)\n")
    assert seen.status in {"IMPORT_FAIL", "ENVIRONMENT"} and seen.parameters is None


def test_a_model_that_breaks_a_limit_when_it_is_probed_has_imported_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("niblick.audit.smoke._LIMITS", Limits(idle_seconds=2.0))
    trap = """
        import time, torch
        class Net(torch.nn.Module):
            def forward(self, tokens):
                time.sleep(1000)
        vocab_size = 64
        def main():
            return Net()
    """
    seen, findings = run(trap)
    assert seen.status == "SMOKE_TEST_PASS"
    assert [(f.rule, f.verdict) for f in findings] == [("dynamic-unfinished", None)]


def test_a_script_that_hands_over_to_another_program_is_not_at_fault() -> None:
    seen = smoke("import os, sys\nos.execv(sys.executable, [sys.executable, 'other.py'])\n")
    assert (seen.status, seen.own_fault) == ("ENVIRONMENT", False)
    assert "other.py" in (seen.error or "")


def test_a_packed_script_runs_its_packing() -> None:
    inner = "class Hyperparameters:\n    vocab_size = 77\n    model_dim = 8\n"
    packed = base64.b85encode(lzma.compress(inner.encode())).decode()
    seen = smoke(f"import lzma, base64\nexec(lzma.decompress(base64.b85decode('{packed}')))\n")
    assert (seen.status, seen.vocab, seen.dim) == ("SMOKE_TEST_PASS", 77, 8)


def test_nested_quotes_of_newer_pythons_and_byte_order_marks_are_no_fault() -> None:
    program = (
        "d = {'a': 1}\nassert f'{d['a']}' == '1'\nexec(\"e = f'{d['a']}'\")\nassert e == '1'\n"
    )
    assert smoke(b"\xef\xbb\xbf" + program.encode()).status == "SMOKE_TEST_PASS"


def test_the_result_says_what_ran_it() -> None:
    seen = smoke("import sys\nassert __name__ != '__main__' and __name__ in sys.modules\n")
    assert seen.status == "SMOKE_TEST_PASS"
    assert seen.python.count(".") == 2
    assert seen.isolation == detect().kind
