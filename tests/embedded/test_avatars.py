"""The data set: pictures that are what their prompts say, drawn the same way each time."""

import json

import numpy as np
import pytest
import torch

from comfyui_tcd.embedded import avatars, prompts
from comfyui_tcd.embedded.avatars import ANY_HAT, SLOT, SLOTS, UNSPECIFIED, draw_images, draw_labels


def draw(count, seed=0, **fixed):
    rng = np.random.default_rng(seed)
    labels = draw_labels(count, rng)
    for slot, value in fixed.items():
        labels[:, SLOT[slot]] = value
    return labels, draw_images(labels, rng)


def test_a_seed_draws_the_same_pictures_and_another_does_not():
    (la, a), (lb, b), (_, c) = draw(50, 1), draw(50, 1), draw(50, 2)
    assert (la == lb).all() and (a == b).all() and (a != c).any()


def test_pictures_are_nearly_all_different():
    _, images = draw(2000)
    assert len(np.unique(images.reshape(2000, -1), axis=0)) >= 1998


def test_the_licence_of_the_drawings_is_with_them():
    data = json.loads(avatars.COMPONENTS.read_text("utf-8"))
    assert data["license"] == "CC0-1.0" and "DiceBear" in data["designer"]


@pytest.mark.parametrize(("slot", "corner"), [("background", (0, 0))])
def test_background_fills_the_corner(slot, corner):
    for value, shades in enumerate(SLOTS[SLOT[slot]].shades, start=1):
        _, images = draw(5, value, background=value, hat=1, length=1)
        wanted = [tuple(bytes.fromhex(s)) for s in shades]
        assert all(tuple(image[corner]) in wanted for image in images)


def test_skin_colour_is_on_the_neck():
    # row 12, columns 7 and 8: below the chin, above most tops; lightened face is above it
    for value, shades in enumerate(SLOTS[SLOT["skin"]].shades, start=1):
        _, images = draw(60, value, skin=value, length=1, beard=1)
        wanted = {tuple(bytes.fromhex(s)) for s in shades}
        share = np.mean([tuple(image[12, 7]) in wanted for image in images])
        assert share > 0.5, (
            f"only {share:.0%} of necks have the skin of {SLOTS[SLOT['skin']].phrases[value - 1]}"
        )


@pytest.mark.parametrize("slot", ["glasses", "beard", "hat"])
def test_said_things_change_the_picture_and_only_there(slot):
    labels, plain = draw(40, 5, **{slot: 1})
    again = labels.copy()
    again[:, SLOT[slot]] = 2
    rng = np.random.default_rng(5)
    draw_labels(40, rng)
    changed = draw_images(again, rng)
    assert (plain != changed).any(axis=(1, 2, 3)).mean() > 0.9
    assert (plain[:, 15] == changed[:, 15]).all()  # the shoulders stay


def test_labels_follow_the_stated_odds():
    labels = draw_labels(20_000, np.random.default_rng(0))
    for i, slot in enumerate(SLOTS):
        seen = np.bincount(labels[:, i], minlength=len(slot.phrases) + 1)[1:] / len(labels)
        assert np.abs(seen - slot.odds).max() < 0.015


def test_forgetting_leaves_the_stated_share_empty():
    rng = np.random.default_rng(0)
    labels = draw_labels(20_000, rng)
    short = avatars.forget(labels, rng)
    empty = (short == UNSPECIFIED).all(1).mean()
    some = (short == UNSPECIFIED).any(1).mean()
    assert abs(empty - 0.12) < 0.01 and abs(some - 0.37) < 0.01
    known = (short != UNSPECIFIED) & (short != ANY_HAT)
    assert (short[known] == labels[known]).all()


def test_incomplete_prompts_are_refused_and_can_be_completed():
    rng = np.random.default_rng(0)
    short = np.zeros((30, len(SLOTS)), np.int64)
    short[:, SLOT["hat"]] = ANY_HAT
    short[:, SLOT["hair"]] = 3
    with pytest.raises(ValueError, match="complete"):
        draw_images(short, rng)
    full = avatars.complete(short, rng)
    assert (full > 0).all() and (full[:, SLOT["hair"]] == 3).all()
    assert ((full[:, SLOT["hat"]] > 1) & (full[:, SLOT["hat"]] < ANY_HAT)).all()
    draw_images(full, rng)


def test_every_prompt_reads_back_to_its_values():
    for labels in draw_labels(200, np.random.default_rng(3)):
        assert prompts.parse(prompts.describe(labels)) == labels.tolist()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("red hair, glasses, hat", {"hair": 6, "glasses": 2, "hat": ANY_HAT}),
        ("  Happy Person ,  short BLACK hair ", {"mood": 1, "length": 1, "hair": 4}),
        ("without glasses, a beard", {"glasses": 1, "beard": 2}),
    ],
)
def test_prompts_are_words(text, values):
    wanted = [values.get(slot.name, UNSPECIFIED) for slot in SLOTS]
    assert prompts.parse(text) == wanted


def test_unknown_words_are_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'purple hair'.*known|Known") as error:
        prompts.parse("happy, purple hair")
    assert "blond hair" in str(error.value) and "night background" in str(error.value)


def test_contradictions_are_named():
    with pytest.raises(ValueError, match="'sad' contradicts 'happy person'"):
        prompts.parse("happy person, sad")


def test_no_prompts_at_all_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        prompts.parse_all([])


def test_images_are_bytes_and_labels_reach_torch():
    labels, images = draw(3)
    assert images.dtype == np.uint8 and images.shape == (3, 16, 16, 3)
    assert torch.from_numpy(labels).dtype == torch.int64
