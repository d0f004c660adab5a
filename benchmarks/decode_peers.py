"""A Llama-type model of about 26.5 M parameters in other engines, for benchmarks/decode.py and
serve.py.

`python decode_peers.py transformers-float32|transformers-bfloat16|llama.cpp-Q8_0|llama.cpp-Q6_K
OPTIONS_JSON` prints one line of JSON; `write-Q6_K '{"out": FILE}'` in their place writes the model
for llama.cpp's server. Runs in an environment of its own: it needs transformers and torch, or
llama-cpp-python and gguf, and nothing of this project.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

VOCAB, DIM, LAYERS, HEADS, GROUPS, HIDDEN = 1024, 512, 11, 8, 4, 1024
HEAD = DIM // HEADS
SHAPES = {
    "attn_q": (DIM, DIM),
    "attn_k": (GROUPS * HEAD, DIM),
    "attn_v": (GROUPS * HEAD, DIM),
    "attn_output": (DIM, DIM),
    "ffn_gate": (HIDDEN, DIM),
    "ffn_up": (HIDDEN, DIM),
    "ffn_down": (DIM, HIDDEN),
}
PARAMETERS = VOCAB * DIM + LAYERS * (sum(a * b for a, b in SHAPES.values()) + 2 * DIM) + DIM


def resident() -> int:
    """Bytes of resident memory of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def clock(options: dict[str, Any]) -> Any:
    """Wall time, or with `cpu_time` this process's processor time."""
    return time.process_time if options.get("cpu_time") else time.perf_counter


def row(
    name: str, options: dict[str, Any], before: int, state: int, step: Any, read: Any
) -> dict[str, Any]:
    """Best speed at every position: `read(n)` reads n tokens and `step()` chooses and gives one
    more.
    """
    cells = []
    for position in options["positions"]:
        began = clock(options)()
        read(position)
        reading = position / (clock(options)() - began)
        found = []
        for _ in range(options["repeats"]):
            began = clock(options)()
            for _ in range(options["tokens"]):
                step()
            found.append((clock(options)() - began) / options["tokens"])
        seconds = min(found)
        cells.append(
            {
                "position": position,
                "ms": seconds * 1e3,
                "tokens_per_second": 1 / seconds,
                "read_per_second": reading,
            }
        )
    return {
        "model": f"Llama, {PARAMETERS:,} parameters",
        "engine": name,
        "parameters": PARAMETERS,
        "positions": cells,
        "state_bytes": state,
        "resident_bytes": resident() - before,
    }


def transformers(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """`generate` with its default cache: every run of tokens is one call on the text so far, less
    its first token.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(options["threads"])
    before = resident()
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=DIM,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, name.rpartition("-")[2])).eval()
    size = next(model.parameters()).element_size()
    cells = []
    for position in options["positions"]:
        prompt = torch.randint(2, VOCAB, (1, position))

        def timed(count: int, prompt: Any = prompt) -> float:
            began = clock(options)()
            model.generate(
                prompt, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
            )
            return clock(options)() - began

        timed(2)
        first = min(timed(1) for _ in range(options["repeats"]))
        whole = min(timed(1 + options["tokens"]) for _ in range(options["repeats"]))
        seconds = (whole - first) / options["tokens"]
        cells.append(
            {
                "position": position,
                "ms": seconds * 1e3,
                "tokens_per_second": 1 / seconds,
                "read_per_second": position / first,
            }
        )
    state = 2 * LAYERS * GROUPS * HEAD * max(options["positions"]) * size
    return {
        "model": f"Llama, {PARAMETERS:,} parameters",
        "engine": name,
        "parameters": PARAMETERS,
        "positions": cells,
        "state_bytes": state,
        "resident_bytes": resident() - before,
    }


def write_gguf(path: Path, *, vocabulary: bool = False) -> None:
    """The random model in float16; without a vocabulary unless a server is to write its text."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(DIM)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("llama" if vocabulary else "none")
    if vocabulary:
        kinds = gguf.TokenType
        special = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
        pieces = special + [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
        pieces += [(f"\u2581t{i}", kinds.NORMAL) for i in range(VOCAB - len(pieces))]
        writer.add_token_list([text for text, _ in pieces])
        writer.add_token_scores([-float(i) for i in range(VOCAB)])
        writer.add_token_types([int(kind) for _, kind in pieces])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    draw = np.random.default_rng(0)

    def add(name: str, shape: tuple[int, ...]) -> None:
        writer.add_tensor(name, (draw.standard_normal(shape) * 0.04).astype(np.float16))

    add("token_embd.weight", (VOCAB, DIM))
    writer.add_tensor("output_norm.weight", np.ones(DIM, np.float32))
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(DIM, np.float32))
        for part, shape in SHAPES.items():
            add(f"blk.{layer}.{part}.weight", shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def pack_gguf(api: Any, name: str, folder: Path, out: Path, *, vocabulary: bool = False) -> None:
    """The random model at `out`, quantized as the end of `name` says."""
    import ctypes

    plain = folder / "f16.gguf"
    write_gguf(plain, vocabulary=vocabulary)
    settings = api.llama_model_quantize_default_params()
    settings.ftype = (
        api.LLAMA_FTYPE_MOSTLY_Q8_0 if name.endswith("Q8_0") else api.LLAMA_FTYPE_MOSTLY_Q6_K
    )
    if api.llama_model_quantize(str(plain).encode(), str(out).encode(), ctypes.byref(settings)):
        raise SystemExit("llama.cpp could not quantize the model")


def write(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The quantized model with a vocabulary, in a file."""
    import llama_cpp as api

    out = Path(options["out"])
    with tempfile.TemporaryDirectory() as folder:
        pack_gguf(api, name, Path(folder), out, vocabulary=True)
    return {"bytes": out.stat().st_size, "parameters": PARAMETERS, "vocab": VOCAB}


def llama_cpp(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp through its C interface: one decode call and an argmax of the logits per token."""
    import ctypes

    import llama_cpp as api

    quiet = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(quiet, ctypes.c_void_p(0))
    api.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "packed.gguf"
        pack_gguf(api, name, Path(folder), packed)
        before = resident()
        model = api.llama_model_load_from_file(
            str(packed).encode(), api.llama_model_default_params()
        )
    if not model:
        raise SystemExit("llama.cpp could not load the model")
    settings = api.llama_context_default_params()
    settings.n_ctx = max(options["positions"]) + options["tokens"] * options["repeats"] + 64
    settings.n_threads = settings.n_threads_batch = options["threads"]
    context = api.llama_init_from_model(model, settings)
    last = [1]

    def give(ids: list[int]) -> None:
        array = (api.llama_token * len(ids))(*ids)
        if api.llama_decode(context, api.llama_batch_get_one(array, len(ids))):
            raise SystemExit("llama.cpp could not decode")
        last[0] = int(
            np.ctypeslib.as_array(api.llama_get_logits_ith(context, -1), shape=(VOCAB,)).argmax()
        )

    def read(position: int) -> None:
        api.llama_memory_clear(api.llama_get_memory(context), True)
        ids = np.random.default_rng(0).integers(2, VOCAB, position).tolist()
        for start in range(0, position, 512):
            give(ids[start : start + 512])

    read(32)
    state = 2 * LAYERS * GROUPS * HEAD * 2 * max(options["positions"])
    return row(name, options, before, state, lambda: give([last[0]]), read)


if __name__ == "__main__":
    peer, given = sys.argv[1], json.loads(sys.argv[2])
    parts = {"llama.cpp": llama_cpp, "transformers": transformers, "write": write}
    print(json.dumps(parts[peer.partition("-")[0]](peer, given)))
