"""Results out: videos, pictures and the HTML report. See README.md in this folder."""

from jwm_jax.export.card import model_card
from jwm_jax.export.chart import Series, line_chart
from jwm_jax.export.mosaic import label_picture, rig_mosaic
from jwm_jax.export.pictures import error_picture, picture_bytes
from jwm_jax.export.report import Headline, Report
from jwm_jax.export.video import encode_video, write_video

__all__ = [
    "Headline",
    "Report",
    "Series",
    "encode_video",
    "error_picture",
    "label_picture",
    "line_chart",
    "model_card",
    "picture_bytes",
    "rig_mosaic",
    "write_video",
]
