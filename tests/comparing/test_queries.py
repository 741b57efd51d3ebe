"""Kinds of output of queries against loops over queries and pixels, and their probes against the curvature."""

import math

import pytest
import torch

from optimum_optin.comparing.losses import output_distance, probe_output
from optimum_optin.comparing.queries import BOXES, MASKS, QueryKind

QUERIES, CLASSES, PIXELS = 5, 4, 9


def _kind(place, exclusive):
    return QueryKind(QUERIES, CLASSES, exclusive, place)


def _outputs(place, samples=2, seed=0):
    """Teacher's and student's outputs, float64."""
    generator = torch.Generator().manual_seed(seed)
    rows = samples * QUERIES
    logits = 2 * torch.randn(2, rows, CLASSES, generator=generator, dtype=torch.float64)
    if place is MASKS:
        places = 3 * torch.randn(2, rows, PIXELS, generator=generator, dtype=torch.float64)
    else:
        places = 0.1 + 0.5 * torch.rand(2, rows, 4, generator=generator, dtype=torch.float64)
        places[1] = places[0] + 0.05 * (places[1] - places[0])
    return torch.cat([logits, places], dim=-1)


def _sigmoid(value):
    return 1 / (1 + math.exp(-value))


def _binary(teacher, student):
    """KL divergence of two probabilities."""
    return teacher * math.log(teacher / student) + (1 - teacher) * math.log((1 - teacher) / (1 - student))


def _row_distance(student, teacher, place, exclusive, temperature):
    logits, sure = student[:CLASSES], teacher[:CLASSES]
    if exclusive:
        shares = [(each / temperature).softmax(0).tolist() for each in (logits, sure)]
        found = sum(true * math.log(true / guess) for guess, true in zip(*shares, strict=True))
        objects = 1 - float(sure.softmax(0)[-1])
    else:
        pairs = zip(logits.tolist(), sure.tolist(), strict=True)
        found = sum(_binary(_sigmoid(true / temperature), _sigmoid(guess / temperature)) for guess, true in pairs)
        objects = max(_sigmoid(true) for true in sure.tolist())
    found *= temperature**2
    pairs = list(zip(student[CLASSES:].tolist(), teacher[CLASSES:].tolist(), strict=True))
    if place is MASKS:
        area = max(1.0, sum(_sigmoid(true) for _, true in pairs))
        apart = sum(_binary(_sigmoid(true / temperature), _sigmoid(guess / temperature)) for guess, true in pairs)
        return found + objects * temperature**2 * apart / area
    width, height = max(pairs[2][1], 0.01), max(pairs[3][1], 0.01)
    apart = sum(((guess - true) / side) ** 2 for (guess, true), side in zip(pairs, [width, height] * 2, strict=True))
    return found + objects * apart


CASES = [(place, exclusive) for place in (MASKS, BOXES) for exclusive in (True, False)]
IDS = [
    f"{'masks' if place is MASKS else 'boxes'}, {'softmax' if exclusive else 'sigmoids'}" for place, exclusive in CASES
]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(("place", "exclusive"), CASES, ids=IDS)
def test_distance_is_the_mean_over_queries(place, exclusive, temperature):
    student, teacher = _outputs(place)
    rows = [
        _row_distance(one, other, place, exclusive, temperature) for one, other in zip(student, teacher, strict=True)
    ]
    kind = _kind(place, exclusive)
    assert float(kind.distance(student, teacher, temperature)) == pytest.approx(sum(rows) / len(rows), rel=1e-9)
    assert float(output_distance(teacher, teacher, temperature, kind)) == 0


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(("place", "exclusive"), CASES, ids=IDS)
def test_shaped_noise_has_the_curvature_of_the_distance(place, exclusive, temperature):
    """Noise is shaped by a linear map S; half of the distance's Hessian at the teacher must be S S^T."""
    kind = _kind(place, exclusive)
    teacher = _outputs(place, samples=1)[0]
    size = teacher.numel()
    hessian = torch.autograd.functional.hessian(
        lambda values: kind.distance(values.view_as(teacher), teacher, temperature), teacher.flatten()
    )
    columns = [kind.shaped(unit.view_as(teacher), teacher, temperature).flatten() for unit in torch.eye(size).double()]
    root = torch.stack(columns, dim=1)
    torch.testing.assert_close(root @ root.T / len(teacher), hessian / 2, rtol=1e-6, atol=1e-9)


def test_a_query_without_an_object_has_no_place():
    student, teacher = _outputs(MASKS)
    teacher[:, CLASSES - 1] = 60  # "no object", for sure
    student[:, :CLASSES] = teacher[:, :CLASSES]
    assert float(_kind(MASKS, True).distance(student, teacher, 1.0)) == pytest.approx(0, abs=1e-12)


def test_size_of_the_object_does_not_matter():
    """Twice as large a box, or as many pixels of the same kind, with the same error in proportion."""
    student, teacher = _outputs(BOXES)
    larger = [torch.cat([each[:, :CLASSES], 2 * each[:, CLASSES:]], dim=1) for each in (student, teacher)]
    kind = _kind(BOXES, True)
    assert float(kind.distance(*larger, 1.0)) == pytest.approx(float(kind.distance(student, teacher, 1.0)), rel=1e-9)
    student, teacher = _outputs(MASKS)
    teacher[:, CLASSES] = 5  # so that every object covers a pixel at least
    more = [torch.cat([each, each[:, CLASSES:]], dim=1) for each in (student, teacher)]
    kind = _kind(MASKS, True)
    assert float(kind.distance(*more, 1.0)) == pytest.approx(float(kind.distance(student, teacher, 1.0)), rel=1e-9)


@pytest.mark.parametrize("exclusive", [True, False])
def test_masks_agree_by_the_map_of_classes(exclusive):
    student, teacher = _outputs(MASKS, samples=3)
    kind = _kind(MASKS, exclusive)
    maps = []
    for output in (student, teacher):
        classes = []
        for sample in output.view(3, QUERIES, -1):
            for pixel in range(PIXELS):
                scores = []
                for label in range(CLASSES - 1 if exclusive else CLASSES):
                    shares = [
                        (row[:CLASSES].softmax(0) if exclusive else row[:CLASSES].sigmoid())[label] for row in sample
                    ]
                    masks = [_sigmoid(float(row[CLASSES + pixel])) for row in sample]
                    scores.append(sum(float(share) * mask for share, mask in zip(shares, masks, strict=True)))
                classes.append(scores.index(max(scores)))
        maps.append(classes)
    expected = sum(one == other for one, other in zip(*maps, strict=True)) / len(maps[0])
    assert 0 < expected < 1
    assert kind.agreement(len(student), kind.sums(student, teacher)) == pytest.approx(expected)


def _box_overlap(some, others):
    edges = []
    for x, y, width, height in (some, others):
        edges.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    (left, top, right, bottom), (left2, top2, right2, bottom2) = edges
    shared = max(0, min(right, right2) - max(left, left2)) * max(0, min(bottom, bottom2) - max(top, top2))
    return shared / (some[2] * some[3] + others[2] * others[3] - shared)


@pytest.mark.parametrize("exclusive", [True, False])
def test_boxes_agree_by_what_either_model_sees(exclusive):
    student, teacher = _outputs(BOXES, samples=4)
    student[:, :CLASSES] = teacher[:, :CLASSES] + 0.5 * student[:, :CLASSES]
    student[1::7, CLASSES] += 0.5  # somewhere else
    compared = agreeing = 0
    for one, other in zip(student, teacher, strict=True):
        seen = []
        for row in (one, other):
            best = int(row[:CLASSES].argmax())
            sees = best < CLASSES - 1 if exclusive else _sigmoid(float(row[best])) > 0.5
            seen.append(best if sees else None)
        compared += seen != [None, None]
        same = seen[0] is not None and seen[0] == seen[1]
        agreeing += same and _box_overlap(one[CLASSES:].tolist(), other[CLASSES:].tolist()) > 0.5
    kind = _kind(BOXES, exclusive)
    assert 0 < agreeing < compared
    assert kind.agreement(len(student), kind.sums(student, teacher)) == pytest.approx(agreeing / compared)


def test_nothing_seen_says_nothing_of_agreement():
    student, teacher = _outputs(BOXES)
    for each in (student, teacher):
        each[:, CLASSES - 1] = 60
    kind = _kind(BOXES, True)
    assert kind.agreement(len(student), kind.sums(student, teacher)) is None


@pytest.mark.parametrize(("place", "exclusive"), CASES, ids=IDS)
def test_probes_estimate_the_distance(place, exclusive):
    """For a small change, the mean square of the probes' slopes along it is the distance."""
    kind = _kind(place, exclusive)
    teacher = _outputs(place)[0].float()
    change = 1e-2 * torch.randn(teacher.shape, generator=torch.Generator().manual_seed(1))
    change[:, CLASSES:] *= 0.1 if place is BOXES else 1
    expected = float(kind.distance((teacher + change).double(), teacher.double(), 1.0))
    generator, squares = torch.Generator().manual_seed(2), []
    for _ in range(4000):
        values = teacher.clone().requires_grad_()
        (slope,) = torch.autograd.grad(probe_output(values, 1.0, kind, generator), values)
        squares.append(float((slope * change).sum()) ** 2)
    assert sum(squares) / len(squares) == pytest.approx(expected, rel=0.1)
