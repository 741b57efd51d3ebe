"""Measuring models of sounds: recognizers of speech and classifiers, on sounds with transcripts or classes."""

from .classification import AudioClassification
from .recognition import SpeechRecognition

__all__ = ["AudioClassification", "SpeechRecognition"]
