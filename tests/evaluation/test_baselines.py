import numpy as np

from mg3d.evaluation.baselines import logistic_scores, pooled_volume
from mg3d.metrics.classification import auroc


def test_pooling_is_the_mean_of_blocks():
    volume = np.random.default_rng(0).random((1, 16, 18, 8), dtype=np.float32)
    blocks = volume[0].reshape(8, 2, 6, 3, 8, 1).mean((1, 3, 5))
    np.testing.assert_allclose(pooled_volume(volume), blocks.ravel(), rtol=1e-6)


def test_logistic_regression_learns_linear_labels_and_leaves_out_unknown_ones():
    random = np.random.default_rng(1)
    train, test = random.normal(size=(200, 5)), random.normal(size=(150, 5))
    train_labels, labels = ((part[:, :2] > 0.3).astype(np.int8) for part in (train, test))
    wrong = train[:, 1] > 1  # these would invert the second label if -1 were a class
    train_labels[wrong, 1] = -1
    scores = logistic_scores(100 * train, train_labels, 100 * test)
    assert scores.shape == (150, 2)
    assert auroc(labels[:, 0], scores[:, 0]) > 0.95
    assert auroc(labels[:, 1], scores[:, 1]) > 0.95


def test_a_label_with_one_class_scores_zero():
    random = np.random.default_rng(2)
    labels = np.stack([np.ones(20), random.integers(0, 2, 20)], 1)
    scores = logistic_scores(random.normal(size=(20, 3)), labels, random.normal(size=(7, 3)))
    assert (scores[:, 0] == 0).all()
    assert len(np.unique(scores[:, 1])) == 7
