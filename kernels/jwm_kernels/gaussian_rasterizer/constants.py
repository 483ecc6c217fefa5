"""The two thresholds and the limits of number range that every stage has to agree on."""

ALPHA_MIN = 1.0 / 255.0
"""A splat whose alpha at a pixel is below this does not count there."""

TRANSMITTANCE_MIN = 1e-4
"""A splat that would bring a pixel's transmittance to this or below ends the pixel uncounted."""

LOG_ALPHA_SLACK = 1e-3
"""Extents and tile lists are this much wider (in log alpha) than `ALPHA_MIN` asks for, so that
rounding never decides which pixels a splat reaches: only the blend's own test does."""

COORDINATE_MAX = 1e12
"""A Gaussian with a larger coordinate or scale is treated as not finite, that is, dropped."""

VARIANCE_MAX = 1e18
"""Largest image-plane variance in px^2; products of two still fit in float32."""

DET_MIN = 1e-18
"""Smallest determinant in px^4 of a screen covariance; below it the conic's gradient overflows."""

DEPTH_MIN = 1e-6
"""Nearest depth in metres at which a projection is attempted, whatever `near_plane` says."""
