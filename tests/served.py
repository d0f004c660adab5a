"""A small model and a server of it in a thread, for tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
import uvicorn

import niblick
from niblick.artifact import save_checkpoint
from niblick.model import LanguageModel
from niblick.recipe import load_recipe
from niblick.serve.app import ServeOptions, Service, configured, listen
from niblick.text.tokenizer import load_tokenizer

SMALL = ["model.dim=32", "model.context=24", "model.attention.heads=2", "model.vocab_size=260"]
SMALL += ["model.attention.kv_heads=1", "model.attention.rope.dims=8", "data.tokenizer=bytes"]


def small_model(folder: Path) -> niblick.Model:
    """Random weights and the tokenizer of bytes, so that characters span tokens."""
    recipe = load_recipe("token-shift", SMALL)
    generator = torch.Generator().manual_seed(2)
    tensors = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in LanguageModel(recipe.model, seed=0).state_dict().items()
    }
    path = folder / "small.safetensors"
    save_checkpoint(
        path, tensors=tensors, recipe=recipe, tokenizer=load_tokenizer("bytes"), meta={}
    )
    return niblick.load(path)


@contextmanager
def serving(model: niblick.Model, **options) -> Iterator[SimpleNamespace]:
    """A running server: its address, `port` and `service`."""
    given = ServeOptions(port=0, **options)
    service = Service(model, given)
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(configured(service))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        port = listener.getsockname()[1]
        try:
            yield SimpleNamespace(
                port=port, address=f"http://127.0.0.1:{port}", service=service, server=server
            )
        finally:
            server.should_exit = True
            thread.join()
