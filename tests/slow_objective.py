"""Oracle of MG3D between encoders and losses: loops over patients, heads and tokens, without padding or masks.

Written from the formulas of the paper and of the published code (gates); tensors here have no batch axis.
"""

import math

import torch
from slow_losses import slow_cml, slow_info_nce, slow_mim, slow_mlm, slow_released_ssm, slow_sal, slow_ssm
from torch.nn import functional as F

from mg3d.models.released import ReleasedMG3D


def norm(vector, part=None, eps=1e-5):
    centred = vector - vector.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled if part is None else scaled * part.weight + part.bias


def attend(parts, queries, tokens, heads):
    """`parts`: linear maps of queries, keys, values and the result."""
    query, key, value = parts[0](queries), parts[1](tokens), parts[2](tokens)
    width, read = query.shape[-1] // heads, []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        weights = [torch.softmax(key[:, own] @ one / math.sqrt(width), 0) for one in query[:, own]]
        read.append(torch.stack([sum(w * v for w, v in zip(row, value[:, own])) for row in weights]))
    return parts[3](torch.cat(read, -1))


def masked_attention(part, queries, tokens):
    return attend((part.query, part.key, part.value, part.output), queries, tokens, part.heads)


def agreement(query, key):
    return torch.sigmoid(query @ key / math.sqrt(len(key)))


def gate_layer(layer, first, second):
    out = []
    for own, other, q, k, v in (
        (first, second, layer.query1, layer.key2, layer.value1),
        (second, first, layer.query2, layer.key1, layer.value2),
    ):
        keys, values = k(other), v(own)
        gates = [sum(agreement(query, key) for key in keys) / len(keys) for query in q(own)]
        out.append(torch.stack([gate * value for gate, value in zip(gates, values)]))
    return out


def fuse(fusion, first, second):
    """Both sets after fusion."""
    for layer in fusion.layers:
        if hasattr(layer, "query1"):
            first, second = gate_layer(layer, first, second)
            continue
        read = masked_attention(layer.attention, norm(first, layer.norm_first), norm(second, layer.norm_second))
        first = first + read
        first = first + layer.mlp(norm(first, layer.norm_mlp))
    return first, second


def pool(part, tokens):
    if hasattr(part, "reduce"):
        return part.join(torch.cat([part.reduce.weight @ norm(token, part.norm) + part.reduce.bias for token in tokens]))
    if len(tokens) == 0:
        return part.empty
    return part.join(masked_attention(part.attention, part.queries, norm(tokens, part.norm)).flatten())


def pool_sentences(part, sentences):
    mean = sentences.mean(0, keepdim=True)
    everything = torch.cat([mean, sentences])
    return attend((part.q_proj, part.k_proj, part.v_proj, part.c_proj), mean, everything, part.heads)[0]


def collapse(part, tokens):
    weighed = sum(weight * token for weight, token in zip(part.fc.weight[0], tokens)) + part.fc.bias
    return torch.tanh(part.dense(weighed))


def project(head, vector):
    out = head.projection.weight @ norm(vector, head.norm)
    return out / out.norm()


def grid_position(position, grid):
    """Position of every token, z-major."""
    rows = []
    for cell in torch.cartesian_prod(*(torch.arange(side, dtype=torch.float64) for side in grid)):
        at = 2 * (cell + 0.5) / torch.tensor(grid) - 1
        waves = [wave(math.pi / 2 * 2**band * at) for band in range(3) for wave in (torch.sin, torch.cos)]
        rows.append(position.linear.weight @ torch.cat([at, *waves]))
    return torch.stack(rows)


def padded(rows):
    """[B, S, d] of ragged lists, for the loops over losses."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


class SlowMG3D:
    """Losses of a model on a batch, by name."""

    def __init__(self, model, batch):
        self.model, self.batch, self.branches = model, batch, model.branches
        self.patients = range(len(batch.volume))
        self.lengths = [int(mask.sum()) for mask in batch.sentence_mask]
        self.released = isinstance(model, ReleasedMG3D)

    # --- tokens of patient b

    def image(self, b, *, masked=False):
        model, volume, mask = self.model, self.batch.volume[b : b + 1], None
        if masked and not self.released:
            mask = self.batch.patch_mask[b : b + 1]
        elif masked:
            volume = volume.clone()
            side = [voxels // count for voxels, count in zip(volume.shape[2:], self.batch.patch_mask.shape[1:])]
            for corner in self.batch.patch_mask[b].nonzero().tolist():
                volume[(0, 0, *(slice(at * step, (at + 1) * step) for at, step in zip(corner, side)))] = 0
        features = model.vision.encode(volume, mask)[0]
        tokens = self.typed_image(features.flatten(1).T)
        return tokens if self.released else tokens + grid_position(model.position, features.shape[1:])

    def typed_image(self, tokens):
        return self.model.project_image(tokens) + self.model.type_embedding.weight[1]

    def report(self, b, ids, attention):
        """Tokens of patient b; padding stays only for the released gates, which count it."""
        vectors = self.model.text(ids[b : b + 1], attention[b : b + 1])[0]
        tokens = self.model.project_report(vectors) + self.model.type_embedding.weight[0]
        return tokens if self.released else tokens[attention[b]]

    def by_sentence(self, tokens, index):
        sentences = [n for n in index.unique().tolist() if n >= 0]
        index = index[: len(tokens)]
        if not sentences:
            return tokens[:0]
        return torch.stack([torch.stack([t for t, i in zip(tokens, index) if i == n]).mean(0) for n in sentences])

    def sentences(self, b):
        tokens = self.report(b, self.batch.report_ids, self.batch.attention_mask)
        means = self.by_sentence(tokens, self.batch.sentence_index[b])
        return means.detach() if self.released else means

    # --- losses

    def recovered(self, b):
        report = self.report(b, self.batch.mlm_ids, self.batch.attention_mask)
        fusion = self.model.fusion_report if self.released else self.branches["report"].fusion
        return fuse(fusion, report, self.image(b))[0]

    def transformed(self, tokens):
        head = self.branches["report"].mlm_head.transform
        return norm(F.gelu(head.dense(tokens)), head.LayerNorm, eps=1e-12)

    def mlm(self):
        head, scores, words = self.branches["report"].mlm_head, [], []
        for b in self.patients:
            tokens = self.transformed(self.recovered(b))
            for index, word in enumerate(self.batch.mlm_labels[b].tolist()):
                if word >= 0:
                    scores.append(head.decoder.weight @ tokens[index] + head.bias)
                    words.append(word)
        return slow_mlm(scores, words)

    def sal(self):
        head, predictions, targets = self.branches["report"].sal_head, [], []
        for b in self.patients:
            tokens, index, ids = self.recovered(b), self.batch.sentence_index[b], self.batch.report_ids[b]
            if self.released:
                with torch.no_grad():
                    true = self.by_sentence(self.model.text.embed_words(ids), index)
                predictions.append(head.prediction(self.by_sentence(self.transformed(tokens), index)))
                targets.append(head.target(true))
                continue
            with torch.no_grad():
                encoder = self.branches["report"].target_text or self.model.text
                length = int(self.batch.attention_mask[b].sum())
                unmasked = encoder(ids[None, :length], torch.ones(1, length, dtype=torch.bool))[0]
                targets.append(norm(self.by_sentence(unmasked, index)))
            predictions.append(head(self.by_sentence(tokens, index)))
        return slow_sal(padded(predictions), padded(targets), self.lengths, per="patient" if self.released else "sentence")

    def mim(self):
        predictions, branch = [], self.branches["volume"]
        for b in self.patients:
            image = self.image(b, masked=True)
            if not self.released:
                image = fuse(branch.fusion, image, self.sentences(b))[0]
            elif self.model.is_miswired:
                report = self.report(b, self.batch.report_ids, self.batch.attention_mask)
                image = fuse(self.model.fusion_report, report, image)[1]
            else:
                image = fuse(self.model.fusion_volume, image, self.sentences(b))[0]
            predictions.append(branch.decoder(image.T.unflatten(1, self.model.grid)[None]))
        side = [voxels // count for voxels, count in zip(self.batch.volume.shape[2:], self.batch.patch_mask.shape[1:])]
        return slow_mim(torch.cat(predictions), self.batch.volume, self.batch.patch_mask, side)

    def keys(self):
        """Patients that share a key are not negatives of each other."""
        return () if self.released else (self.batch.patient_key.tolist(), self.batch.report_key.tolist())

    def vectors(self, b):
        """Released wirings: image and report vector before and after fusion, and the sentences."""
        image, sentences, part = self.image(b), self.sentences(b), self.model.fused_contrast
        image = self.typed_image(image) if self.model.is_miswired else image
        fused_image, fused_sentences = fuse(self.model.fusion_volume, image, sentences)
        return (
            collapse(part.unimodal_image_pool, image),
            pool_sentences(part.unimodal_report_pool, sentences),
            collapse(part.multimodal_image_pool, fused_image),
            pool_sentences(part.multimodal_report_pool, fused_sentences),
            sentences,
        )

    def cml(self):
        if self.released:
            part, first, second = self.model.fused_contrast, [], []
            for b in self.patients:
                image, report, fused_image, fused_report, _ = self.vectors(b)
                first.append(project(part.multimodal_head, torch.cat([fused_report, fused_image])))
                second.append(project(part.unimodal_head, torch.cat([report, image])))
            return slow_info_nce(torch.stack(first), torch.stack(second), 10.0)
        part, scale = self.branches["contrast"], self.branches["contrast"].logit_scale.log_scale.exp()
        image = torch.stack([project(part.image_head, pool(part.image_pool, self.image(b))) for b in self.patients])
        whole = torch.stack([project(part.report_head, pool(part.report_pool, self.sentences(b))) for b in self.patients])
        views = [torch.stack([self.view(b, slot) for b in self.patients]) for slot in range(self.batch.view_ids.shape[1])]
        return slow_cml(image, whole, views, scale, *self.keys(), view_keys=self.batch.view_key.T.tolist())

    def view(self, b, slot):
        """Embedding of patient b's view in this slot, encoded separately."""
        batch, part = self.batch, self.branches["contrast"]
        tokens = self.report(b, batch.view_ids[:, slot], batch.view_attention_mask[:, slot])
        return project(part.report_head, pool(part.report_pool, self.by_sentence(tokens, batch.view_sentence_index[b, slot])))

    def gathered(self, b):
        """(visual side of every sentence, aggregate of all sentences, image vector of DCL)."""
        branch = self.branches["disentangled"]
        part = branch.aggregation
        if self.released:
            image, _, fused_image, _, sentences = self.vectors(b)
            for layer in part.layers:
                gates = [agreement(layer.query2(image), layer.key1(one)) for one in sentences]
                sentences = torch.stack([gate * layer.value1(one) for gate, one in zip(gates, sentences)])
                image = torch.tanh(part.pool.dense(sentences.mean(0)))
            return part.sentence_head(sentences), image, fused_image
        image, gathered = self.image(b), []
        for sentence in self.sentences(b):
            logits = torch.stack([part.query(sentence) @ part.key(token) for token in image]) / math.sqrt(len(sentence))
            gathered.append(sum(weight * part.value(token) for weight, token in zip(logits.softmax(0), image)))
        gathered = torch.stack(gathered)
        vector = pool(branch.image_pool, image) if "dcl" in branch.objectives else None
        return part.sentence_head(gathered), pool(part.pool, gathered), vector

    def dcl(self):
        branch, gathered = self.branches["disentangled"], [self.gathered(b) for b in self.patients]
        first = [project(branch.image_head, vector) for _, _, vector in gathered]
        second = [project(branch.aggregate_head, together) for _, together, _ in gathered]
        scale = 10.0 if self.released else branch.logit_scale.log_scale.exp()
        return slow_info_nce(torch.stack(first), torch.stack(second), scale, *self.keys())

    @torch.no_grad()
    def meanings(self, b):
        """Text side of a patient's sentences."""
        ids, index = self.batch.report_ids[b], self.batch.sentence_index[b]
        inside = [ids[index == n] for n in index.unique().tolist() if n >= 0]
        if self.released:
            alone = [torch.cat([ids[:1], words, ids[self.batch.attention_mask[b]][-1:]]) for words in inside]
            return torch.stack([self.model.text.embed_words(words).mean(0) for words in alone])
        space = self.branches["disentangled"].sentence_space
        weights = [space.word_weight[words] for words in inside]
        vectors = [space.word_vectors[words] for words in inside]
        means = [sum(w * v for w, v in zip(*pair)) / pair[0].sum() for pair in zip(weights, vectors)]
        return torch.stack(means) - space.mean

    def ssm(self):
        visual = padded([self.gathered(b)[0] for b in self.patients])
        text = padded([self.meanings(b) for b in self.patients])
        if self.released:
            return slow_released_ssm(visual, text, self.lengths)
        return slow_ssm(visual, text, self.lengths, self.batch.sentence_polarity.tolist(), self.batch.patient_key.tolist())
