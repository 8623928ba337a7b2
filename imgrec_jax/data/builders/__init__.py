"""TFDS builders. Their modules import tensorflow_datasets at the top, so import them only where a set is prepared."""
