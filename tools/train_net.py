"""`deepdisc train` under the name that detectron2 users know: tools/train_net.py --config-file configs/X.py ..."""

import sys

from deepdisc.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
