from __future__ import annotations

import pytest
import torch
from datasets import DatasetDict
from safetensors.torch import load_file
from speech_image_retrieval.corpora.schema import CorpusError, load_corpus
from speech_image_retrieval.training import loop
from speech_image_retrieval.training.arguments import ArgumentError, TrainingArguments
from speech_image_retrieval.training.examples import Collator, ExampleReader, SpokenCaptions
from speech_image_retrieval.training.setup import build_processor
from speech_image_retrieval.training.streaming import StreamedCaptions
from torch.utils.data import DataLoader


@pytest.fixture
def split(tones):
    return load_corpus(tones)["train"]


@pytest.fixture
def processor(make_arguments, tmp_path):
    return build_processor(make_arguments(tmp_path))


@pytest.fixture
def streamed(split, processor):
    def make(rows: int | None = None, seed: int = 0) -> StreamedCaptions:
        stream = split.to_iterable_dataset(num_shards=3)
        return StreamedCaptions(stream, rows or len(split), ExampleReader(processor, seed), seed)

    return make


def batches(examples: StreamedCaptions, processor, sizes, epoch=0, first=0, workers=0):
    examples.start_epoch(epoch)
    loader = DataLoader(
        examples,
        batch_sampler=examples.batch_sampler([list(range(size)) for size in sizes], first),
        collate_fn=Collator(processor.time_axis),
        num_workers=workers,
    )
    return list(loader)


def test_every_row_arrives_once_as_it_is_in_the_corpus(streamed, split, processor):
    examples = streamed()
    plain = SpokenCaptions(split, ExampleReader(processor, 0))
    examples.start_epoch(0)
    (rows,) = examples.batch_sampler([list(range(len(split)))], 0)
    assert sorted(row["caption_id"] for row in rows) == sorted(split["caption_id"])
    for row in rows:
        place = split["caption_id"][:].index(row["caption_id"])
        got, expected = examples[row], plain[place]
        assert torch.equal(got["image"]["pixel_values"], expected["image"]["pixel_values"])
        assert torch.equal(got["speech"]["attention_mask"], expected["speech"]["attention_mask"])


def test_rows_of_one_picture_share_its_id_and_no_others_do(streamed, split):
    examples = streamed()
    examples.start_epoch(0)
    (rows,) = examples.batch_sampler([list(range(len(split)))], 0)
    numbers = {}
    for row in rows:
        numbers.setdefault(row["image_id"], set()).add(examples[row]["image_id"])
    assert all(len(own) == 1 and min(own) >= 0 for own in numbers.values())
    assert len(set.union(*numbers.values())) == len(numbers)


def test_the_order_depends_on_seed_and_epoch_and_not_on_workers(streamed, split, processor):
    count = len(split)
    sizes = [2] * (count // 2)

    def order(**options):
        return torch.cat([batch.rows for batch in batches(streamed(), processor, sizes, **options)]).tolist()

    assert order() == order(workers=2)
    assert order() != order(epoch=1)
    assert sorted(order()) == sorted(order(epoch=1)) or count % 2


def test_an_interrupted_epoch_goes_on_at_its_next_row(streamed, processor):
    whole = batches(streamed(), processor, [1, 2, 1])
    rest = batches(streamed(), processor, [1], first=3)
    assert torch.equal(rest[0].rows, whole[2].rows)


def test_a_stream_shorter_than_stated_is_an_error(streamed, split, processor):
    examples = streamed(rows=len(split) + 1)
    with pytest.raises(CorpusError, match=f"states {len(split) + 1} rows"):
        batches(examples, processor, [len(split) + 1])


@pytest.mark.parametrize(
    "option", [{"feature_cache": True}, {"cache_examples": True}, {"length_bucketing": True}, {"group_size": 2}]
)
def test_what_needs_the_rows_at_hand_is_refused(option):
    (name,) = option
    with pytest.raises(ArgumentError, match=rf"set {name}=.* --source org/name"):
        TrainingArguments(corpus="org/name", output_dir="out", model={"a": 1}, stream=True, **option)


@pytest.fixture
def hub_of_tones(tones, monkeypatch):
    """The corpus of tones as if it were on the Hub."""
    corpus = load_corpus(tones)
    stream = corpus["train"].to_iterable_dataset(num_shards=2)
    monkeypatch.setattr(loop, "load_hub_corpus", lambda corpus_id, without_train: _without_train(corpus))
    monkeypatch.setattr(loop, "stream_training_rows", lambda corpus_id: (stream, len(corpus["train"])))


def _without_train(corpus):
    return DatasetDict({name: rows for name, rows in corpus.items() if name != "train"})


@pytest.mark.usefixtures("hub_of_tones")
def test_a_streamed_run_that_is_interrupted_ends_like_one_that_is_not(make_arguments, tmp_path, monkeypatch):
    def arguments(name):
        return make_arguments(
            tmp_path / name, stream=True, corpus="org/tones", group_size=1, checkpoint_every_steps=4, num_workers=0
        )

    loop.Trainer(arguments("whole")).run()
    optimize = loop.Trainer._optimize

    def interrupted(trainer, batches):
        if trainer.step == 5:
            raise KeyboardInterrupt
        return optimize(trainer, batches)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Trainer, "_optimize", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.Trainer(arguments("resumed")).run()
    loop.Trainer(arguments("resumed")).run()
    whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
