"""What becomes what: the nodes and settings of three other packs, as data. docs/migrate.md shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

JETTHU = "JettHu/ComfyUI-TCD"
DFL = "dfl/comfyui-tcd-scheduler"
LICYK = "licyk/ComfyUI-TCD-Sampler"
REGISTRY_ID = "trajectory-consistency"


class Node(NamedTuple):
    """A node of ours: its connections with their types, its widgets in order with their defaults."""

    connections: Mapping[str, str]
    widgets: Mapping[str, Any]
    outputs: Mapping[str, str]  # name -> type


OURS: dict[str, Node] = {
    "TCD_Scheduler": Node(
        {"model": "MODEL"}, {"steps": 4, "denoise": 1.0, "original_steps": 50}, {"SIGMAS": "SIGMAS"}
    ),
    "TCD_Sampler": Node(
        {},
        {"gamma": 0.3, "gamma_end": -1.0, "order": "1", "end": "official", "noise_device": "cpu"},
        {"SAMPLER": "SAMPLER"},
    ),
    "TCD_Settings": Node(
        {"model": "MODEL"},
        {"gamma": 0.3, "gamma_end": -1.0, "order": "1", "end": "official"},
        {"MODEL": "MODEL"},
    ),
}
WIDGET_TYPES = {
    "steps": "INT", "original_steps": "INT", "denoise": "FLOAT", "gamma": "FLOAT", "gamma_end": "FLOAT",
    "order": "COMBO", "end": "COMBO", "noise_device": "COMBO",
}  # fmt: skip


class New(NamedTuple):
    """A node that takes the place of another."""

    type: str
    takes: Mapping[str, str]  # our input -> the old one
    sets: Mapping[str, Any] = {}


class Unequal(NamedTuple):
    """Values of an old input that have no equal here."""

    input: str
    equal: Sequence[Any]  # what has one
    remedy: str


class Rule(NamedTuple):
    """One old node."""

    packs: tuple[str, ...]
    old: str
    widgets: Mapping[str, Any]  # in order, with their defaults
    new: tuple[New, ...]
    outputs: tuple[int | str, ...]  # by old output: the new node with that number, or the input passed on
    difference: str
    unequal: tuple[Unequal, ...] = ()


RULES: dict[str, Rule] = {
    rule.old: rule
    for rule in (
        Rule(
            (JETTHU,),
            "TCDModelSamplingDiscrete",
            {"steps": 4, "scheduler": "simple", "denoise": 1.0, "eta": 0.3},
            (
                New("TCD_Scheduler", {"model": "model", "steps": "steps", "denoise": "denoise"}),
                New("TCD_Sampler", {"gamma": "eta"}, {"end": "official"}),
            ),
            ("model", 1, 0),
            "The model needs no patch and is connected as it comes. The same timesteps, steps and end; the "
            "noise of the steps follows the seed here, so pictures with eta above 0 differ in their details.",
            (
                Unequal(
                    "scheduler",
                    ("simple",),
                    "the official timesteps are used, which simple gave; sgm_uniform missed them there. For "
                    "its sigmas, connect the host's BasicScheduler instead of TCD Scheduler",
                ),
                Unequal(
                    "denoise",
                    (1,),
                    "denoise is diffusers' strength here and may start at another timestep; compare the "
                    "pictures and set it anew if need be",
                ),
            ),
        ),
        Rule(
            (DFL, LICYK),
            "TCDScheduler",
            {"steps": 8},
            (New("TCD_Scheduler", {"model": "model", "steps": "steps"}),),
            (0,),
            "Begins at timestep 999 as the official scheduler does; there it was ddim_uniform, which begins "
            "at 751 with 4 steps and at 876 with 8, so pictures change.",
            (
                Unequal(
                    "steps",
                    range(1, 51),
                    "more than 50 steps are taken from all timesteps (original_steps 0), and 1000 at most",
                ),
            ),
        ),
        Rule(
            (DFL,),
            "SamplerTCD",
            {"gamma": 0.3},
            (New("TCD_Sampler", {"gamma": "gamma"}, {"end": "clean"}),),
            (0,),
            "gamma is obeyed here; there it was ignored and every step was one of DDPM.",
        ),
        Rule(
            (DFL,),
            "SamplerTCD EulerA",
            {"gamma": 0.3},
            (New("TCD_Sampler", {"gamma": "gamma"}, {"end": "clean"}),),
            (0,),
            "gamma counts from the next timestep as in the paper, there from the present one: the same value "
            "adds more noise here.",
        ),
    )
}


class Name(NamedTuple):
    """A sampler's name in the host's lists."""

    pack: str
    difference: str


SETTINGS = {"gamma": 0.3, "gamma_end": -1.0, "order": "1", "end": "clean"}
"""Of licyk's samplers, whose gamma could not be chosen."""
NAMES: dict[str, Name] = {
    "tcd": Name(LICYK, "There every step was one of DDPM, whatever gamma."),
    "tcd_euler_a": Name(LICYK, "gamma counts from the next timestep here, there from the present one."),
}
NEW_NAME = "tcd_sss"
SAMPLERS: dict[str, int] = {"KSampler": 4, "KSamplerAdvanced": 5}
"""The host's nodes with a sampler's name and a model, and the name's place among their widgets."""
SELECT = "KSamplerSelect"
"""The host's node that is replaced by TCD Sampler if it chooses one of the names."""


def values(rule: Rule, old: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All widgets of each new node from the old node's."""
    found: list[dict[str, Any]] = []
    for new in rule.new:
        taken = {ours: old[theirs] for ours, theirs in new.takes.items() if theirs in rule.widgets}
        widgets = {**OURS[new.type].widgets, **new.sets, **taken}
        steps = widgets.get("steps")
        if isinstance(steps, int) and steps > 50:
            widgets |= {"steps": min(steps, 1000), "original_steps": 0}
        found.append(widgets)
    return found


def markdown() -> str:
    """The tables of docs/migrate.md."""
    lines = ["| pack | node or name | here | what differs |", "| --- | --- | --- | --- |"]
    for rule in RULES.values():
        here = ", ".join(f"`{new.type}`" for new in rule.new)
        lines.append(f"| {', '.join(rule.packs)} | `{rule.old}` | {here} | {rule.difference} |")
    for name, entry in NAMES.items():
        hosts = ", ".join(f"`{x}`" for x in SAMPLERS)
        where = f"sampler name `{name}` in {hosts}"
        here = f"`{NEW_NAME}`, and a `TCD_Settings` with gamma 0.3 before the model"
        lines.append(f"| {entry.pack} | {where} | {here} | {entry.difference} |")
        lines.append(f"| {entry.pack} | `{name}` in `{SELECT}` | `TCD_Sampler` with gamma 0.3 | the same |")
    lines += ["", "| node | setting | here |", "| --- | --- | --- |"]
    for rule in RULES.values():
        for widget in rule.widgets:
            taken = [f"`{new.type}`: `{k}`" for new in rule.new for k, v in new.takes.items() if v == widget]
            lines.append(f"| `{rule.old}` | `{widget}` | {', '.join(taken) or 'no equal, see below'} |")
        for i, output in enumerate(rule.outputs):
            to = (
                f"`{rule.new[output].type}`" if isinstance(output, int) else f"what its `{output}` comes from"
            )
            lines.append(f"| `{rule.old}` | output {i} | {to} |")
    lines += ["", "| node | setting | equal | otherwise |", "| --- | --- | --- | --- |"]
    for rule in RULES.values():
        for odd in rule.unequal:
            equal = f"{odd.equal[0]} to {odd.equal[-1]}" if isinstance(odd.equal, range) else odd.equal[0]
            lines.append(f"| `{rule.old}` | `{odd.input}` | {equal} | {odd.remedy} |")
    return "\n".join(lines) + "\n"
