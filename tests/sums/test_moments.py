"""Streamed moments against those of all rows at once, far offsets and constants included."""

import pytest
import torch
from memory_taken import matrices_taken

from optimum_optin.sums import moments as module
from optimum_optin.sums.moments import BlockMoments, Moments, add_up_moments, cholesky, precision_of
from optimum_optin.sums.symmetric import Grams, SymmetricSum, numbers_of, whole


def _rows(count, offset, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, 5, generator=generator) @ torch.randn(5, 5, generator=torch.Generator().manual_seed(9))
    return mixed + offset * torch.arange(1, 6)


def _streamed(rows, weights=None, dtype=torch.float64, shift=None):
    moments = Moments(rows.shape[1], dtype=dtype)
    if shift is not None:
        moments.begin(shift)
    for start in range(0, len(rows), 7):
        part = slice(start, start + 7)
        moments.add(rows[part], None if weights is None else weights[part])
    return moments


def _gram(sums):
    return whole(sums.products.bands(), len(sums.total), "cpu", sums.total.dtype)


def _expected(rows, weights):
    rows = rows.double()
    mean = (rows * weights[:, None]).sum(0) / weights.sum()
    return mean, (rows - mean).T @ ((rows - mean) * weights[:, None]), rows.T @ (rows * weights[:, None])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1e4], ids=["near", "far"])
def test_streamed_sums_are_those_of_all_rows(offset, dtype):
    rows, weights = _rows(50, offset), torch.arange(50).double() % 4
    moments = _streamed(rows, weights, dtype)
    mean, centred, plain = _expected(rows, weights)
    torch.testing.assert_close(moments.mean(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moments.scatter(centred=True), centred, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(moments.scatter(centred=False), plain, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("sizes", [(30, 20), (0, 20), (30, 0)], ids=str)
def test_merged_sums_are_those_of_both(sizes):
    one, other = _rows(sizes[0], 1e3), _rows(sizes[1], 1e3 + 1, seed=1)
    parts = [_streamed(rows, shift=1e3 * torch.arange(1, 6).double()) for rows in (one, other)]
    before = [(each.shift.clone(), _gram(each)) for each in parts]
    merged = parts[0].merged(parts[1])
    mean, centred, _ = _expected(torch.cat([one, other]), torch.ones(sum(sizes)))
    torch.testing.assert_close(merged.mean(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(merged.scatter(centred=True), centred, rtol=1e-5, atol=1e-3)
    assert int(merged.count) == sum(sizes)
    for each, (shift, products) in zip(parts, before, strict=True):
        assert torch.equal(each.shift, shift)
        assert torch.equal(_gram(each), products)


@pytest.mark.parametrize("value", [0.0, 3.0, -2e5])
def test_constant_rows_have_a_covariance_that_can_be_inverted(value):
    moments = _streamed(torch.full((20, 5), value))
    assert not moments.scatter(centred=True).any()
    floor = moments.floor()
    assert (floor > 0).all() == (value != 0)
    assert float(floor.max()) <= 1e-13 * 20 * value**2


def test_a_far_offset_does_not_raise_the_floor_above_the_spread():
    near, far = (_streamed(_rows(200, offset)) for offset in (0.0, 1e3))
    assert float(far.floor().mean() / near.floor().mean()) < 1e4  # by mean squares it would be above 1e6


def test_damping_is_raised_until_there_is_a_factor():
    matrix = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)  # has an eigenvalue of -1
    factor = cholesky(matrix.clone, 0.05)  # of a mean diagonal of 1: 0.05, 0.5, 5
    expected = matrix + 5 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(factor @ factor.T, expected)
    with pytest.raises(ValueError, match="not finite"):
        cholesky((matrix * torch.inf).clone, 1.0)


@pytest.mark.parametrize("features", [3, 128, 261])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("centred", [True, False])
def test_scatter_and_covariance_are_to_the_last_bit_what_all_of_it_at_once_gives(features, dtype, centred):
    """Below the diagonal, which is what LAPACK reads."""

    def at_once(dtype):
        weight, about_shift, mean = (each.to(dtype) for each in (sums.weight, sums.total / sums.weight, sums.mean()))
        scatter = _gram(sums).to(dtype) - (weight * about_shift).outer(about_shift)
        return scatter if centred else scatter + (weight * mean).outer(mean)

    rows = torch.randn(40, features, generator=torch.Generator().manual_seed(1)) + 3
    sums = _streamed(rows, dtype=torch.float64)
    covariance = at_once(torch.float64)
    covariance.diagonal().add_(sums.floor())
    covariance = covariance.div_(sums.weight).to(dtype)
    for found, expected in (
        (sums.scatter(centred, dtype), at_once(dtype)),
        (sums.covariance(centred, dtype), covariance),
    ):
        assert torch.equal(found.tril(), expected.tril())
        assert torch.equal(found, found.T) and found.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_squares_of_a_weight_are_those_of_what_it_makes_of_all_rows(dtype):
    rows, weights = torch.randn(40, 261, generator=torch.Generator().manual_seed(1)), torch.rand(40)
    sums, weight = _streamed(rows, weights, dtype), torch.randn(3, rows.shape[1], dtype=torch.float64)
    written = (rows.double() - sums.shift) @ weight.T
    expected = weights.double() @ written.square().sum(1)
    torch.testing.assert_close(sums.squares_of(weight), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("features", [3, 261])
def test_sums_that_are_merged_are_others(features):
    rows = torch.randn(2, 30, features, generator=torch.Generator().manual_seed(1))
    one, other = (_streamed(each, dtype=torch.float32, shift=torch.ones(features).double()) for each in rows)
    before = [_gram(sums) for sums in (one, other)]
    merged = _gram(one.merged(other))
    assert torch.equal(merged, before[0] + before[1])
    assert torch.equal(_gram(one), before[0]) and torch.equal(_gram(other), before[1])


def test_sums_about_different_shifts_are_not_merged():
    one, other = _streamed(_rows(20, 0.0)), _streamed(_rows(20, 1.0))
    with pytest.raises(ValueError, match="different shifts"):
        one.merged(other)


@pytest.mark.parametrize("features", [3, 261])
def test_sums_that_are_moved_are_about_another_shift(features):
    sums = _streamed(torch.randn(30, features, generator=torch.Generator().manual_seed(1)), dtype=torch.float32)
    before, shift = _gram(sums), sums.shift - 2
    step, total = sums.shift - shift, sums.total.double()
    sums.move(shift)
    moved = (before.double() + total.outer(step) + step.outer(total + sums.weight * step)).float()
    assert torch.equal(_gram(sums).tril(), moved.tril()) and torch.equal(sums.shift, shift)


@pytest.mark.parametrize("centred", [True, False])
def test_blocks_are_those_of_the_whole_covariance(centred):
    rows = torch.randn(50, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    sums = BlockMoments(4, 3)
    for part in rows.split(20):
        sums.add(part)
    moved = rows - rows.mean(0) if centred else rows
    whole = moved.T @ moved / len(rows)
    expected = torch.stack([whole[at : at + 3, at : at + 3] for at in range(0, 12, 3)])
    torch.testing.assert_close(sums.covariance(centred), expected)
    torch.testing.assert_close(sums.total.flatten(), rows.sum(0))
    assert sums.weight == 50 and {each.dtype for each in sums.tensors().values()} == {torch.float64}
    again = BlockMoments(4, 3)
    again.restore({name: value.clone() for name, value in sums.tensors().items()})
    assert torch.equal(again.covariance(centred), sums.covariance(centred))
    with pytest.raises(ValueError):
        BlockMoments(3, 4).restore(sums.tensors())


def test_sums_of_processes_are_taken_about_the_mean_of_all(monkeypatch):
    """Of two processes with the same rows; one of the sums is of no rows on either."""
    rows = _rows(50, 1e3)
    sums, empty = _streamed(rows), Moments(5)
    scatter = sums.scatter(centred=True)
    monkeypatch.setattr(module, "process_count", lambda: 2)
    monkeypatch.setattr(module, "add_up", lambda *each: [tensor.mul_(2) for tensor in each])
    add_up_moments([sums, empty])
    assert sums.count == sums.weight == 100 and empty.count == 0
    torch.testing.assert_close(sums.shift, rows.double().mean(0), rtol=1e-7, atol=0)
    torch.testing.assert_close(sums.mean(), rows.double().mean(0), rtol=1e-7, atol=0)
    torch.testing.assert_close(sums.scatter(centred=True), 2 * scatter, rtol=1e-6, atol=1e-6)
    empty.add(rows)
    torch.testing.assert_close(empty.scatter(centred=True), scatter, rtol=1e-6, atol=1e-6)


def test_one_process_has_nothing_to_add_up(monkeypatch):
    sums = _streamed(_rows(20, 1e3))
    before = {name: value.clone() for name, value in sums.tensors().items()}
    sums.add_up()
    assert all(torch.equal(value, before[name]) for name, value in sums.tensors().items())


def test_sums_of_more_than_1024_features_are_in_float32():
    assert [precision_of(features) for features in (1024, 1025)] == [torch.float64, torch.float32]


@pytest.mark.parametrize("wide", [False, True], ids=["float64", "float32"])
@pytest.mark.parametrize("centred", [False, True])
def test_factor_is_that_of_the_damped_scatter(centred, wide, monkeypatch):
    monkeypatch.setattr("optimum_optin.sums.moments._WIDE", 0 if wide else 4096)
    moments = _streamed(_rows(200, 1.0))
    damping = moments.squares(centred) * 0.01
    factor = moments.factor(centred, damping)
    assert factor.dtype is (torch.float32 if wide else torch.float64)
    expected = moments.scatter(centred) + damping.diag()
    torch.testing.assert_close(moments.scatter(centred).diagonal(), moments.squares(centred))
    torch.testing.assert_close((factor @ factor.T).double(), expected, rtol=1e-5, atol=1e-3)


def test_factor_is_in_float64_where_float32_does_not_do(monkeypatch):
    monkeypatch.setattr("optimum_optin.sums.moments._WIDE", 0)
    rows = _rows(200, 0.0).double()
    moments = Moments(rows.shape[1] + 1)
    moments.add(torch.cat([rows, rows[:, :1]], dim=1).float())  # one column twice: the damping alone keeps them apart
    damping = moments.squares(centred=True) * 1e-12
    factor = moments.factor(True, damping)
    assert factor.dtype is torch.float64
    expected = moments.scatter(centred=True) + damping.diag()
    torch.testing.assert_close(factor @ factor.T, expected, rtol=1e-5, atol=1e-3)  # of sums in float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_symmetric_sums_are_those_of_whole_products(dtype):
    features, expected = 300, torch.zeros(300, 300, dtype=torch.float64)  # two blocks and a part of one
    sums = SymmetricSum(features, "cpu", dtype)
    for seed in range(3):
        rows = torch.randn(20, features, generator=torch.Generator().manual_seed(seed))
        weights = torch.rand(20, 1, generator=torch.Generator().manual_seed(seed))
        sums.add(rows * weights, rows)
        expected += (rows * weights).T.double() @ rows.double()
        if seed:  # asked for in between, and changed
            total = whole(sums.bands(), features, "cpu", dtype)
            torch.testing.assert_close(total.double(), expected, atol=1e-4, rtol=1e-4)
            sums.packed.add_(1)
            expected += 1
    total = whole(sums.bands(), features, "cpu", dtype)
    assert torch.equal(total, total.T) and total.mT.is_contiguous()
    torch.testing.assert_close(total.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("features", [0, 1, 128, 1280, 8192])
def test_half_of_the_numbers_are_kept(features):
    kept = len(SymmetricSum(features, "meta", torch.float32).packed)
    assert kept == numbers_of(features) <= (features + max(128, features / 16)) * features / 2


@pytest.mark.parametrize("features", [1, 128, 129, 300])
def test_grams_are_sums_of_outer_products_by_name(features):
    rows = torch.randn(2, 20, features, generator=torch.Generator().manual_seed(0))
    grams, other = Grams(features, "cpu"), Grams(features, "cpu")
    for name in ("both", "first", "none"):
        grams.expect(name)
    for name in ("both", "first"):
        grams.add(name, rows[0])
    grams.add("both", rows[1])
    other.restore(grams.tensors())
    expected = {"first": rows[0].double().T @ rows[0].double()}
    expected["both"] = expected["first"] + rows[1].double().T @ rows[1].double()
    expected["none"] = torch.zeros(features, features, dtype=torch.float64)
    for name, matrix in expected.items():
        torch.testing.assert_close(grams.matrix(name), matrix, rtol=1e-5, atol=1e-4)  # of sums in float32
        assert torch.equal(grams.matrix(name), grams.matrix(name).T)
        assert torch.equal(other.matrix(name), grams.matrix(name))
    with pytest.raises(ValueError, match="both must be"):
        Grams(features + 1, "cpu").restore(grams.tensors())


@pytest.mark.parametrize("centred", [True, False])
def test_a_damping_is_a_share_of_the_mean_diagonal_and_the_floor(centred):
    moments = Moments(3)
    moments.add(torch.randn(50, 3) * torch.tensor([1.0, 2.0, 3.0]) + 5.0)
    expected = 0.1 * moments.scatter(centred).diagonal().mean() + moments.floor()
    torch.testing.assert_close(moments.damping(centred, 0.1), expected)
    nothing = Moments(3)
    nothing.add(torch.zeros(50, 3))
    assert (nothing.damping(centred, 0.1) > 0).all() and (nothing.damping(centred, 0.0) > 0).all()


@pytest.mark.parametrize("centred", [True, False])
def test_a_factor_takes_the_memory_of_one_matrix(centred):
    features = 3000  # 72 MB, of which what the process does meanwhile is little
    sums = Moments(features)
    sums.add(torch.randn(50, features))
    damping = sums.squares(centred)
    assert matrices_taken(lambda: sums.factor(centred, damping), features) < 1.3
    both = sums.merged(sums)
    assert matrices_taken(lambda: both.factor(centred, damping), features) < 1.3
    assert matrices_taken(lambda: sums.squares_of(torch.ones(3, features)), features) < 0.2
