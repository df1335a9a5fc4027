from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from speech_image_retrieval.training import hard_batches
from speech_image_retrieval.training.embedding_queue import EmbeddingQueue
from speech_image_retrieval.training.hard_batches import grouped_batches, length_bucketed_batches, shuffled_batches
from torch.nn.functional import normalize


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def queue_of(embeddings: torch.Tensor, image_ids: torch.Tensor, rows: torch.Tensor | None = None) -> EmbeddingQueue:
    """A queue in which speech and image of a row have the same embedding."""
    rows = torch.arange(len(embeddings)) if rows is None else rows
    queue = EmbeddingQueue(max(1, len(rows)), embeddings.shape[1])
    queue.enqueue(embeddings[rows], embeddings[rows], image_ids[rows], rows)
    return queue


def clusters(count: int, size: int, captions: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings, image ids and cluster numbers of `count` far-apart clusters of `size` images."""
    torch.manual_seed(0)
    centres = normalize(torch.randn(count, 16), dim=1)
    images = normalize(centres.repeat_interleave(size, dim=0) + 0.05 * torch.randn(count * size, 16), dim=1)
    image_ids = torch.arange(count * size).repeat_interleave(captions)
    return images[image_ids], image_ids, image_ids // size


def assert_every_row_once(batches: list[torch.Tensor], rows: int, batch_size: int) -> None:
    assert sorted(torch.cat(batches).tolist()) == list(range(rows))
    sizes = sorted(map(len, batches), reverse=True)
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert 1 <= sizes[-1] <= batch_size


@given(st.integers(1, 80), st.integers(1, 20), st.integers(0, 100))
def test_shuffled_batches_hold_every_row_once(rows, batch_size, seed):
    assert_every_row_once(shuffled_batches(rows, batch_size, seeded(seed)), rows, batch_size)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=200), st.integers(1, 9), st.integers(0, 100))
def test_length_bucketed_batches_hold_every_row_once(lengths, batch_size, seed):
    batches = length_bucketed_batches(torch.tensor(lengths), batch_size, seeded(seed))
    assert_every_row_once(batches, len(lengths), batch_size)


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=60),
    st.sets(st.integers(0, 59)),
    st.integers(1, 15),
    st.integers(1, 20),
    st.sampled_from([1, 7, 1000]),
    st.integers(0, 100),
)
def test_grouped_batches_hold_every_row_once(ids, queued, batch_size, group_size, pool, seed):
    image_ids = torch.tensor(ids)
    embeddings = normalize(torch.randn(len(ids), 3, generator=seeded(seed)), dim=1)
    rows = torch.tensor(sorted(row for row in queued if row < len(ids)), dtype=torch.long)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hard_batches, "_POOL", max(pool, batch_size))
        batches = grouped_batches(
            queue_of(embeddings, image_ids, rows), image_ids, batch_size, group_size, seeded(seed)
        )
    assert_every_row_once(batches, len(ids), batch_size)


def test_batch_mates_come_from_the_cluster_much_more_often_than_by_chance():
    embeddings, image_ids, cluster = clusters(count=40, size=12)
    queue = queue_of(embeddings, image_ids)

    def same_cluster_share(batches: list[torch.Tensor]) -> float:
        pairs = [(cluster[batch][:, None] == cluster[batch]).float().sum() - len(batch) for batch in batches]
        return (sum(pairs) / sum(len(batch) * (len(batch) - 1) for batch in batches)).item()

    grouped = same_cluster_share(grouped_batches(queue, image_ids, 24, 6, seeded()))
    shuffled = same_cluster_share(shuffled_batches(len(image_ids), 24, seeded()))
    perfect = 5 / 23
    assert grouped > 0.8 * perfect
    assert grouped > 5 * shuffled


def test_neighbours_are_near_across_the_modalities_and_not_within_one():
    """Picture 2 looks like picture 0, but it is picture 1 that matches what is said of 0."""
    x, y, z, w = torch.eye(4)
    queue, image_ids = EmbeddingQueue(3, 4), torch.arange(3)
    queue.enqueue(torch.stack([x, w, z]), torch.stack([y, x, y]), image_ids, image_ids)
    for seed in range(8):
        pair = next(batch for batch in grouped_batches(queue, image_ids, 2, 2, seeded(seed)) if len(batch) == 2)
        if int(pair[0]) != 2:  # the seed stands first
            assert sorted(pair.tolist()) == [0, 1]


@pytest.mark.parametrize("captions", [2, 5])
def test_groups_are_full_of_different_images_although_captions_of_one_image_are_alike(captions):
    embeddings, image_ids, cluster = clusters(count=30, size=10, captions=captions)
    order = []
    with pytest.MonkeyPatch.context() as patch:
        grow = hard_batches._grow_groups
        patch.setattr(hard_batches, "_grow_groups", lambda *a: order.append(grow(*a)) or order[-1])
        grouped_batches(queue_of(embeddings, image_ids), image_ids, 8, 8, seeded())
    for group in order[: len(order) // 4]:  # later groups find their images used up
        assert len(set(image_ids[group].tolist())) == 8
        assert len(set(cluster[group].tolist())) == 1


def test_no_other_caption_of_the_seeds_image_counts_as_its_neighbour():
    embeddings, image_ids, _ = clusters(count=1, size=30, captions=2)
    for seed in range(5):
        queue, seeds = queue_of(embeddings, image_ids), []
        with pytest.MonkeyPatch.context() as patch:
            grow = hard_batches._grow_groups
            patch.setattr(hard_batches, "_grow_groups", lambda *a, g=grow, s=seeds: s.append(g(*a)) or s[-1])
            grouped_batches(queue, image_ids, 4, 4, seeded(seed))
        assert len(set(image_ids[seeds[0]].tolist())) == 4


@pytest.mark.parametrize("batches_of", ["shuffled", "bucketed", "grouped"])
def test_batches_depend_on_the_generator_alone(batches_of):
    embeddings, image_ids, _ = clusters(count=10, size=6)
    queue, lengths = queue_of(embeddings, image_ids), torch.randint(1, 50, (60,))

    def made(seed: int) -> list[list[int]]:
        torch.manual_seed(torch.seed() % 1000)
        generator = seeded(seed)
        batches = {
            "shuffled": lambda: shuffled_batches(60, 8, generator),
            "bucketed": lambda: length_bucketed_batches(lengths, 8, generator),
            "grouped": lambda: grouped_batches(queue, image_ids, 8, 4, generator),
        }[batches_of]()
        return [batch.tolist() for batch in batches]

    assert made(3) == made(3)
    assert made(3) != made(4)


def test_an_empty_queue_gives_batches_in_random_order():
    image_ids = torch.arange(40)
    batches = grouped_batches(EmbeddingQueue(8, 3), image_ids, 8, 4, seeded())
    assert_every_row_once(batches, 40, 8)
    assert torch.cat(batches).tolist() != list(range(40))


def test_of_a_row_that_was_queued_twice_the_newer_embedding_counts():
    """The ring has wrapped: row 0's new embedding stands before its old one, by which row 2 was its neighbour."""
    right, sixty_degrees, up = torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5], [0.0, 1.0]])
    queue, image_ids = EmbeddingQueue(4, 2), torch.arange(3)
    for row, embedding in [(1, sixty_degrees), (0, right), (1, sixty_degrees), (2, right), (0, up)]:
        queue.enqueue(embedding[None], embedding[None], torch.tensor([row]), torch.tensor([row]))
    for seed in range(8):
        pairs = [sorted(batch.tolist()) for batch in grouped_batches(queue, image_ids, 2, 2, seeded(seed))]
        assert [0, 2] not in pairs


def test_length_bucketing_pads_far_less_than_shuffling():
    lengths = torch.randint(10, 1000, (2000,), generator=seeded())

    def padding(batches: list[torch.Tensor]) -> int:
        return sum(int(lengths[batch].max() * len(batch) - lengths[batch].sum()) for batch in batches)

    bucketed = length_bucketed_batches(lengths, 16, seeded())
    assert padding(bucketed) < 0.2 * padding(shuffled_batches(2000, 16, seeded()))
    means = torch.stack([lengths[batch].float().mean() for batch in bucketed])
    assert (means[1:] > means[:-1]).float().mean() < 0.7, "batches must not come sorted by length"
