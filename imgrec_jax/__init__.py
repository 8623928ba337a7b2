"""Image recognition with neural networks in JAX: classification, detection and segmentation on one training loop."""

__version__ = "0.1.0"
