"""What a container needs beside an engine's command: image, files, cards. Pure."""

from __future__ import annotations

from engine_launchers.base import EnginePlan, LaunchSpec
from engine_launchers.container import Container

_CARDS = "CUDA_VISIBLE_DEVICES"
_ORDER = "CUDA_DEVICE_ORDER"


def in_container(spec: LaunchSpec, plan: EnginePlan) -> LaunchSpec:
    """The spec of a plan whose runtime is one of containers.

    The model and its adapters join the files that it reads. A container is given its cards; where
    they are named by number, which counts anew in there, the variable that hid the others goes.
    """
    cards = tuple(each for each in spec.env.get(_CARDS, "").split(",") if each)
    numbered = any(each.isdigit() for each in cards)
    env = {k: v for k, v in spec.env.items() if not (numbered and k in (_CARDS, _ORDER))}
    model = (plan.model.source, *(each.path for each in plan.model.adapters))
    container = Container(image=plan.image or "", gpus=cards, plan=plan.id)
    files = tuple(dict.fromkeys((*model, *spec.files)))
    return spec.model_copy(update={"env": env, "files": files, "container": container})
