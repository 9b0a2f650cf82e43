"""What becomes what: the nodes and settings of other packs, as data. docs/migrate.md shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

JETTHU = "JettHu/ComfyUI-TCD"
DFL = "dfl/comfyui-tcd-scheduler"
LICYK = "licyk/ComfyUI-TCD-Sampler"
SEEDV = "SeedV's nodes"
LAKSJDJF = "laksjdjf/cgem156-ComfyUI"
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
OUR_NODES = {
    *("TCD_CompareGrid", "TCD_Dataset", "TCD_DatasetFromLatents", "TCD_Distill", "TCD_EmbeddedModel"),
    *("TCD_KSampler", "TCD_LoraLoader", "TCD_Sampler", "TCD_SaveLora", "TCD_Scheduler", "TCD_Settings"),
}
"""All of them, also those that nothing is replaced by."""
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
    replaces_sampling: bool = False  # of its model: what nodes before it had set there had no effect
    former: Mapping[str, str] = {}  # widgets of its first versions, and what they are called since


BY_SIMPLE = "the official timesteps are used, which simple gave"
DENOISE = Unequal(
    "denoise",
    (1,),
    "denoise is diffusers' strength here and may start at another timestep; compare the pictures and set it "
    "anew if need be",
)
GAMMA_OF_NEXT = (
    "gamma counts from the next timestep as in the paper, there from the present one: the same value adds "
    "more noise here."
)
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
                    f"{BY_SIMPLE}; sgm_uniform missed them there. For its sigmas, connect the host's "
                    "BasicScheduler instead of TCD Scheduler",
                ),
                DENOISE,
            ),
            replaces_sampling=True,
        ),
        Rule(
            (SEEDV,),
            "TCD_Sampler(SEEDV)",
            {"steps": 4, "scheduler": "simple", "denoise": 1.0, "eta": 0.3},
            (
                New("TCD_Scheduler", {"model": "model", "steps": "steps", "denoise": "denoise"}),
                New("TCD_Sampler", {"gamma": "eta"}, {"end": "clean"}),
            ),
            ("model", 1, 0),
            "JettHu's node with another sampler: the same timesteps, but every step was one of DDPM there, "
            "whatever eta. eta is obeyed here, so pictures change.",
            (
                Unequal(
                    "scheduler",
                    ("simple",),
                    f"{BY_SIMPLE}. For the sigmas of another, connect the host's BasicScheduler instead of "
                    "TCD Scheduler",
                ),
                DENOISE,
            ),
            replaces_sampling=True,
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
            former={"eta": "gamma"},
        ),
        Rule(
            (DFL,),
            "SamplerTCD EulerA",
            {"gamma": 0.3},
            (New("TCD_Sampler", {"gamma": "gamma"}, {"end": "clean"}),),
            (0,),
            GAMMA_OF_NEXT,
        ),
        Rule(
            (LAKSJDJF,),
            "TCDSampler|cgem156",
            {"gamma": 0.3},
            (New("TCD_Sampler", {"gamma": "gamma"}, {"end": "clean"}),),
            (0,),
            GAMMA_OF_NEXT,
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


STRANGERS: dict[str, str] = {
    "TCD采样器": "classronin/CR-Tools-TCD-Sampler, JettHu's node and SamplerCustom in one. Use TCD KSampler: "
    "步数 is steps, ETA参数 gamma, CFG强度 cfg, 噪波种子 seed and 降噪强度 denoise; without 添加噪波, use "
    "TCD Scheduler, TCD Sampler and SamplerCustom",
}
"""Known nodes that have no equal: their pack, and what to use by hand."""
SET_SAMPLING = {
    "ModelSamplingDiscrete": True, "ModelSamplingContinuousV": True, "ModelSamplingContinuousEDM": False,
    "ModelSamplingStableCascade": False, "ModelSamplingSD3": False, "ModelSamplingAuraFlow": False,
    "ModelSamplingFlux": False, "ModelSamplingLTXV": False, "ModelNoiseScale": False,
}  # fmt: skip
"""The host's nodes that set how a model is sampled; True where they do nothing else to one of SD or SDXL."""
PASS_MODEL = ("Reroute", "LoraLoader", "LoraLoaderModelOnly", "TCD_LoraLoader")
"""Nodes that do the same to a model, however it is sampled."""


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
        old = rule.old.replace("|", "\\|")
        lines.append(f"| {', '.join(rule.packs)} | `{old}` | {here} | {rule.difference} |")
    for name, entry in NAMES.items():
        hosts = ", ".join(f"`{x}`" for x in SAMPLERS)
        where = f"sampler name `{name}` in {hosts}"
        here = f"`{NEW_NAME}`, and a `TCD_Settings` with gamma 0.3 before the model"
        lines.append(f"| {entry.pack} | {where} | {here} | {entry.difference} |")
        lines.append(f"| {entry.pack} | `{name}` in `{SELECT}` | `TCD_Sampler` with gamma 0.3 | the same |")
    lines += ["", "| node | setting | here |", "| --- | --- | --- |"]
    for rule in RULES.values():
        old = rule.old.replace("|", "\\|")
        for widget in rule.widgets:
            taken = [f"`{new.type}`: `{k}`" for new in rule.new for k, v in new.takes.items() if v == widget]
            lines.append(f"| `{old}` | `{widget}` | {', '.join(taken) or 'no equal, see below'} |")
        for i, output in enumerate(rule.outputs):
            to = (
                f"`{rule.new[output].type}`" if isinstance(output, int) else f"what its `{output}` comes from"
            )
            lines.append(f"| `{old}` | output {i} | {to} |")
    lines += ["", "| node | setting | equal | otherwise |", "| --- | --- | --- | --- |"]
    for rule in RULES.values():
        for odd in rule.unequal:
            equal = f"{odd.equal[0]} to {odd.equal[-1]}" if isinstance(odd.equal, range) else odd.equal[0]
            lines.append(f"| `{rule.old}` | `{odd.input}` | {equal} | {odd.remedy} |")
    return "\n".join(lines) + "\n"
