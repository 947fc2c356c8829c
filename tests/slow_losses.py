"""The losses as loops over patients, sentences, tokens and voxels, written from their formulas: slow, without masks."""

import torch
from torch.nn import functional as F


def slow_captioning(logits, targets, smoothing):
    terms = []
    for row, words in zip(logits, targets.tolist()):
        for scores, word in zip(row, words):
            if word >= 0:
                log_probability = scores - scores.exp().sum().log()
                terms.append(-(1 - smoothing) * log_probability[word] - smoothing * log_probability.mean())
    return sum(terms) / len(terms)


def slow_mlm(logits, targets):
    """Mean of log sum exp minus the score of the true token."""
    return sum(row.exp().sum().log() - row[word] for row, word in zip(logits, targets)) / max(1, len(targets))


def slow_sal(prediction, target, lengths, *, per):
    """Sum of 1 - cosine over real sentences, per sentence or per patient."""
    gaps = [
        1 - F.cosine_similarity(prediction[b, s], target[b, s], dim=0) for b in range(len(lengths)) for s in range(lengths[b])
    ]
    return sum(gaps) / (len(gaps) if per == "sentence" else len(lengths))


def slow_mim(prediction, target, patch_mask, side):
    """Patch by patch; `side` voxels (z, y, x) of a patch."""
    total, count = 0.0, 0
    for b, *corner in patch_mask.nonzero().tolist():
        inside = (b, 0, *(slice(at * length, (at + 1) * length) for at, length in zip(corner, side)))
        total, count = total + (prediction[inside] - target[inside]).pow(2).sum(), count + target[inside].numel()
    return total / max(1, count)


def differs(keys, others, b):
    """Whether none of the other keys equals that of row b."""
    return all(other != key[b] for key, other in zip(keys, others))


def slow_info_nce(first, second, scale, *keys, extra=()):
    """Rows that share a key (lists of numbers) are not negatives of each other; extra: further (vector, its keys)."""
    total = 0.0
    for anchors, others, further in ((first, second, extra), (second, first, ())):
        for b, anchor in enumerate(anchors):
            vectors = [others[j] for j in range(len(others)) if j == b or differs(keys, [key[j] for key in keys], b)]
            vectors += [vector for vector, its in further if differs(keys, its, b)]
            logits = torch.stack([scale * (anchor @ vector) for vector in vectors])
            total = total - scale * (anchor @ others[b]) + torch.logsumexp(logits, 0)
    return total / (2 * len(first))


def slow_sigmoid(first, second, scale, bias, *keys, extra=()):
    """Every pair separately, except those that share a key; extra as in `slow_info_nce`."""
    total = 0.0
    for b, anchor in enumerate(first):
        negatives = [second[j] for j in range(len(second)) if j != b and differs(keys, [key[j] for key in keys], b)]
        negatives += [vector for vector, its in extra if differs(keys, its, b)]
        total = total - torch.sigmoid(scale * (anchor @ second[b]) + bias).log()
        total = total - sum(torch.sigmoid(-scale * (anchor @ vector) - bias).log() for vector in negatives)
    return total / len(first)


def slow_cml(image, report, views, scale, *keys, view_keys):
    """Mean of the contrast with whole reports and that with views, slot by slot.

    views: K arrays [B, E]; view_keys: K lists of B numbers.
    """
    whole = slow_info_nce(image, report, scale, *keys)
    if not views:
        return whole
    slots = [slow_info_nce(image, view, scale, *keys, *view_keys[slot : slot + 1]) for slot, view in enumerate(views)]
    return (whole + sum(slots) / len(slots)) / 2


def slow_ssm(visual, text, lengths, polarity, patients, same_above=0.9, differ_below=0.6):
    same, different = [], []
    for b in range(len(lengths)):
        for c in range(len(lengths)):
            if patients[b] == patients[c]:
                continue
            for s in range(lengths[b]):
                for t in range(lengths[c]):
                    gap = F.cosine_similarity(text[b, s], text[c, t], dim=0)
                    close = F.cosine_similarity(visual[b, s], visual[c, t], dim=0)
                    if polarity[b][s] != polarity[c][t]:
                        continue
                    if gap >= same_above:
                        same.append((close - gap).abs())
                    elif gap <= differ_below:
                        different.append(close.abs())
    return 0.5 * sum(torch.stack(values).mean() if values else 0.0 for values in (same, different))


def slow_released_ssm(visual, text, lengths, same_above=0.9, differ_below=0.6):
    """Pair of patients by pair of patients, each the mean over all its sentence pairs."""
    total, pairs = 0.0, 0
    for b in range(len(lengths)):
        for c in range(b + 1, len(lengths)):
            near = F.cosine_similarity(text[b, : lengths[b], None], text[c, None, : lengths[c]], dim=-1)
            close = F.cosine_similarity(visual[b, : lengths[b], None], visual[c, None, : lengths[c]], dim=-1)
            high, low = (near >= same_above).double(), (near <= differ_below).double()
            total, pairs = total + (close * (high + low) - near * high).abs().mean(), pairs + 1
    return total / (pairs + 1e-6)
