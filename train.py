"""Train a speech-image retrieval model.

accelerate launch train.py configs/spoken_shapes.yaml
python train.py configs/spoken_shapes.yaml learning_rate=5e-4 model.projection_dim=128
python train.py configs/spoken_coco.yaml --dry-run batch_size=32
python train.py configs/spoken_coco.yaml --stream corpus=org/name
"""

from __future__ import annotations

import argparse
import sys

from speech_image_retrieval.corpora.schema import CorpusError
from speech_image_retrieval.training.arguments import ArgumentError, load_arguments


def main() -> None:
    """Read the configuration and train; a run that was interrupted continues."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="replaces a field of the file")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would train, and the memory it needs")
    parser.add_argument(
        "--stream",
        action="store_true",
        help="read training rows as they arrive from the Hub, from corpus=org/name",
    )
    options = parser.parse_intermixed_args()  # field=value on both sides of the flags
    try:
        arguments = load_arguments(options.config, options.overrides + ["stream=true"] * options.stream)
        # After the arguments: torch takes seconds to import.
        if options.dry_run:
            from speech_image_retrieval.training.dry_run import print_dry_run

            print_dry_run(arguments)
        else:
            from speech_image_retrieval.training.loop import Trainer

            Trainer(arguments).run()
    except (ArgumentError, CorpusError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
