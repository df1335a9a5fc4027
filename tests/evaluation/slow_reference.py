"""Evaluation as one would write it down: one query and one pair at a time."""

from __future__ import annotations


def hit_rates(orders: list[list[int]], answers: list[set[int]]) -> dict[str, float]:
    hits = {k: [bool(answers[query] & set(order[:k])) for query, order in enumerate(orders)] for k in (1, 5, 10)}
    return {f"R@{k}": 100 * sum(found) / len(found) for k, found in hits.items()}


def report_of_one_query_at_a_time(model, processor, rows, k):
    """ALBEF's evaluation loop in plain Python; equal scores are ordered against the model."""
    captions = [model.get_speech_features(**processor(audio=[row["audio"]])) for row in rows]
    image_ids = list(dict.fromkeys(row["image_id"] for row in rows))
    pictures = [next(row["image"] for row in rows if row["image_id"] == name) for name in image_ids]
    pictures = [model.get_image_features(**processor(images=[picture])) for picture in pictures]
    right = [[row["image_id"] == name for name in image_ids] for row in rows]

    def coarse(caption, image):
        return (captions[caption].pooler_output @ pictures[image].pooler_output.T).item()

    def fine(caption, image):
        speech = captions[caption]
        return model.match(
            speech.last_hidden_state, speech.attention_mask.bool(), pictures[image].last_hidden_state
        ).item()

    def direction(queries, candidates, pair):
        answers = [{c for c in range(candidates) if right[pair(q, c)[0]][pair(q, c)[1]]} for q in range(queries)]

        def ordered(query, block, score):
            return sorted(block, key=lambda c: (-score(*pair(query, c)), c in answers[query]))

        top = [
            sorted(range(candidates), key=lambda c, q=q: (-coarse(*pair(q, c)), c))[: min(k, candidates)]
            for q in range(queries)
        ]
        rest = [[c for c in range(candidates) if c not in top[q]] for q in range(queries)]
        return {
            "coarse": hit_rates([ordered(q, range(candidates), coarse) for q in range(queries)], answers),
            "reranked": hit_rates(
                [ordered(q, top[q], fine) + ordered(q, rest[q], coarse) for q in range(queries)], answers
            ),
            "rerank_ceiling": 100 * sum(bool(answers[q] & set(top[q])) for q in range(queries)) / queries,
        }

    return {
        "speech_to_image": direction(len(rows), len(image_ids), lambda caption, image: (caption, image)),
        "image_to_speech": direction(len(image_ids), len(rows), lambda image, caption: (caption, image)),
    }
