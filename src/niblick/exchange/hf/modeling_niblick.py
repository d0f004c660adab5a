"""A niblick language model in plain torch, for transformers: one loop over virtual layers.

Every part is read from the configuration: token shift, windowed and full attention with their
gains, shifts and residuals, looped blocks, bigram and value embeddings, smear, skips, sidecar. An
ensemble is several such models, whose probabilities are averaged.
"""

from dataclasses import dataclass
from math import log

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from .configuration_niblick import NiblickConfig
from .layers_niblick import (
    Bigram,
    Block,
    Call,
    Gains,
    Linear,
    NiblickCache,
    Sidecar,
    Smear,
    add_gains,
    rms,
)


@dataclass
class NiblickOutput(ModelOutput):
    """`logits` (B, T, V) float32, `loss` where labels were given, `cache` where it is used."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    cache: "NiblickCache | None" = None


class Network:
    """One model: its parts, and what they compute; `config` says which there are."""

    def build(self, config):
        """Make the parts."""
        model = config.model
        dim, vocab = model["dim"], model["vocab_size"]
        self.tok_emb = nn.Embedding(vocab, dim)
        self.lm_head = None if model["tied"] else Linear(dim, vocab)
        self.bigram = Bigram(model) if model["bigram"]["enabled"] else None
        self.smear = Smear(model) if model["smear"]["enabled"] else None
        if model["value_embedding"]["enabled"]:
            options = model["value_embedding"]
            narrow = model["attention"]["kv_heads"] * (dim // model["attention"]["heads"])
            self.ve_embed = nn.Embedding(vocab, options["width"])
            self.ve_proj = Linear(options["width"], narrow)
            self.ve_scales = nn.ParameterDict(
                {
                    str(i): nn.Parameter(torch.full((1,), options["scale"]))
                    for i in options["layers"]
                }
            )
        if any(layer["pop"] is not None for layer in config.layers):
            self.skip_weights = nn.Parameter(torch.ones(len(config.layers) // 2, dim))
        for layer in config.layers:
            segment, index = layer["block"].split(".")
            if not hasattr(self, segment):
                self.add_module(segment, nn.ModuleDict())
            if index not in self.get_submodule(segment):
                self.get_submodule(segment)[index] = Block(model, layer["mixer"])
        if model["scalars"] == "virtual":
            self.vlayers = nn.ModuleList(Gains(model) for _ in config.layers)
            for layer in config.layers:
                if layer["mixer"] != "token-shift":
                    add_gains(self.vlayers[layer["index"]], model)
        if model["sidecar"]["enabled"]:
            self.shared_sparse = Sidecar(model)
            sites = len(model["sidecar"]["layers"])
            self.shared_sparse_scale = nn.Parameter(torch.zeros(sites, dim))

    def logits(self, call, keep):
        """Logits (B, T, V) float32 of a call, of its last `keep` tokens where that is not 0."""
        hidden = self.hidden(call)[:, -keep:]
        weight = (self.tok_emb if self.lm_head is None else self.lm_head).weight
        logits, cap = F.linear(hidden, weight.to(hidden.dtype)).float(), call.model["softcap"]
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def hidden(self, call):
        """The normalised state (B, T, D) that the head reads."""
        x = self.tok_emb(call.tokens)
        if self.bigram is not None:
            x = x + self.bigram(call)
        x = rms(x)
        if self.smear is not None:
            x = self.smear(x, call)
        if hasattr(self, "ve_embed"):
            call.values = self.ve_proj(self.ve_embed(call.tokens))
        x0, skips = x, []
        for layer in self.config.layers:
            if layer["value_embedding"]:
                layer = {**layer, "value_scale": self.ve_scales[str(layer["index"])]}
            if layer["pop"] is not None:
                x = x + self.skip_weights[layer["pop"]].to(x.dtype) * skips.pop()
            scalars = self.get_submodule(layer["scalars"])
            x = self.get_submodule(layer["block"])(x, x0, layer, scalars, call)
            site = layer["sidecar_site"]
            if site is not None:
                added = self.shared_sparse(x, site, call)
                x = x + self.shared_sparse_scale[site].to(x.dtype) * added
            if layer["push"]:
                skips.append(x)
        return rms(x)


class Member(Network, nn.Module):
    """A model of an ensemble."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.build(config)


class NiblickForCausalLM(Network, PreTrainedModel, GenerationMixin):
    """The language model; a fresh cache declares the configuration's context."""

    config_class = NiblickConfig
    _no_split_modules = ("Block",)

    def __init__(self, config):
        super().__init__(config)
        count = config.model.get("members", 1)
        if count > 1:
            self.members = nn.ModuleList(Member(config) for _ in range(count))
        else:
            self.build(config)
        self.post_init()

    def _init_weights(self, module):
        """Linear maps start as torch's own; tables as the configuration says."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.model["embedding"]["std"])

    def get_input_embeddings(self):
        return self.networks()[0][1].tok_emb

    def get_output_embeddings(self):
        return self.networks()[0][1].lm_head

    def networks(self):
        """The models by what the names of each begin with."""
        if not hasattr(self, "members"):
            return [("", self)]
        return [(f"members.{i}.", member) for i, member in enumerate(self.members)]

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        if generation_config.use_cache is not False and model_kwargs.get("cache") is None:
            model_kwargs["cache"] = NiblickCache(self.config.model["context"])

    def forward(
        self,
        input_ids,
        attention_mask=None,
        cache=None,
        labels=None,
        use_cache=False,
        context=None,
        logits_to_keep=0,
        **kwargs,
    ):
        """Logits of input_ids (B, T); attention_mask (B, T) may hide padding, left or right."""
        model = self.config.model
        declared = context or max(input_ids.shape[1], model["context"])
        if use_cache and cache is None:
            cache = NiblickCache(declared)
        if cache is not None:
            declared = cache.context
        after, found = {}, []
        for prefix, network in self.networks():
            call = Call(model, input_ids, attention_mask, cache, declared, prefix)
            found.append(network.logits(call, logits_to_keep))
            after |= call.remembered
        if cache is not None:
            cache.tensors = after
            cache.position = call.position + input_ids.shape[1]
        logits = found[0]
        if len(found) > 1:  # ln of the mean probability
            logits = torch.stack(found).log_softmax(-1).logsumexp(0) - log(len(found))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=model["vocab_size"], **kwargs)
        return NiblickOutput(loss=loss, logits=logits, cache=cache)
