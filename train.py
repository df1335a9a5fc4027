"""Train a speech-image retrieval model.

accelerate launch train.py configs/spoken_shapes.yaml
python train.py configs/spoken_shapes.yaml learning_rate=5e-4 model.projection_dim=128
python train.py configs/spoken_coco.yaml --dry-run batch_size=32
python train.py configs/spoken_coco.yaml --stream corpus=org/name
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speech_image_retrieval.training.arguments import TrainingArguments


def main() -> None:
    """Read the configuration and train; a run that was interrupted continues."""
    options = _options()
    # torch takes seconds to import: --help and mistakes are answered before.
    from speech_image_retrieval.corpora.schema import CorpusError
    from speech_image_retrieval.hub_cards.refusal import PublishError
    from speech_image_retrieval.training.arguments import ArgumentError, load_arguments

    try:
        arguments = load_arguments(options.config, options.overrides + ["stream=true"] * options.stream)
        if options.dry_run:
            from speech_image_retrieval.training.dry_run import print_dry_run

            print_dry_run(arguments)
        else:
            from speech_image_retrieval.training.loop import Trainer

            Trainer(arguments, publish=publisher(arguments)).run()
    except ArgumentError as error:
        sys.exit(f"Error: {error}" if _first_of_its_node() else 1)  # the same in all
    except (ChildProcessError, ConnectionAbortedError, CorpusError, FloatingPointError, PublishError) as error:
        sys.exit(f"Error: {error}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="replaces a field of the file")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would train, and the memory it needs")
    parser.add_argument(
        "--stream",
        action="store_true",
        help="read training rows as they arrive from the Hub, from corpus=org/name",
    )
    options, unknown = parser.parse_known_intermixed_args()  # field=value on both sides of the flags
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}. Fields are written field=value, as batch_size=32")
    return options


def _first_of_its_node() -> bool:
    return os.environ.get("LOCAL_RANK", "0") in ("0", "-1")  # -1: not distributed, in older launchers


def publisher(arguments: TrainingArguments) -> Callable[[Path, Mapping[str, Any]], str] | None:
    """What publishes the model of a run. The repository is made now: a missing permission shall cost no training."""
    if arguments.push_to_hub is None:
        return None
    from huggingface_hub import HfApi
    from speech_image_retrieval.hub_cards.commit import make_repository
    from speech_image_retrieval.hub_cards.known_licences import check_license
    from speech_image_retrieval.hub_cards.publishing import Publication, publish_model

    check_license(arguments.license)
    make_repository(HfApi(), arguments.push_to_hub, "model", private=True)

    def publish(folder: Path, example: Mapping[str, Any]) -> str:
        publication = Publication(folder, arguments.push_to_hub, lambda: example, license=arguments.license)
        return publish_model(publication)

    return publish


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        if _first_of_its_node():
            print("Interrupted. The same command goes on from the last checkpoint, if there is one.", file=sys.stderr)
        sys.exit(130)
