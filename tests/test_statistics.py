"""The statistics of scores: known values, laws, and lm-eval's own functions where installed."""

import math
import random

import pytest

from evalkit.base import statistics

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


# Against scipy and statsmodels


@pytest.mark.parametrize("freedom", [1, 2, 5, 26, 56, 1318, 30_000])
def test_students_t_is_scipys(freedom: int) -> None:
    from scipy import stats

    for t in (0.0, 0.1, 1.0, 2.5, 6.0, 20.0):
        wanted = stats.t.sf(t, freedom)
        assert statistics.t_tail(t, freedom) == pytest.approx(wanted, rel=1e-9, abs=1e-15)
    for share in (0.5, 0.8, 0.95, 0.975, 0.9999):
        wanted = stats.t.ppf(share, freedom)
        assert statistics.t_quantile(share, freedom) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("lost", "gained"), [(0, 0), (1, 0), (0, 6), (3, 9), (10, 10), (400, 460), (5000, 5200)]
)
def test_mcnemar_is_statsmodels_exact_one(lost: int, gained: int) -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    wanted = mcnemar([[50, lost], [gained, 70]], exact=True).pvalue if lost + gained else 1.0
    assert statistics.mcnemar(lost, gained) == pytest.approx(wanted, rel=1e-9)


def test_holm_is_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    rng = random.Random(0)
    for size in (1, 2, 7, 40):
        p_values = [rng.random() ** 3 for _ in range(size)]
        wanted = multipletests(p_values, method="holm")[1]
        assert statistics.holm(p_values) == pytest.approx(list(wanted))


def test_a_cluster_a_document_is_the_paired_t_test_and_its_tost() -> None:
    import numpy as np
    from scipy import stats
    from statsmodels.stats.weightstats import ttost_paired

    source = np.random.default_rng(0)
    before = source.normal(0.5, 0.3, size=80)
    after = before + source.normal(0.02, 0.1, size=80)
    found = statistics.clustered(
        [[(float(b - a), 1.0)] for a, b in zip(before, after, strict=True)]
    )
    wanted = stats.ttest_rel(after, before)
    assert found.p == pytest.approx(wanted.pvalue)
    assert found.interval() == pytest.approx(tuple(wanted.confidence_interval()))
    for margin in (0.01, 0.02, 0.05):
        wanted_p = ttost_paired(after, before, -margin, margin)[0]
        assert found.equivalence(margin) == pytest.approx(wanted_p)


def test_the_clustered_error_is_statsmodels_on_a_constant() -> None:
    """Regression on a constant with errors clustered by group; its small-sample factor with one
    parameter is G/(G-1) (N-1)/(N-1)."""
    import numpy as np
    import statsmodels.api as models

    source = np.random.default_rng(1)
    sizes = [5, 40, 12, 27, 9]
    groups = np.repeat(np.arange(len(sizes)), sizes)
    values = source.normal(0, 1, size=len(groups)) + source.normal(0, 0.5, size=5)[groups]
    pairs = [[(float(v), 1.0) for v in values[groups == g]] for g in range(len(sizes))]
    found = statistics.clustered(pairs)
    wanted = models.OLS(values, np.ones(len(values))).fit(
        cov_type="cluster", cov_kwds={"groups": groups}, use_t=True
    )
    assert found.value == pytest.approx(wanted.params[0])
    assert found.error == pytest.approx(wanted.bse[0])
    assert found.p == pytest.approx(wanted.pvalues[0])


def test_a_difference_without_an_error_claims_nothing() -> None:
    one = statistics.clustered([[(0.5, 1.0), (0.1, 1.0)]])
    assert (one.value, one.error, one.p, one.interval(), one.detectable) == (
        pytest.approx(0.3), None, None, None, None,
    )  # fmt: skip
    assert one.equivalence(0.9) is None


def test_equal_runs_are_equivalent_within_any_margin_and_not_within_none() -> None:
    same = statistics.clustered([[(0.0, 1.0)]] * 10)
    assert same.p == 1.0
    assert same.equivalence(0.01) == 0.0
    off = statistics.clustered([[(0.1, 1.0)]] * 10)
    assert off.equivalence(0.05) == 1.0
    assert off.p == 0.0


def test_the_detectable_difference_is_found_four_times_of_five() -> None:
    import numpy as np

    source = np.random.default_rng(0)
    n, error = 50, 0.1
    design = statistics.Difference(0.0, error, n - 1)
    draws = source.normal(design.detectable, error * math.sqrt(n), size=(2000, n))
    found = [
        statistics.Difference(float(d.mean()), float(d.std(ddof=1)) / math.sqrt(n), n - 1).p
        for d in draws
    ]
    assert sum(p < statistics.ALPHA for p in found if p is not None) / 2000 == pytest.approx(
        statistics.POWER, abs=0.03
    )


@pytest.mark.trust
def test_equal_runs_are_called_different_one_time_in_twenty() -> None:
    """A small share of `python -m bench.calibration`, whose tables are in docs/statistics.md."""
    import numpy as np

    from bench import calibration

    world = calibration.World("bbh", [250] * 27)
    source = np.random.default_rng(0)
    called = [calibration.tested(*world.runs(0.0, source))[0] for _ in range(400)]
    assert sum(p < statistics.ALPHA for p in called) / 400 == pytest.approx(0.05, abs=0.03)
