"""The held-out sky: one larger field of galaxies that the training sky never holds, at a middle depth (r = 23.7)."""

from .ugriz_ground import sky

sky.fields = 1
sky.shape = [2048, 2048]
sky.center = [210.0, -5.0]
sky.population_part = "test"
sky.depth_offset = [1.0, 1.0]
sky.depth_jitter = 0.0
sky.seeing_factor = [0.9, 0.9]
sky.seeing_jitter = 0.0
sky.moffat_beta = [3.2, 3.2]
sky.ebv = [0.05, 0.05]
sky.galaxy_density = [1.0, 1.0]
sky.star_density = [1.0, 1.0]
sky.background_only_variance = 0.0
