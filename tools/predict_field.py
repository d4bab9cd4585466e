"""`deepdisc predict`: tools/predict_field.py MOSAIC --model NAME|CHECKPOINT --output DIR."""

import sys

from deepdisc.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
