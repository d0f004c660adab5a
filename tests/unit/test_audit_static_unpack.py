"""Unpacking scripts without running them."""

from __future__ import annotations

import base64
import bz2
import gzip
import lzma
import marshal
import zlib
from pathlib import Path

import brotli
import pytest

from niblick.audit.submission import read_submission
from niblick.audit.unpack import unpack, unpack_file

PROGRAM = "import math\n\ndef score(x):\n    return math.log(x)\n\nprint(score(2.0))\n"


def _unpacked(text: str) -> str:
    source = unpack(text.encode(), "train.py").source
    assert source.error is None, source.error
    return source.text


def test_a_plain_script_is_left_as_it_is() -> None:
    source = unpack(PROGRAM.encode(), "train.py").source
    assert source.text == PROGRAM
    assert source.layers == ()
    assert source.shipped_bytes == source.unpacked_bytes == len(PROGRAM)


def test_a_byte_order_mark_is_a_layer_and_not_part_of_the_text() -> None:
    source = unpack(b"\xef\xbb\xbf" + PROGRAM.encode(), "train.py").source
    assert source.text == PROGRAM
    assert source.layers == ("bom",)


@pytest.mark.parametrize(
    ("module", "function", "pack"),
    [
        ("zlib", "decompress", zlib.compress),
        ("gzip", "decompress", gzip.compress),
        ("bz2", "decompress", bz2.compress),
        ("lzma", "decompress", lzma.compress),
        ("brotli", "decompress", brotli.compress),
    ],
)
def test_every_compressor_is_undone_and_named(module: str, function: str, pack: object) -> None:
    payload = base64.b85encode(pack(PROGRAM.encode())).decode()  # type: ignore[operator]
    text = f"import {module} as z, base64\nexec(z.{function}(base64.b85decode({payload!r})))\n"
    source = unpack(text.encode(), "train.py").source
    assert source.text == PROGRAM
    assert source.layers == ("base85", module, "exec")


def test_raw_lzma_with_filters_is_undone() -> None:
    filters = [{"id": lzma.FILTER_LZMA2}]
    payload = lzma.compress(PROGRAM.encode(), format=lzma.FORMAT_RAW, filters=filters)
    text = (
        f"import lzma as L\nexec(L.decompress({payload!r}, format=L.FORMAT_RAW, filters=[{{'id':"
        " L.FILTER_LZMA2}]))\n"
    )
    assert _unpacked(text) == PROGRAM


def test_filters_made_of_several_constants_are_undone() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    payload = lzma.compress(PROGRAM.encode(), format=lzma.FORMAT_RAW, filters=filters)
    text = (
        f"import lzma as L\nexec(L.decompress({payload!r}, format=L.FORMAT_RAW, filters=[{{'id':"
        " L.FILTER_LZMA2, 'preset': 9 | L.PRESET_EXTREME}]))\n"
    )
    assert _unpacked(text) == PROGRAM


def test_layers_inside_layers_are_followed_to_the_program() -> None:
    text = PROGRAM
    for _ in range(4):
        payload = base64.b64encode(zlib.compress(text.encode())).decode()
        text = (
            f"import zlib, base64\nexec(zlib.decompress(base64.b64decode({payload!r})).decode())\n"
        )
    assert _unpacked(text) == PROGRAM


def test_payloads_in_variables_helpers_and_pieces_are_found() -> None:
    packed = base64.a85encode(zlib.compress(PROGRAM.encode())).decode()
    half = len(packed) // 2
    text = (
        f"import zlib as q\nfrom base64 import a85decode as d\nparts = [{packed[:half]!r},"
        f" {packed[half:]!r}]\ndef restore(items, sep=''):\n    joined = sep.join(items)\n   "
        " return q.decompress(d(joined))\nif __name__ == '__main__':\n    code ="
        " compile(restore(parts), 'x', 'exec')\n    exec(code, globals())\n"
    )
    assert PROGRAM in _unpacked(text)


def test_several_payloads_keep_their_order() -> None:
    first, second = "a = 1\n", "b = a + 1\n"
    text = (
        "import binascii\n"
        f"exec(binascii.unhexlify({first.encode().hex()!r}))\nexec(bytes.fromhex({second.encode().hex()!r}))\n"
    )
    result = _unpacked(text)
    assert result.index("a = 1") < result.index("b = a + 1")


def test_files_that_a_loader_writes_are_recovered_in_every_language() -> None:
    blob = zlib.compress(b"print('run')\n# cut\nint add(int a, int b) { return a + b; }\n")
    text = (
        "import zlib, os, tempfile\n"
        f"body = zlib.decompress({blob!r}).decode().split('# cut\\n')\n"
        "folder = tempfile.mkdtemp()\n"
        "for name, part in zip(['main.py', 'fast.c'], body):\n"
        "    with open(os.path.join(folder, name), 'w') as f:\n        f.write(part)\n"
        "os.environ.update(STEPS='7')\nexec(open(os.path.join(folder, 'main.py')).read())\n"
    )
    result = unpack(text.encode(), "train.py")
    assert "print('run')" in result.source.text
    assert any(name.endswith("fast.c") for name in result.files)
    assert result.environment == {"STEPS": "7"}


def test_a_loader_may_read_the_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "real.py").write_text(PROGRAM)
    script = tmp_path / "train.py"
    script.write_text("exec(open(__file__.replace('train.py', 'real.py')).read())\n")
    assert unpack_file(script).source.text == PROGRAM


def test_a_decompression_bomb_is_refused_not_expanded() -> None:
    bomb = zlib.compress(bytes(40_000_000), 9)
    source = unpack(f"import zlib\nexec(zlib.decompress({bomb!r}))\n".encode(), "train.py").source
    assert source.tree is None
    assert source.error is not None and "more than" in source.error


@pytest.mark.parametrize(
    "body", ["'a' * 10**12", "bytes(10**12)", "b'x'.join([b'y'] * 10**9)", "1 << 10**12"]
)
def test_loader_values_without_end_are_bounded(body: str) -> None:
    source = unpack(f"x = {body}\nexec(x)\n".encode(), "train.py").source
    assert source.shipped_bytes > 0


def test_a_loader_that_never_ends_is_stopped() -> None:
    source = unpack(b"import zlib\nx = 1\nwhile True:\n    x = x + 1\nexec(x)\n", "train.py").source
    assert source.tree is not None or source.error is not None
    looped = unpack(b"import zlib\nwhile True:\n    exec('y = 1')\n", "train.py").source
    assert looped.error is not None


def test_bytecode_is_left_as_it_is() -> None:
    payload = marshal.dumps(compile(PROGRAM, "x", "exec"))
    source = unpack(
        f"import marshal\nexec(marshal.loads({payload!r}))\n".encode(), "train.py"
    ).source
    assert source.error is None and "marshal.loads" in source.text


def test_a_damaged_payload_is_an_error_that_names_the_decoder() -> None:
    payload = zlib.compress(PROGRAM.encode())[:-9]
    source = unpack(
        f"import zlib\nexec(zlib.decompress({payload!r}))\n".encode(), "train.py"
    ).source
    assert source.error is not None and "zlib" in source.error


def test_a_syntax_error_is_named_with_its_line() -> None:
    source = unpack(b"x = 1\ndef f(:\n", "train.py").source
    assert source.error is not None and "line 2" in source.error


def test_nested_quotes_of_newer_strings_are_accepted() -> None:
    text = 'd = {"k": 1}\nx = f"{d["k"]}: {", ".join(f"{v}" for v in d)}"\n'
    source = unpack(text.encode(), "train.py").source
    assert source.error is None
    assert source.tree is not None


def test_a_folder_chooses_the_script_that_its_readme_runs(tmp_path: Path) -> None:
    (tmp_path / "train_gpt.py").write_text("a = 1\n")
    (tmp_path / "train_other.py").write_text("b = 1\n")
    (tmp_path / "README.md").write_text(
        "Run:\n```bash\nDEPTH=3 torchrun --nproc_per_node=4 train_other.py\n```\n"
    )
    submission = read_submission(tmp_path)
    assert submission.script is not None and submission.script.name == "train_other.py"
    assert submission.command is not None
    assert submission.command.environment == {"DEPTH": "3"}
    assert submission.command.world_size == 4
    assert [p.name for p in submission.context] == ["train_gpt.py"]


def test_an_option_overrides_the_choice_of_script(tmp_path: Path) -> None:
    (tmp_path / "train_gpt.py").write_text("a = 1\n")
    (tmp_path / "other.py").write_text("b = 1\n")
    submission = read_submission(tmp_path, script="other.py")
    assert submission.script is not None and submission.script.name == "other.py"
