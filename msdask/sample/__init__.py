"""Sample: generated slides, and the truth about them."""

from msdask.sample.hook_regions import HookRegions, make_hook_regions
from msdask.sample.scale_bits import ScaleBits, make_scale_bits
from msdask.sample.slides import SampleSlide, make_cohort, make_slide, write_labels, write_masks

__all__ = [
    "HookRegions",
    "SampleSlide",
    "ScaleBits",
    "make_cohort",
    "make_hook_regions",
    "make_scale_bits",
    "make_slide",
    "write_labels",
    "write_masks",
]
