"""Configuration of a niblick model: its recipe's model section and its virtual layers, as data."""

from transformers import PretrainedConfig


class NiblickConfig(PretrainedConfig):
    """`model` is the recipe's model section, `layers` the virtual layers that a token passes.

    `recipe` and `tokenizer` (base64) let `niblick import` read the folder back.
    """

    model_type = "niblick"

    def __init__(self, model=None, layers=None, recipe=None, tokenizer=None, **kwargs):
        self.model = model or {}
        self.layers = layers or []
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.vocab_size = self.model.get("vocab_size", 0)
        self.hidden_size = self.model.get("dim", 0)
        self.num_hidden_layers = len(self.layers)
        self.max_position_embeddings = self.model.get("context", 0)
        kwargs.setdefault("bos_token_id", self.model.get("bos_id"))
        super().__init__(**kwargs)
