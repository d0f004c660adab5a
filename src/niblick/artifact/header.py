"""The header of an artifact: a JSON object, deflated with a preset dictionary.

So a recipe costs few bytes. The dictionary is part of container version 1: it may never change. It
affects size only; any JSON object round-trips. Reading is bounded: a header that would expand
beyond `MAX_HEADER` or is not a JSON object is refused.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

from niblick.errors import ArtifactError
from niblick.files import expand, parse_json
from niblick.limits import cut

MAX_HEADER = 1 << 16
_DICTIONARY = (
    b'{"codec":"rd","meta":{"steps":"tokens":"train_seconds":"train_tokens":"float_bpb":},"recipe":{"artif'
    b'act":{"code_bytes":false,"codec":"int-zlib","embedding_bits":8,"matrix_bits":6,"max_bytes":16000000}'
    b',"data":{"alpha":[0.9,0.5],"corpus":"wiki-vital","shard_mix":[8.0,32.0],"tokenizer":"train","workers'
    b'":1},"description":"","evaluation":{"batch_tokens":16384,"context":null,"mode":"chunked","stride":64'
    b'},"model":{"attention":{"heads":8,"k_gain":false,"kv_heads":4,"kv_shift":false,"local_value":false,"'
    b'q_gain":1.5,"qk_norm":true,"rope":{"base":10000.0,"dims":16,"frequency_dims":"head","train_length":n'
    b'ull},"xsa_last":4,"xsa_layers":null},"bigram":{"buckets":2048,"enabled":true,"scale":0.05,"width":12'
    b'8},"bos_id":1,"context":1024,"depth_scale":true,"dim":512,"document_attention":"across","document_ma'
    b'sk":false,"embedding":{"init":"normal","std":0.005},"linear_init":"orthogonal","mlp":{"activation":"'
    b'leaky-relu-squared","slope":0.5,"width":3.0},"mtp":{"heads":0,"weight":0.2},"residual_mix":{"enabled'
    b'":true,"init":"identity"},"scalars":"block","sidecar":{"enabled":false,"kernel":3,"layers":[],"width'
    b'":48},"skips":{"enabled":false,"pop":"early"},"smear":{"enabled":true},"softcap":30.0,"stack":[{"lay'
    b'ers":["token-shift*4","window:128","token-shift*2","window:128","token-shift*2","full"],"loops":1,"n'
    b'ame":"blocks"}],"tied":true,"token_shift":{"mix":0.5},"value_embedding":{"enabled":true,"layers":[10'
    b'],"scale":0.1,"std":0.02,"width":128},"vocab_size":1024},"name":"pocket","seed":0,"training":{"adam"'
    b':{"betas":[0.9,0.95],"embedding_lr":0.05,"eps":1e-08,"scalar_lr":0.04,"weight_decay":0.04},"averagin'
    b'g":{"decay":0.997,"every":200,"kind":"ema","start":0.5,"warmup":true},"batch_tokens":524288,"checkpo'
    b'int_every":"60s","clip":0.3,"compile":"auto","compile_warmup_steps":20,"duration":"600s","micro_batc'
    b'h_tokens":null,"muon":{"lr":0.04,"momentum":[0.92,0.99],"momentum_warmup":"1500'
    b' steps","nesterov":tr'
    b'ue,"newton_schulz_steps":5,"weight_decay":0.04},"precision":"auto","qat":{"enabled":true,"start":0.1'
    b'5},"schedule":{"final":0.0,"warmdown":"3500'
    b' steps","warmup":0.0},"sequence_length":1024,"threads":nu'
    b'll,"validation":{"every":0.1,"tokens":32768}}},"tokenizer":"sentencepiece"}'
)


def encode_header(values: dict[str, Any]) -> bytes:
    """Compact, sorted JSON of `values`, deflated; `ArtifactError` where it is too long."""
    try:
        raw = json.dumps(values, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"the artifact's metadata is not plain JSON: {error}") from None
    if len(raw) > MAX_HEADER:
        raise ArtifactError(
            f"the header of {len(raw):,} bytes is longer than {MAX_HEADER:,}; shorten the metadata"
        )
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=_DICTIONARY)
    return packer.compress(raw) + packer.flush()


def decode_header(data: bytes) -> dict[str, Any]:
    """Undo `encode_header`; `ArtifactError` for bytes that it cannot have written."""
    decoder = zlib.decompressobj(-15, zdict=_DICTIONARY)
    raw = expand(data, decoder, MAX_HEADER, "the header", ArtifactError)
    try:
        values = parse_json(raw)
    except ValueError as error:
        raise ArtifactError(f"the header cannot be read: {cut(error, 120)}") from None
    if not isinstance(values, dict):
        raise ArtifactError(f"the header holds a JSON {type(values).__name__}, not an object")
    return values
