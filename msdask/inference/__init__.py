"""Inference: trained models on images and slides; one file a task."""

from msdask.inference.class_map import prediction_table
from msdask.inference.classify import Classifier, classify_slide, load_classifier
from msdask.inference.classify_cohort import classify_slides
from msdask.inference.label_file import open_segmentation
from msdask.inference.map_file import read_class_map
from msdask.inference.scale import ScaleEstimate, estimate_scale, load_regressor
from msdask.inference.segment import Segmenter, load_segmenter, segment_slide
from msdask.inference.segment_cohort import segment_slides, write_outlines

__all__ = [
    "Classifier",
    "ScaleEstimate",
    "Segmenter",
    "classify_slide",
    "classify_slides",
    "estimate_scale",
    "load_classifier",
    "load_regressor",
    "load_segmenter",
    "open_segmentation",
    "prediction_table",
    "read_class_map",
    "segment_slide",
    "segment_slides",
    "write_outlines",
]
