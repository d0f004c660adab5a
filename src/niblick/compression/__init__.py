"""From float tensors to few bytes and back: rounding, calibration, allocation, entropy coding.

Decoding is bit-identical on any machine: symbols come from integer frequency tables, weights from
products of float32 numbers that are stored or built by exact arithmetic.
"""

from niblick.codecs.base import CODECS, Codec, Encoded, Job, TensorRow, get_codec
from niblick.codecs.int_zlib import IntZlib
from niblick.codecs.rd import RateDistortion
from niblick.compression.calibration import Calibration
from niblick.compression.rounding import RoundingSpec, round_trip, rounding_specs

__all__ = [
    "CODECS",
    "Calibration",
    "Codec",
    "Encoded",
    "IntZlib",
    "Job",
    "RateDistortion",
    "RoundingSpec",
    "TensorRow",
    "get_codec",
    "round_trip",
    "rounding_specs",
]
