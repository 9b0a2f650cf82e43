"""Distillation of few-step students (Algorithms 1 and 2 of the paper). Knows no host.

Read in this order:

* `config`: every setting, with its source
* `objective`: the loss, and which (t, t', s) it is taken at
* `pairs`, `shards`: where states come from: the teacher's own trajectories, or cached latents
* `lora`, `splus`: what is trained: adapters by peft, and the embedding of s of TCF(S+)
* `distill`: the loop
* `state`, `inputs`, `checkpoint`, `report`: what a run keeps and shows, and with what it may go on
* `processes`, `reading`: a run by several processes, and figures that do not hold up the device
* `run`, `about`, `cli`, `text`: a run from start to end, what its LoRA says of itself, what a user writes

LoRA files, anyone's: `formats` reads and converts them, by the keys of `lora_keys`, the adapters of
`lora_layer`, the layers of `unet_layers`, the settings of `lora_settings` and what `lora_content` makes of a
file; `lora_bases` tells the base model by base_models.json; `lora_report` and `known_loras` say what they are
and how to sample with them; `inspect_lora` and
`convert_lora` are their commands.
"""
