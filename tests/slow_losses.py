"""The objectives by loops over patients, sentences, words and voxels, as their formulas read: slow, without masks."""

import torch
from torch.nn import functional as F


def slow_captioning(logits, targets, smoothing):
    terms = []
    for row, words in zip(logits, targets.tolist()):
        for scores, word in zip(row, words):
            if word >= 0:
                log_share = scores - scores.exp().sum().log()
                terms.append(-(1 - smoothing) * log_share[word] - smoothing * log_share.mean())
    return sum(terms) / len(terms)


def slow_mlm(logits, targets):
    """Mean of log sum exp minus the right word's score."""
    return sum(row.exp().sum().log() - row[word] for row, word in zip(logits, targets)) / max(1, len(targets))


def slow_sal(prediction, target, lengths, *, per):
    """Sum of 1 - cosine over real sentences, by sentence or by patient."""
    gaps = [
        1 - F.cosine_similarity(prediction[b, s], target[b, s], dim=0) for b in range(len(lengths)) for s in range(lengths[b])
    ]
    return sum(gaps) / (len(gaps) if per == "sentence" else len(lengths))


def slow_mim(prediction, target, cubes, side):
    """Cube by cube; `side` voxels (z, y, x) of a cube."""
    total, count = 0.0, 0
    for b, *corner in cubes.nonzero().tolist():
        inside = (b, 0, *(slice(at * length, (at + 1) * length) for at, length in zip(corner, side)))
        total, count = total + (prediction[inside] - target[inside]).pow(2).sum(), count + target[inside].numel()
    return total / max(1, count)


def slow_info_nce(first, second, scale, *keys):
    """Rows that agree in one of the keys (lists of numbers) are no wrong answers for one another."""
    total = 0.0
    for one, other in ((first, second), (second, first)):
        for b in range(len(one)):
            kept = [j for j in range(len(one)) if j == b or all(key[j] != key[b] for key in keys)]
            logits = [scale * (one[b] @ other[j]) for j in kept]
            total = total - scale * (one[b] @ other[b]) + torch.logsumexp(torch.stack(logits), 0)
    return total / (2 * len(first))


def slow_sigmoid(first, second, scale, bias, *keys):
    """Every pair on its own, but for those that agree in one of the keys."""
    total = 0.0
    for b in range(len(first)):
        for j in range(len(first)):
            logit = scale * (first[b] @ second[j]) + bias
            if b == j or all(key[j] != key[b] for key in keys):
                total = total - torch.sigmoid(logit if b == j else -logit).log()
    return total / len(first)


def slow_cml(image, report, views, scale, *keys, view_keys):
    """The contrast with whole reports, and its mean with that of the views, slot by slot.

    views: K arrays [B, E]; view_keys: K lists of B numbers; keys and view_keys are empty where nothing is excluded.
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
