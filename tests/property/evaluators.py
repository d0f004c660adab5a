"""Small models, streams and datasets that the evaluation tests share."""

import numpy as np
import torch

from niblick.data.dataset import Dataset
from niblick.data.shards import write_shard
from niblick.model import LanguageModel
from niblick.recipe.model import ModelRecipe
from niblick.text.tokenizer import load_tokenizer

VOCAB, BOS, CONTEXT = 260, 1, 16

STACKS = {
    "mixed": ("token-shift", "window:3", "full"),
    "shifts": ("token-shift*3",),
    "full": ("full*2",),
}


def model_recipe(stack="mixed", **changes):
    """A model of a few thousand parameters over the byte alphabet, with every kind of memory."""
    values = {
        "vocab_size": VOCAB,
        "bos_id": BOS,
        "dim": 16,
        "context": CONTEXT,
        "stack": [{"layers": list(STACKS[stack])}],
        "attention": {"heads": 2, "kv_heads": 1, "kv_shift": True, "rope": {"dims": 4}},
        "bigram": {"enabled": True, "buckets": 64, "width": 8},
        "smear": {"enabled": True},
        "mlp": {"width": 2},
        **changes,
    }
    return ModelRecipe.model_validate(values)


def make_model(stack="mixed", kind=LanguageModel, **changes):
    """A model whose weights are all moved off their start, so that every path carries something."""
    model = kind(model_recipe(stack, **changes))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def make_tokens(lengths, seed=0):
    """Documents of the given lengths (BOS included) of random printable bytes."""
    random = np.random.default_rng(seed)
    parts = [
        np.concatenate([[BOS], random.integers(4 + 97, 4 + 122, length - 1)]) for length in lengths
    ]
    return np.concatenate(parts).astype(np.uint16)


def make_dataset(folder, lengths=(20, 7, 33, 1, 12), seed=0):
    """A bare folder of shards in the bytes alphabet, validation and test alike in layout."""
    folder.mkdir(parents=True, exist_ok=True)
    write_shard(folder / "x_val_000000.bin", make_tokens(lengths, seed))
    write_shard(folder / "x_test_000000.bin", make_tokens(lengths, seed + 1))
    files = {"validation": (folder / "x_val_000000.bin",), "test": (folder / "x_test_000000.bin",)}
    return Dataset(folder, load_tokenizer("bytes"), None, files)


def plain_nll(model, tokens, context=CONTEXT):
    """Nats of tokens 1 .. n-1 from one unbounded forward pass at a declared context."""
    ids = torch.from_numpy(np.asarray(tokens).astype(np.int64))[None]
    with torch.no_grad():
        logs = model.logits(ids[:, :-1], context=context).log_softmax(-1)
    return -logs[0].gather(1, ids[0, 1:, None])[:, 0].numpy()
