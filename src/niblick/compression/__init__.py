"""What packing needs of torch: calibration, sensitivities, late rounding, and `pack` itself."""

from niblick.codecs.base import RoundingSpec, rounding_specs
from niblick.compression.calibration import Calibration
from niblick.compression.rounding import round_trip

__all__ = ["Calibration", "RoundingSpec", "round_trip", "rounding_specs"]
