import numpy as np
import torch

from recipe_ray.eval.methods.moments import EPSILON, RunningMoments


def test_moments_are_those_of_all_vectors_whatever_batches_they_came_in():
    vectors = np.random.default_rng(0).normal(1000, 3, (40, 5)).astype(np.float32)
    moments = RunningMoments(5)
    for part in np.split(vectors, [1, 2, 15]):
        moments.update(torch.from_numpy(part))
    exact = vectors.astype(np.float64)
    np.testing.assert_allclose(moments.mean_C.numpy(), exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.std_C.numpy(), exact.std(0, ddof=1), rtol=1e-9)
    wanted = (exact - exact.mean(0)) / (exact.std(0, ddof=1) + EPSILON)
    np.testing.assert_allclose(moments(torch.from_numpy(vectors)).numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_a_first_vector_by_itself_is_all_mean():
    moments = RunningMoments(3)
    vector = torch.tensor([[1.0, -2.0, 5.0]])
    moments.update(vector)
    assert torch.equal(moments(vector), torch.zeros(1, 3))
