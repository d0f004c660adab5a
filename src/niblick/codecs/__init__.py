"""Codecs: the tensors of a model to a payload of few bytes and back. No torch.

Decoding is bit-identical on any machine: symbols come from integer frequency tables, weights from
products of numbers that are stored or built by exact arithmetic.
"""

from typing import TYPE_CHECKING

from niblick.codecs import int_zlib, rd  # each registers itself
from niblick.codecs.base import CODECS, Codec, Encoded, Job, RoundingSpec, noisy, rounding_specs
from niblick.lazy import lazily

if TYPE_CHECKING:
    from niblick.codecs.quantized import QuantizedTensor, Tensor, Tensors, dequantized

__all__ = [
    "CODECS",
    "Codec",
    "Encoded",
    "Job",
    "QuantizedTensor",
    "RoundingSpec",
    "Tensor",
    "Tensors",
    "dequantized",
    "int_zlib",
    "noisy",
    "rd",
    "rounding_specs",
]
__getattr__ = lazily(  # numpy, which a plan's sizes do without
    __name__, {"niblick.codecs.quantized": ("QuantizedTensor", "Tensor", "Tensors", "dequantized")}
)
