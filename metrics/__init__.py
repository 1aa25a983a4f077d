"""Turns images, features or a callable into numbers: how good the images are, and what they cost."""
