"""Batches of mutually similar pairs: hard negatives mined beyond the batch, then encoded afresh.

Which pairs are hard is read off the queue's similarities; that they share a batch means that both are encoded by the
current model. Past states as negatives would teach the multimodal encoder to recognise age instead of mismatch.
Composing batches this way follows the idea of grouped mini-batches in GRIT-VLP (Byun et al. 2022, arXiv 2208.04060).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .embedding_queue import EmbeddingQueue

# Seeds look for neighbours among this many unused rows: beyond it more candidates hardly make harder negatives, and
# the similarity matrix stays small for corpora of any size.
_POOL = 16_384


def shuffled_batches(count: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """All `count` rows in random order, in batches of row numbers; the last one may be smaller."""
    return list(torch.randperm(count, generator=generator).split(batch_size))


def length_bucketed_batches(lengths: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Random batches of similar speech length: rows are shuffled, sorted by length within windows of 32 batches, and
    the batches are shuffled again.

    Args:
        lengths: (rows,) anything that grows with the duration.
    """
    order = torch.randperm(len(lengths), generator=generator)
    windows = [window[lengths[window].argsort(stable=True)] for window in order.split(32 * batch_size)]
    batches = [batch for window in windows for batch in window.split(batch_size)]
    return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]


def grouped_batches(
    queue: EmbeddingQueue, image_ids: Tensor, batch_size: int, group_size: int, generator: torch.Generator
) -> list[Tensor]:
    """All rows once, in batches that consist of groups: a random seed and its nearest rows of other images.

    Args:
        queue: where similarities are read; rows that are not in it serve as seeds and to fill up batches.
        image_ids: (rows,) int64 image of every row of the corpus.
        group_size: rows a group, seed included.

    Returns:
        Batches of row numbers in random order; while rows are left each has `batch_size`, the last may be smaller.
    """
    speech, image = (torch.zeros(len(image_ids), buffer.shape[1]) for buffer in (queue.speech, queue.image))
    queued_speech, queued_image, _, rows = (part.cpu() for part in queue.contents())
    newest = {row: place for place, row in enumerate(rows.tolist())}  # of a row that is queued twice
    rows, places = torch.tensor(list(newest)), torch.tensor(list(newest.values()))
    if len(newest):
        speech[rows], image[rows] = queued_speech[places], queued_image[places]
    unused = torch.randperm(len(image_ids), generator=generator)
    batches = []
    while len(unused):
        pool = unused[:_POOL]
        batch = _grow_groups(pool, speech, image, image_ids, min(batch_size, len(pool)), group_size)
        batches.append(batch)
        unused = unused[~torch.isin(unused, batch)]
    return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]


def _grow_groups(
    pool: Tensor, speech: Tensor, image: Tensor, image_ids: Tensor, batch_size: int, group_size: int
) -> Tensor:
    """One batch: the first rows of the pool as seeds, each with its most similar rows, filled up from the pool."""
    seeds = pool[: max(1, batch_size // group_size)]
    similarity = speech[seeds] @ image[pool].T + image[seeds] @ speech[pool].T
    similarity.masked_fill_(image_ids[seeds][:, None] == image_ids[pool][None], -torch.inf)
    # Several times as many as wanted, for some are taken by other seeds.
    nearest = pool[similarity.topk(min(4 * group_size, len(pool)), dim=1).indices]
    groups = [[seed] for seed in seeds.tolist()]
    chosen, shown = set(seeds.tolist()), set(image_ids[seeds].tolist())
    for group, candidates in zip(groups, nearest.tolist(), strict=True):
        for row in candidates:
            if len(group) == group_size:
                break
            picture = int(image_ids[row])
            if row not in chosen and picture not in shown:
                group.append(row)
                chosen.add(row)
                shown.add(picture)
    # Groups stay together, so that a batch that is split into micro-batches splits few of them.
    rows = [row for group in groups for row in group]
    rows += [row for row in pool.tolist() if row not in chosen][: max(0, batch_size - len(rows))]
    return torch.tensor(rows[:batch_size])
