"""Metadata and dependencies. Ranges for users are here; the versions measured to work together in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "deepdisc/__init__.py").read_text(), re.MULTILINE).group(1)


def shipped(top):
    """Map packages below deepdisc._shipped to the folders of `top`, so that configs and models are installed too."""
    folders = [ROOT / top, *(path for path in (ROOT / top).rglob("*") if path.is_dir() and path.name != "__pycache__")]
    names = [folder.relative_to(ROOT).as_posix() for folder in folders if folder.is_dir()]
    return {"deepdisc._shipped." + name.replace("/", "."): name for name in names}


SHIPPED = {
    **shipped("configs"),
    **shipped("model_zoo"),
    "deepdisc._shipped.datasets": "datasets",  # recipes, without the sample's pixels
    **shipped("datasets/columns"),
}

EXTRAS = {
    "sim": ["galsim>=2.6", "dust_extinction>=1.4"],
    "classical": ["sep>=1.4", "photutils>=2", "scikit-image>=0.24"],
    "cluster": ["dask>=2025.1", "distributed>=2025.1"],
    "pz": ["qp-prob>=1.1", "pz-rail-base>=2"],
    "shear": ["treecorr>=5"],
    "track": ["tensorboard>=2.17", "wandb>=0.18"],
    "tune": ["optuna>=4"],
    "regrid": ["reproject>=0.14"],
    "bench": ["scikit-learn>=1.5"],
}
# What the tests, the demo and the benchmarks need.
EXTRAS["dev"] = [
    *(EXTRAS["sim"] + EXTRAS["classical"] + EXTRAS["regrid"] + EXTRAS["bench"] + EXTRAS["pz"] + EXTRAS["shear"]),
    "tensorboard>=2.17",
    "mpmath>=1.3",
    "timm>=1.0",  # a second opinion on the backbones
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "ruff>=0.9",
    "import-linter>=2.1",
    "setuptools>=77",
]

setup(
    name="deepdisc",
    version=VERSION,
    description="Pixels in, a photo-z catalogue out: find, separate and measure every galaxy of a multi-band mosaic",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=[*find_packages(include=["deepdisc", "deepdisc.*"]), *SHIPPED],
    package_dir=SHIPPED,
    package_data={
        "": ["*.yaml", "*.safetensors", "*.js", "*.css", "*.html"],
        "deepdisc.simulate": ["data/*", "data/**/*"],
    },
    install_requires=[
        "torch>=2.11,<2.16",
        "torchvision>=0.26,<0.30",
        "numpy>=2.0,<3",
        "scipy>=1.13",
        "astropy>=7",
        "fitsio>=1.2",
        "omegaconf>=2.3,<2.5",
        "pyyaml>=6",
        "pandas>=2.2",
        "pyarrow>=17",
        "pycocotools>=2.0.8",
        "opencv-python-headless>=4.8",
        "safetensors>=0.4.5",
        "matplotlib>=3.9",
        "rich>=13",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["deepdisc = deepdisc.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Astronomy",
    ],
)
