"""A small held-out field for demonstrations: seconds to make."""

from .ugriz_ground_test import sky

sky.shape = [768, 768]
sky.center = [30.0, 0.0]
