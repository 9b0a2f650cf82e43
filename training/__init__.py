"""Distillation of few-step students (Algorithms 1 and 2 of the paper). Knows no host.

Read in this order:

* `config`: every setting, with its source
* `objective`: the loss, and which (t, t', s) it is taken at
* `pairs`: where states come from: the teacher's own trajectories, or cached latents
* `lora`, `splus`: what is trained: adapters by peft, and the embedding of s of TCF(S+)
* `distill`: the loop
* `state`, `checkpoint`, `report`: what a run keeps and shows
* `run`, `cli`: a run from start to end
"""
