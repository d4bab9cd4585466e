"""`deepdisc prepare`: tools/prepare_dataset.py RECIPE.yaml --output DATASET."""

import sys

from deepdisc.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
