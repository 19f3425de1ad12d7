"""Sample: generated slides, and the truth about them."""

from msdask.sample.slides import SampleSlide, make_cohort, make_slide, write_labels, write_masks

__all__ = ["SampleSlide", "make_cohort", "make_slide", "write_labels", "write_masks"]
