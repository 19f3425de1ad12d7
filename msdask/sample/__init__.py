"""Sample: generated slides, and the truth about them."""

from msdask.sample.scale_bits import ScaleBits, make_scale_bits
from msdask.sample.slides import SampleSlide, make_cohort, make_slide, write_labels, write_masks

__all__ = ["SampleSlide", "ScaleBits", "make_cohort", "make_scale_bits", "make_slide", "write_labels", "write_masks"]
