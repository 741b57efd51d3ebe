"""Measuring models of images: classifiers, segmenters and detectors, on images with their annotations."""

from .classification import ImageClassification
from .detection import ObjectDetection
from .segmentation import SemanticSegmentation

__all__ = ["ImageClassification", "ObjectDetection", "SemanticSegmentation"]
