"""All of MG3D between the encoders and the losses by loops: patient by patient, head by head, without padding or masks.

Written from the formulas of the objective (default wiring) and of the released code (gates); tensors here have no batch axis.
"""

import math

import torch
from slow_losses import slow_cml, slow_info_nce, slow_mim, slow_mlm, slow_released_ssm, slow_sal, slow_ssm
from torch.nn import functional as F


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
        shares = [sum(agreement(query, key) for key in keys) / len(keys) for query in q(own)]
        out.append(torch.stack([share * value for share, value in zip(shares, values)]))
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


def place(position, grid):
    """What tells a token where it lies; z-major."""
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
    """The losses of a model on a batch, by name, each computed when asked for."""

    def __init__(self, model, batch, settings):
        self.model, self.batch, self.settings = model, batch, settings
        self.patients = range(len(batch.volume))
        self.lengths = [int(mask.sum()) for mask in batch.sentence_mask]
        self.gated = hasattr(model.contrast, "unimodal_head")

    # --- tokens of patient b

    def image(self, b, *, masked=False):
        model, volume, hidden = self.model, self.batch.volume[b : b + 1], None
        if masked and model.mim_fill == "token":
            hidden = self.batch.patch_mask[b : b + 1]
        elif masked:
            volume = volume.clone()
            side = [have // cubes for have, cubes in zip(volume.shape[2:], self.batch.patch_mask.shape[1:])]
            for corner in self.batch.patch_mask[b].nonzero().tolist():
                volume[(0, 0, *(slice(at * step, (at + 1) * step) for at, step in zip(corner, side)))] = 0
        features = model.vision.encode(volume, hidden)[0]
        tokens = self.typed_image(features.flatten(1).T)
        return tokens if model.position is None else tokens + place(model.position, features.shape[1:])

    def typed_image(self, tokens):
        return self.model.project_image(tokens) + self.model.type_embedding.weight[1]

    def report(self, b, ids, attention):
        """Tokens of patient b; padding stays only where the released gates count it."""
        vectors = self.model.text(ids[b : b + 1], attention[b : b + 1])[0]
        tokens = self.model.project_report(vectors) + self.model.type_embedding.weight[0]
        return tokens if self.gated else tokens[attention[b]]

    def by_sentence(self, tokens, index):
        numbers = [n for n in index.unique().tolist() if n >= 0]
        index = index[: len(tokens)]
        if not numbers:
            return tokens[:0]
        return torch.stack([torch.stack([t for t, i in zip(tokens, index) if i == n]).mean(0) for n in numbers])

    def sentences(self, b):
        tokens = self.report(b, self.batch.report_ids, self.batch.attention_mask)
        means = self.by_sentence(tokens, self.batch.sentence_index[b])
        return means.detach() if self.gated else means

    # --- losses

    def recovered(self, b):
        report = self.report(b, self.batch.mlm_ids, self.batch.attention_mask)
        return fuse(self.model.fusion_report, report, self.image(b))[0]

    def transformed(self, tokens):
        head = self.model.mlm_head.transform
        return norm(F.gelu(head.dense(tokens)), head.LayerNorm, eps=1e-12)

    def mlm(self):
        head, scores, words = self.model.mlm_head, [], []
        for b in self.patients:
            tokens = self.transformed(self.recovered(b))
            for place, word in enumerate(self.batch.mlm_labels[b].tolist()):
                if word >= 0:
                    scores.append(head.decoder.weight @ tokens[place] + head.bias)
                    words.append(word)
        return slow_mlm(scores, words)

    def sal(self):
        head, predictions, targets = self.model.sal_head, [], []
        for b in self.patients:
            tokens, index, ids = self.recovered(b), self.batch.sentence_index[b], self.batch.report_ids[b]
            with torch.no_grad():
                if self.gated:
                    true = self.by_sentence(self.model.text.embed_words(ids), index)
                else:
                    encoder = self.model.target_text or self.model.text
                    length = int(self.batch.attention_mask[b].sum())
                    unmasked = encoder(ids[None, :length], torch.ones(1, length, dtype=torch.bool))[0]
                    true = norm(self.by_sentence(unmasked, index))
            tokens = self.transformed(tokens) if self.gated else tokens
            predictions.append(head.prediction(self.by_sentence(tokens, index)))
            targets.append(head.target(true) if self.gated else true)
        return slow_sal(padded(predictions), padded(targets), self.lengths, per=self.settings.sal_per)

    def mim(self):
        predictions = []
        for b in self.patients:
            image = self.image(b, masked=True)
            if self.model.mim_reads_tokens:
                report = self.report(b, self.batch.report_ids, self.batch.attention_mask)
                image = fuse(self.model.fusion_report, report, image)[1]
            else:
                image = fuse(self.model.fusion_volume, image, self.sentences(b))[0]
            predictions.append(self.model.mim_head(image.T.unflatten(1, self.model.grid)[None]))
        side = [have // cubes for have, cubes in zip(self.batch.volume.shape[2:], self.batch.patch_mask.shape[1:])]
        return slow_mim(torch.cat(predictions), self.batch.volume, self.batch.patch_mask, side)

    def keys(self):
        """What makes two patients no wrong answers for one another."""
        return (self.batch.patient_key.tolist(), self.batch.report_key.tolist()) if self.settings.exclude_duplicates else ()

    def scale(self, part):
        return part.log_scale.exp() if part.log_scale is not None else torch.tensor(10.0, dtype=torch.float64)

    def vectors(self, b):
        """Of a gated model: image and report vector before and after fusion, and the sentences."""
        image, sentences, part = self.image(b), self.sentences(b), self.model.contrast
        image = self.typed_image(image) if self.model.project_twice else image
        fused_image, fused_sentences = fuse(self.model.fusion_volume, image, sentences)
        return (
            collapse(part.unimodal_image_pool, image),
            pool_sentences(part.unimodal_report_pool, sentences),
            collapse(part.multimodal_image_pool, fused_image),
            pool_sentences(part.multimodal_report_pool, fused_sentences),
            sentences,
        )

    def cml(self):
        part, scale = self.model.contrast, self.scale(self.model.cml_scale)
        if self.gated:
            first, second = [], []
            for b in self.patients:
                image, report, fused_image, fused_report, _ = self.vectors(b)
                first.append(project(part.multimodal_head, torch.cat([fused_report, fused_image])))
                second.append(project(part.unimodal_head, torch.cat([report, image])))
            return slow_info_nce(torch.stack(first), torch.stack(second), scale, *self.keys())
        image = torch.stack([project(part.image_head, pool(part.image_pool, self.image(b))) for b in self.patients])
        whole = torch.stack([project(part.report_head, pool(part.report_pool, self.sentences(b))) for b in self.patients])
        views = [torch.stack([self.view(b, slot) for b in self.patients]) for slot in range(self.batch.view_ids.shape[1])]
        view_keys = self.batch.view_key.T.tolist() if self.settings.exclude_duplicates else []
        return slow_cml(image, whole, views, scale, *self.keys(), view_keys=view_keys)

    def view(self, b, slot):
        """What patient b's view in this slot becomes, read on its own."""
        batch, part = self.batch, self.model.contrast
        tokens = self.report(b, batch.view_ids[:, slot], batch.view_attention_mask[:, slot])
        return project(part.report_head, pool(part.report_pool, self.by_sentence(tokens, batch.view_sentence_index[b, slot])))

    def gathered(self, b):
        """(visual side of every sentence, of all together, the image vector that DCL contrasts)."""
        part = self.model.aggregation
        if self.gated:
            image, _, fused_image, _, sentences = self.vectors(b)
            for layer in part.layers:
                shares = [agreement(layer.query2(image), layer.key1(one)) for one in sentences]
                sentences = torch.stack([share * layer.value1(one) for share, one in zip(shares, sentences)])
                image = torch.tanh(part.pool.dense(sentences.mean(0)))
            return part.sentence_head(sentences), image, fused_image
        image, looked = self.image(b), []
        for sentence in self.sentences(b):
            asked = torch.stack([part.query(sentence) @ part.key(token) for token in image]) / math.sqrt(len(sentence))
            looked.append(sum(weight * part.value(token) for weight, token in zip(asked.softmax(0), image)))
        looked = torch.stack(looked)
        vector = pool(self.model.dcl_pool, image) if self.model.dcl_pool is not None else None
        return part.sentence_head(looked), pool(part.pool, looked), vector

    def dcl(self):
        gathered = [self.gathered(b) for b in self.patients]
        first = [project(self.model.dcl_image_head, vector) for _, _, vector in gathered]
        second = [project(self.model.dcl_aggregate_head, together) for _, together, _ in gathered]
        return slow_info_nce(torch.stack(first), torch.stack(second), self.scale(self.model.dcl_scale), *self.keys())

    @torch.no_grad()
    def meanings(self, b):
        """The text side of a patient's sentences."""
        ids, index = self.batch.report_ids[b], self.batch.sentence_index[b]
        inside = [ids[index == n] for n in index.unique().tolist() if n >= 0]
        if self.gated:
            alone = [torch.cat([ids[:1], words, ids[self.batch.attention_mask[b]][-1:]]) for words in inside]
            return torch.stack([self.model.text.embed_words(words).mean(0) for words in alone])
        space = self.model.sentence_space
        weights = [space.word_weight[words] for words in inside]
        vectors = [space.word_vectors[words] for words in inside]
        means = [sum(w * v for w, v in zip(*pair)) / pair[0].sum() for pair in zip(weights, vectors)]
        return torch.stack(means) - space.mean

    def ssm(self):
        visual = padded([self.gathered(b)[0] for b in self.patients])
        text = padded([self.meanings(b) for b in self.patients])
        if self.settings.ssm_form == "pair_mean":
            return slow_released_ssm(visual, text, self.lengths)
        return slow_ssm(visual, text, self.lengths, self.batch.sentence_polarity.tolist(), self.batch.patient_key.tolist())
