"""Noise exchanges pictures between training captions and touches nothing else."""

from collections import Counter

from speech_image_retrieval.corpora.schema import FEATURES, split_from_rows

from benchmarks.noisy_pairs import with_wrong_pictures

ROWS = [
    {
        "image": {"bytes": f"picture {number // 2}".encode(), "path": None},
        "audio": {"bytes": f"caption {number}".encode(), "path": None},
        "image_id": f"id {number // 2}",
        "caption_id": f"caption {number}",
        "text": None,
        "speaker": None,
        "language": "en",
    }
    for number in range(100)
]


def _mixed(share: float, seed: int = 0) -> list[dict]:
    mixed = with_wrong_pictures(split_from_rows(lambda: iter(ROWS)), share, seed)
    assert mixed.features == FEATURES
    return mixed.to_list()


def test_the_share_of_the_captions_has_another_picture_and_all_else_is_as_it_was():
    mixed = _mixed(0.3)
    wrong = [new for new, old in zip(mixed, ROWS, strict=True) if new["image_id"] != old["image_id"]]
    assert 25 <= len(wrong) <= 30, "some may get another copy of their own"
    for new, old in zip(mixed, ROWS, strict=True):
        assert {name: new[name] for name in ("audio", "caption_id")} == {
            name: old[name] for name in ("audio", "caption_id")
        }
        assert new["image"]["bytes"].decode().removeprefix("picture ") == new["image_id"].removeprefix("id ")
    assert Counter(row["image_id"] for row in mixed) == Counter(row["image_id"] for row in ROWS)


def test_nothing_and_everything_can_be_wrong():
    assert _mixed(0.0) == split_from_rows(lambda: iter(ROWS)).to_list()
    assert sum(new["image_id"] == old["image_id"] for new, old in zip(_mixed(1.0), ROWS, strict=True)) <= 5
    assert _mixed(0.3, seed=1) != _mixed(0.3, seed=0)
