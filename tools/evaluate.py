"""`deepdisc evaluate`: tools/evaluate.py PRED TRUTH --output DIR."""

import sys

from deepdisc.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
