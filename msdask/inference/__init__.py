"""Inference: trained models on images and slides; one file a task."""

from msdask.inference.class_map import prediction_table
from msdask.inference.classifier import Classifier, load_classifier
from msdask.inference.classify import classify_slide
from msdask.inference.classify_cohort import classify_slides
from msdask.inference.label_file import open_segmentation
from msdask.inference.map_file import read_class_map
from msdask.inference.scale import ScaleEstimate, estimate_scale, load_regressor
from msdask.inference.segment import segment_slide
from msdask.inference.segment_cohort import segment_slides, write_outlines
from msdask.inference.segmenter import Segmenter, load_segmenter

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
