"""The parts of TCD Compare that need no host: lists, measures, the recommendation, the sheet and the CSV."""

from __future__ import annotations

import csv
import io
from importlib import import_module
from typing import Any

import pytest
import torch


@pytest.fixture
def cells(nodes: Any) -> Any:
    return import_module("comfyui_tcd.nodes.cells")


@pytest.fixture
def comparison(nodes: Any) -> Any:
    return import_module("comfyui_tcd.nodes.comparison")


def test_a_plan_is_read_from_texts(cells: Any):
    plan = cells.Plan.read(" 2, 4;8\n4,", "0, 0.30", "1, multistep", "0.8,1")
    assert plan == ([2, 4, 8], [0.0, 0.3], ["1", "multistep"], [0.8, 1.0])
    assert len(plan.rows) == 8 and all([c.steps for c in row] == [2, 4, 8] for row in plan.rows)
    assert len(set(plan.cells)) == 24
    assert [row[0].strength for row in plan.rows] == [0.8] * 4 + [1.0] * 4
    assert plan.row_names()[2] == "gamma 0\norder multistep\nLoRA 0.8"
    assert cells.Plan.read("2", "0.3", "1", "1").row_names() == ["gamma 0.3"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": ""}, "^steps: is empty"),
        ({"steps": " , "}, "^steps: is empty"),
        ({"steps": "2, four"}, "^steps: 'four' is not a whole number from 1 to 1000"),
        ({"steps": "0"}, "^steps: '0'"),
        ({"steps": "1001"}, "^steps: '1001'"),
        ({"steps": "2.5"}, "^steps: '2.5'"),
        ({"steps": "\u0664"}, "^steps: "),
        ({"gammas": "0.3, x"}, "^gammas: 'x' is not a number"),
        ({"gammas": "1.2"}, "^gammas: gamma 1.2 is outside 0"),
        ({"gammas": "nan"}, "^gammas: 'nan' is not a finite number"),
        ({"orders": "3"}, "^orders: '3' is not one of 1, 2, multistep"),
        ({"strengths": "inf"}, "^lora_strengths: 'inf'"),
        ({"steps": ",".join(map(str, range(1, 102))), "gammas": "0, 0.1, 0.2, 0.3"}, "404 cells"),
    ],
)
def test_a_mistake_is_named(cells: Any, given: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        cells.Plan.read(**{"steps": "2", "gammas": "0", "orders": "1", "strengths": "1", **given})


def test_orders_are_those_of_the_sampler(cells: Any, nodes: Any):
    assert cells.Plan.read("1", "0", ",".join(nodes.tcd_sss.ORDERS), "1").orders == list(nodes.tcd_sss.ORDERS)


def test_grey_levels(cells: Any):
    image = torch.tensor([-1.0, 0.5, 2.0, 0.3]).reshape(1, 1, 1, 4)
    assert cells.grey_levels(image).tolist() == [[[[0, 128, 255]]]]
    assert cells.grey_levels(torch.ones(2, 3, 4, 1)).shape == (2, 3, 4, 3)


def test_sharpness_is_the_variance_of_the_laplacian(cells: Any):
    flat = torch.full((1, 9, 9, 3), 90, dtype=torch.uint8)
    assert cells.sharpness(flat) == 0
    dot = flat.clone()
    dot[0, 4, 4] = 100  # the Laplacian of a dot of height 10 is -40 in the middle and 10 at four neighbours
    assert cells.sharpness(dot) == pytest.approx((40**2 + 4 * 10**2) / 49, rel=1e-4)
    assert cells.sharpness(torch.cat([flat, dot])) == pytest.approx(cells.sharpness(dot) / 2, rel=1e-4)
    ramp = (torch.arange(9)[:, None] + torch.arange(9)).to(torch.uint8)[None, ..., None].expand(-1, -1, -1, 3)
    assert cells.sharpness(ramp * 3) == pytest.approx(0, abs=1e-6)
    assert cells.sharpness(flat[:, :2]) is None


def test_blur_lowers_sharpness_and_invisible_noise_leaves_complexity(cells: Any):
    generator = torch.Generator().manual_seed(0)
    picture = (torch.rand(1, 8, 8, 1, generator=generator) > 0.5).float()
    picture = picture.repeat_interleave(8, 1).repeat_interleave(8, 2).expand(-1, -1, -1, 3)
    blurred = torch.nn.functional.avg_pool2d(picture.movedim(-1, 1), 3, 1, 1).movedim(1, -1)
    noisy = (picture * 0.9 + 0.02 * torch.rand(picture.shape, generator=generator)).clamp(0, 1)
    sharp, soft, grainy = (cells.measure(x, 0.0, None) for x in (picture, blurred, noisy))
    assert soft.sharpness < 0.5 * sharp.sharpness
    assert grainy.complexity == pytest.approx(sharp.complexity)


def test_distance_is_in_grey_levels(cells: Any):
    a, b = torch.zeros(2, 4, 4, 3), torch.zeros(2, 4, 4, 3)
    b[1] = 1
    assert cells.measure(b, 0.0, a).distance == pytest.approx(255 / 2**0.5)
    assert cells.measure(a, 0.0, a).distance == 0 and cells.measure(a, 0.0, None).distance is None


def test_nan_is_not_measured(cells: Any):
    broken = torch.full((1, 4, 4, 3), float("nan"))
    found = cells.measure(broken, 1.5, torch.zeros(1, 4, 4, 3))
    assert found == (1.5, None, None, None) and "NaN" in cells.caption(found)


def test_the_rule_of_the_recommendation(cells: Any):
    def figures(far: float | None, sharpness: float = 9.0) -> Any:
        return cells.Figures(1.0, sharpness, 1.0, far)

    two, four, eight = (cells.Setting(k, 0.0, "1", 1.0) for k in (2, 4, 8))
    other, second = cells.Setting(4, 0.6, "1", 1.0), cells.Setting(3, 0.0, "2", 1.0)
    teacher = figures(None, 9.0)

    def best(found: dict[Any, Any]) -> Any:
        return cells.recommend(found, teacher)

    assert best({}) is None and cells.recommend({two: figures(None)}, None) is None
    assert best({two: figures(20.0), four: figures(10.9), eight: figures(10.0)}) == four
    assert best({two: figures(20.0), four: figures(11.1), eight: figures(10.0)}) == eight
    assert best({four: figures(10.5), other: figures(10.2), eight: figures(10.0)}) == other
    assert best({second: figures(10.0), four: figures(10.5)}) == four  # 6 evaluations, 4
    assert best({two: figures(None), four: figures(9.0)}) == four
    assert best({two: figures(10.0, 5.9), four: figures(20.0, 6.1), eight: figures(21.0)}) == four
    assert best({two: figures(10.5, 2.0), four: figures(10.0, 2.0)}) == two  # all are blurred


def filled(comparison: Any, count: int = 4, reference: bool = True, batch: int = 1, size: int = 16) -> Any:
    plan = comparison.Plan.read("2, 4", "0, 0.3", "1", "1")
    about = {"sampler": "euler", "scheduler": "normal", "steps": 30, "cfg": 5.0, "seed": 7}
    common = {"seed": 7, "cfg": 1.0, "sampler": "tcd", "lora": "a, b.safetensors"}
    found = comparison.Comparison(plan, common, about if reference else None, 64)
    generator = torch.Generator().manual_seed(1)
    start = torch.rand(batch, size, size, 3, generator=generator)
    if reference:
        found.add(None, start, 2.5)
    for i, cell in enumerate(plan.cells[:count]):
        found.add(cell, (start + 0.1 * (4 - i)).clamp(0, 1), 0.5)
    return found


def test_the_table_reads_back(comparison: Any):
    found = filled(comparison)
    rows = list(csv.DictReader(io.StringIO(found.csv())))
    assert [row["cell"] for row in rows] == ["reference", "tcd", "tcd", "tcd", "tcd"]
    assert [(row["steps"], row["gamma"]) for row in rows[1:]] == [
        ("2", "0.0"), ("4", "0.0"), ("2", "0.3"), ("4", "0.3"),
    ]  # fmt: skip
    assert (
        rows[0]["sampler"] == "euler" and rows[0]["distance"] == "" and rows[1]["lora"] == "a, b.safetensors"
    )
    assert [row["recommended"] for row in rows].count("yes") == 1
    chosen = next(row for row in rows if row["recommended"])
    best = found.recommended
    assert (chosen["steps"], float(chosen["gamma"])) == (str(best.steps), best.gamma)
    assert float(rows[1]["distance"]) > float(rows[4]["distance"]) > 0


def test_words(comparison: Any):
    lines = filled(comparison).words()
    assert lines[0] == "4 of 4 cells" and lines[1].startswith("recommended: 4 steps, gamma 0.3 (distance ")
    lines = filled(comparison, 1, reference=False).words()
    assert lines[0] == "1 of 4 cells" and "reference_sampler is none" in lines[1]


def test_the_sheet_shows_every_picture_where_it_belongs(comparison: Any, nodes: Any):
    sheet_ = import_module("comfyui_tcd.nodes.sheet")
    found = filled(comparison, 3)
    pixels = sheet_.to_image(found.sheet())[0]
    assert pixels.ndim == 3 and pixels.shape[-1] == 3 and float(pixels.max()) == 1
    corners = places(pixels, found)
    assert len({x for _, x in corners.values()}) == 3  # reference, 2 steps, 4 steps
    first, second, third = (corners[cell] for cell in found.plan.cells[:3])
    assert first[0] == second[0] < third[0] and first[1] == third[1] < second[1]
    blank = torch.tensor(sheet_.BLANK) / 255
    y, x = third[0] + 5, second[1] + 5
    assert torch.allclose(pixels[y, x], blank, atol=1e-3)  # the cell that was not run


def places(pixels: torch.Tensor, found: Any) -> dict[Any, tuple[int, int]]:
    """(y, x) where the picture of each cell begins: found by its pixels, each four times as large."""
    out: dict[Any, tuple[int, int]] = {}
    levels = (pixels * 255).round()
    for cell, images in found.pictures.items():
        big = (images[0] * 255).round().repeat_interleave(4, 0).repeat_interleave(4, 1)
        starts = (levels[: -big.shape[0], : -big.shape[1]] == big[0, 0]).all(-1).nonzero().tolist()
        for y, x in starts:
            if torch.equal(levels[y : y + 64, x : x + 64], big):
                out[cell] = (y, x)
                break
        assert cell in out, cell
    return out


def test_batches_and_large_pictures_fit_into_a_cell(nodes: Any):
    sheet = import_module("comfyui_tcd.nodes.sheet")
    images = torch.zeros(5, 16, 16, 3, dtype=torch.uint8)
    assert sheet.batch_picture(images, 100).size == (96, 64)  # 3 by 2, twice as large
    assert sheet.batch_picture(torch.zeros(1, 300, 600, 3, dtype=torch.uint8), 200).size == (200, 100)
    assert sheet.batch_picture(torch.zeros(1, 64, 64, 3, dtype=torch.uint8), 100).size == (64, 64)


def test_the_mark_is_around_the_recommended_cell_alone(comparison: Any, nodes: Any):
    sheet = import_module("comfyui_tcd.nodes.sheet")
    found = filled(comparison)
    pixels = sheet.to_image(found.sheet())[0]
    y, x = places(pixels, found)[found.recommended]
    green = ((pixels * 255).round() == torch.tensor(sheet.MARK)).all(-1)
    assert green[y - 3, x : x + 64].all() and green[y : y + 64, x - 3].all()
    outside = green.clone()
    outside[y - 5 : y + 64 + 25, x - 5 :] = False
    assert not outside.any()
    bare = filled(comparison, reference=False)
    assert not ((sheet.to_image(bare.sheet())[0] * 255).round() == torch.tensor(sheet.MARK)).all(-1).any()
