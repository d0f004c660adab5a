"""The cases by target: each writes hostile files into a folder and names the command to run."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import struct
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fuzz.mutations import damaged, to_json, to_toml, twisted
from fuzz.seeds import Seeds
from niblick.artifact import container, header
from niblick.data.shards import write_shard
from niblick.recipe import load_recipe

Case = Callable[[random.Random, Path, Seeds], list[str]]
TARGETS: dict[str, Case] = {}


def target(case: Case) -> Case:
    """Register a case under its function's name."""
    TARGETS[case.__name__] = case
    return case


def make_case(name: str, seed: int, folder: Path, seeds: Seeds) -> list[str]:
    """Write case number `seed` of target `name` into `folder`; the command line to run there."""
    return TARGETS[name](random.Random(f"{name} {seed}"), folder, seeds)


def _read_by(rng: random.Random, model: str, seeds: Seeds) -> list[str]:
    """A command that opens `model`."""
    data = ["--data", str(seeds.data)]
    return rng.choice(
        [
            ["generate", model, "--prompt", "the", "--max-tokens", "3"],
            ["eval", model, *data, "--mode", rng.choice(["chunked", "streaming"]), "--out", "new"],
            ["pack", model, *data, "--codec", "int-zlib", "--out", "new"],
        ]
    )


@target
def container_bytes(rng: random.Random, folder: Path, seeds: Seeds) -> list[str]:
    """An artifact with damaged bytes; half of them under a checksum that fits again."""
    data = damaged(rng, rng.choice(seeds.artifacts).read_bytes())
    if rng.random() < 0.5 and len(data) > container.FIXED_BYTES:
        body = data[:-16]
        data = body + hashlib.blake2b(body, digest_size=16).digest()
    (folder / "m.nib").write_bytes(data)
    return _read_by(rng, "m.nib", seeds)


@target
def container_parts(rng: random.Random, folder: Path, seeds: Seeds) -> list[str]:
    """A well-formed artifact whose header, tokenizer or payload says something else."""
    found = container.read(rng.choice(seeds.artifacts))
    values, tokenizer, payload = found.header, found.tokenizer, found.payload
    part = rng.choice(["header", "header", "tokenizer", "payload", "payload"])
    text = to_json(twisted(rng, values) if part == "header" else values)
    tokenizer = damaged(rng, tokenizer) if part == "tokenizer" else tokenizer
    payload = damaged(rng, payload) if part == "payload" else payload
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=header._DICTIONARY)
    packed = packer.compress(text.encode()) + packer.flush()
    sizes = (len(packed), len(tokenizer), len(payload))
    body = struct.pack("<4sBIII", container.MAGIC, container.VERSION, *sizes)
    body += packed + tokenizer + payload
    (folder / "m.nib").write_bytes(body + hashlib.blake2b(body, digest_size=16).digest())
    return _read_by(rng, "m.nib", seeds)


@target
def checkpoints(rng: random.Random, folder: Path, seeds: Seeds) -> list[str]:
    """A checkpoint with damaged bytes, or another header or metadata."""
    data = (seeds.run / "checkpoints" / "final.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    kind = rng.randrange(3)
    if kind == 0:
        data = damaged(rng, data)
    else:
        if kind == 1:
            described = twisted(rng, json.loads(table["__metadata__"]["niblick"]))
            table["__metadata__"]["niblick"] = to_json(described)
        else:
            table = twisted(rng, table)
        text = to_json(table).encode()
        data = len(text).to_bytes(8, "little") + text + data[8 + length :]
    (folder / "m.safetensors").write_bytes(data)
    return _read_by(rng, "m.safetensors", seeds)


@target
def state_dicts(rng: random.Random, folder: Path, seeds: Seeds) -> list[str]:
    """A published state dict that is damaged, or built of other things than dense tensors."""
    tensors: dict[Any, Any] = dict(torch.load(seeds.published))
    for _ in range(rng.choice([0, 1, 2])):
        with warnings.catch_warnings(action="ignore"):
            tensors[rng.choice(list(tensors))] = _odd_value(rng)
    content: Any = tensors
    shape = rng.randrange(6)
    if shape == 0:
        content = {"quantized": tensors, "scales": tensors, "passthrough": {}}
    elif shape == 1:
        content = {"w": tensors, "m": {name: {"q": 1} for name in tensors}}
    elif shape == 2:
        keys = rng.choice([("quantized", "scales"), ("w", "m")])
        content = {
            key: rng.choice([tensors, [tensors], 5, None, "x", OrderedDict()]) for key in keys
        }
    elif shape == 3:
        content[rng.choice([5, None, ("a",) * 500, "n" * 60_000, "a\0b", ""])] = torch.ones(2)
    torch.save(content, folder / "m.pt", _use_new_zipfile_serialization=rng.random() < 0.6)
    data = (folder / "m.pt").read_bytes()
    data = damaged(rng, data) if rng.random() < 0.4 else data
    (folder / "m.pt").write_bytes(zlib.compress(data, 1) if rng.random() < 0.3 else data)
    family = rng.choice(["sidecar", "sidecar", "token-shift", "depth-recurrent"])
    return ["import", "m.pt", "--as", family, "--out", "new.safetensors"]


def _odd_value(rng: random.Random) -> Any:
    makers: list[Callable[[], Any]] = [
        lambda: torch.zeros(3).to_sparse(),
        lambda: torch.sparse_coo_tensor(size=(1 << 20, 1 << 20)),
        lambda: torch.empty(1 << 20, 1 << 20, device="meta"),
        lambda: torch.zeros(1).expand(1 << 17, 1 << 17),
        lambda: torch.zeros(4).as_strided((1 << 16, 4), (0, 1)),
        lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
        lambda: torch.full((4, 4), float("nan")),
        lambda: torch.ones(4, dtype=torch.complex64),
        lambda: torch.ones(4, dtype=torch.int8),
        lambda: torch.zeros(0),
        lambda: torch.ones(()),
        lambda: torch.nn.Parameter(torch.ones(2, 2)),
        lambda: {"a": [1]},
        lambda: [1, 2],
        lambda: "text",
        lambda: None,
    ]
    return rng.choice(makers)()


@target
def manifests(rng: random.Random, folder: Path, seeds: Seeds) -> list[str]:
    """A folder of shards whose manifest, shards or tokenizer are damaged."""
    shutil.copytree(seeds.data, folder / "d")
    kind = rng.randrange(4)
    path = folder / "d" / "manifest.json"
    if kind < 2:
        path.write_text(to_json(twisted(rng, json.loads(path.read_text()))))
    elif kind == 2:
        shard = rng.choice(sorted((folder / "d").glob("*.bin")))
        shard.write_bytes(damaged(rng, shard.read_bytes()))
    else:
        path.unlink()
        (folder / "d" / "tokenizer.model").write_bytes(rng.randbytes(50))
        write_shard(folder / "d" / "x_val_0.bin", [rng.randrange(65536) for _ in range(50)])
    return ["data", "check", "d"]


@target
def recipes(rng: random.Random, folder: Path, seeds: Seeds) -> list[str]:
    """A recipe with hostile values, or damaged text."""
    name = rng.choice(["pocket", "token-shift", "depth-recurrent", "sidecar"])
    values = twisted(rng, load_recipe(name).model_dump(mode="json"))
    data = to_toml(values if isinstance(values, dict) else {"model": values}).encode()
    (folder / "r.toml").write_bytes(damaged(rng, data) if rng.random() < 0.3 else data)
    return ["plan", "r.toml", *rng.choice([[], ["--json"]])]


@target
def tokenizers(rng: random.Random, folder: Path, seeds: Seeds) -> list[str]:
    """A damaged SentencePiece model."""
    from niblick.text.tokenizer import load_tokenizer

    data = load_tokenizer("fineweb-1024").to_file_bytes()
    (folder / "t.model").write_bytes(damaged(rng, data))
    text = str(seeds.folder / "text")
    return ["data", "prepare", text, "--out", "new", "--tokenizer", "t.model"]


@target
def corpora(rng: random.Random, folder: Path, seeds: Seeds) -> list[str]:
    """Text files of any content, named in any way."""
    (folder / "c").mkdir()
    for number in range(rng.randint(0, 4)):
        name = rng.choice(
            [f"{number}.txt", f"{number}.jsonl", f".{number}.txt", f"{number}.parquet"]
        )
        place = folder / "c" / rng.choice(["", "train", "validation", "other"])
        place.mkdir(exist_ok=True)
        lines = [to_json(twisted(rng, {"text": f"line {n} of {number}"})) for n in range(20)]
        content = "\n".join(lines).encode() if name.endswith("jsonl") else b"some text\n\n" * 900
        (place / name).write_bytes(damaged(rng, content) if rng.random() < 0.5 else content)
    tokenizer = rng.choice(["bytes", "train", "fineweb-1024"])
    size = [] if tokenizer != "train" else ["--vocab-size", rng.choice(["0", "-1", "259", "300"])]
    return ["data", "prepare", "c", "--out", "new", "--tokenizer", tokenizer, *size]


@target
def runs(rng: random.Random, folder: Path, seeds: Seeds) -> list[str]:
    """A run directory in which one file is damaged."""
    shutil.copytree(seeds.run, folder / "run")
    files = [
        path for path in (folder / "run").rglob("*") if path.is_file() and path.name != ".lock"
    ]
    path = rng.choice(sorted(files))
    if path.suffix == ".json" and rng.random() < 0.7:
        values = twisted(rng, json.loads(path.read_text()))
        if path.name == "trainer.json" and isinstance(values, dict):
            hashes = values.pop("sha256", None)
            text = json.dumps(values, sort_keys=True)
            if isinstance(hashes, dict):
                hashes["trainer.json"] = hashlib.sha256(text.encode()).hexdigest()
            values["sha256"] = hashes
        path.write_text(to_json(values))
    else:
        path.write_bytes(damaged(rng, path.read_bytes()))
    return rng.choice(
        [
            ["card", "run"],
            ["compare", "run", str(seeds.run), "--resamples", "100"],
            ["generate", "run", "--prompt", "the", "--max-tokens", "3"],
            ["train", "--resume", "run"],
        ]
        * 5
        + [["export", "run", "--out", "new"]]
    )


@target
def command_lines(rng: random.Random, folder: Path, seeds: Seeds) -> list[str]:
    """Commands with options that do not fit, on files that do."""
    model = str(rng.choice([*seeds.artifacts, seeds.run, folder / "none", folder]))
    number = rng.choice(["0", "-1", "1e9", "nan", "x", "9" * 400, str(2**63), "", "1"])
    word = rng.choice(["", "x", "/", "..", "null", "a b", "é" * 300, "-", "--help", "\u2028"])
    data = ["--data", rng.choice([str(seeds.data), word])]
    return rng.choice(
        [
            ["generate", model, rng.choice(["--top-k", "--top-p", "--temperature"]), number],
            ["generate", model, "--max-tokens", "3", "--prompt", word, "--stop", word],
            ["generate", model, "--max-tokens", "2", rng.choice(["--threads", "--seed"]), number],
            ["eval", model, *data, "--out", "new", rng.choice(["--context", "--stride"]), number],
            ["eval", model, *data, "--out", "new", rng.choice(["--mode", "--split"]), word],
            ["pack", model, *data, "--out", "new", rng.choice(["--max-bytes", "--codec"]), number],
            ["plan", rng.choice(["pocket", word]), "--set", f"model.dim={number}"],
            ["plan", "pocket", "--set", rng.choice([word, f"{word}={number}", f"training={word}"])],
            ["plan", "pocket", "--duration", rng.choice([number, f"{number} steps", f"{number}s"])],
            ["train", rng.choice(["pocket", word]), "--out", "new", "--max-bytes", number],
            ["train", "--resume", word],
            ["data", "prepare", word, "--out", "new"],
            ["data", "check", word],
            ["compare", model, word],
            ["card", model],
            ["export", word or "none", "--out", "new"],
            ["import", model, "--as", rng.choice(["sidecar", word]), "--out", "new.safetensors"],
            ["verify", word],
            ["ablate", "pocket", "--without", word, "--out", "new"],
            ["sweep", "pocket", "--variants", word, "--budget", number, "--out", "new"],
            [word, number],
        ]
    )
