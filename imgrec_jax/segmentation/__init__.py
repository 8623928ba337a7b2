"""Segmentation: losses, metrics and large-image prediction, as pure functions of arrays."""
