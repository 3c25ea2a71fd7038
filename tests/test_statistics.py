"""The statistics of scores: known values, laws, and lm-eval's own functions where installed."""

import math
import random

import pytest

from evalkit import statistics

VALUES = [1.0, 0.0, 1.0, 1.0, 0.0]


def test_a_mean_and_its_standard_error_have_known_values() -> None:
    assert statistics.mean(VALUES) == 0.6
    assert statistics.sample_stddev(VALUES) == pytest.approx(math.sqrt(0.3))
    assert statistics.standard_error(VALUES) == pytest.approx(math.sqrt(0.3 / 5))


def test_the_standard_error_of_zeros_and_ones_is_the_textbook_formula() -> None:
    n, p = 40, 0.35
    values = [1.0] * 14 + [0.0] * 26
    assert statistics.standard_error(values) == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))


def test_order_does_not_change_a_bit() -> None:
    rng = random.Random(0)
    values = [rng.uniform(-1e6, 1e6) for _ in range(1000)]
    shuffled = rng.sample(values, len(values))
    assert statistics.mean(values) == statistics.mean(shuffled)
    assert statistics.standard_error(values) == statistics.standard_error(shuffled)


def test_one_value_has_no_standard_error() -> None:
    with pytest.raises(AssertionError, match="two values"):
        statistics.standard_error([1.0])


def test_a_weighted_mean_of_groups_is_the_mean_of_their_members() -> None:
    first, second = [1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0, 1.0]
    means = [statistics.mean(first), statistics.mean(second)]
    assert statistics.weighted_mean(means, [3, 5]) == pytest.approx(statistics.mean(first + second))


def test_a_pooled_standard_error_of_one_group_is_its_own() -> None:
    assert statistics.pooled_standard_error([0.25], [17]) == pytest.approx(0.25)


def test_pooling_equal_groups_divides_by_the_root_of_their_number() -> None:
    assert statistics.pooled_standard_error([0.2] * 4, [9] * 4) == pytest.approx(0.1)
    assert statistics.unweighted_standard_error([0.2] * 4) == pytest.approx(0.1)


def test_pooled_and_unweighted_differ_where_sizes_do() -> None:
    errors, sizes = [0.3, 0.01], [10, 1000]
    pooled = statistics.pooled_standard_error(errors, sizes)
    assert pooled < statistics.unweighted_standard_error(errors)


def test_a_uniform_text_has_its_vocabulary_for_perplexity() -> None:
    assert statistics.perplexity([math.log(1 / 50)] * 3) == pytest.approx(50)
    pairs = [(4 * math.log(1 / 50), 4), (2 * math.log(1 / 50), 2)]
    assert statistics.weighted_perplexity(pairs) == pytest.approx(50)
    assert statistics.bits_per_byte([(8 * math.log(0.5), 8)]) == pytest.approx(1)


def test_non_finite_values_stay_what_they_are() -> None:
    assert statistics.mean([1.0, -math.inf]) == -math.inf
    assert math.isnan(statistics.mean([math.inf, -math.inf]))
    assert statistics.perplexity([-math.inf]) == math.inf
    assert statistics.perplexity([-1e9]) == math.inf


def test_an_even_number_of_values_has_the_upper_median() -> None:
    assert statistics.median([4.0, 1.0, 3.0, 2.0]) == 3.0


def test_lm_eval_computes_the_same() -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics")
    rng = random.Random(1)
    values = [float(rng.random() < 0.4) for _ in range(1319)]
    likelihoods = [-rng.expovariate(0.1) for _ in range(500)]
    pairs = [(-rng.expovariate(0.01), rng.randint(1, 400)) for _ in range(500)]
    errors, sizes = [0.02, 0.1, 0.3], [1000, 40, 3]
    scores = [0.5, 0.25, 0.75]
    for ours, theirs in (
        (statistics.mean(values), metrics.mean(values)),
        (statistics.standard_error(values), metrics.mean_stderr(values)),
        (statistics.perplexity(likelihoods), metrics.perplexity(likelihoods)),
        (statistics.weighted_perplexity(pairs), metrics.weighted_perplexity(pairs)),
        (statistics.bits_per_byte(pairs), metrics.bits_per_byte(pairs)),
        (statistics.median(likelihoods), metrics.median(likelihoods)),
        (
            statistics.pooled_standard_error(errors, sizes),
            metrics.pooled_sample_stderr(errors, sizes),
        ),
        (statistics.unweighted_standard_error(errors), metrics.unweighted_mean_stderr(errors)),
        (
            statistics.weighted_mean(scores, sizes),
            metrics.aggregate_subtask_metrics(scores, sizes),
        ),
    ):
        assert ours == pytest.approx(float(theirs), rel=1e-12, abs=0)
