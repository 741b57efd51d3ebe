"""Samples with annotations, of images or sounds: rows of whatever holds them, and the classes that labels mean."""
