"""Train a speech-image retrieval model.

accelerate launch train.py configs/spoken_shapes.yaml
python train.py configs/spoken_shapes.yaml learning_rate=5e-4 model.projection_dim=128
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
    options = parser.parse_args()
    try:
        arguments = load_arguments(options.config, options.overrides)
        from speech_image_retrieval.training.loop import Trainer  # after the arguments: torch takes seconds to import

        Trainer(arguments).run()
    except (ArgumentError, CorpusError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
