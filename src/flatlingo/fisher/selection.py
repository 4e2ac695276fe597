"""Parameters of a model by name, by group, or by what lies above what."""

from collections.abc import Callable, Iterable

from torch import nn

from flatlingo.errors import FlatlingoError

Selection = str | Iterable[str] | Callable[[str], bool] | None
ABOVE = ("pooler", "head")
WORDS = {"head": "pooler and head", "last_layer": "the encoder's last layer, pooler and head"}


def selected(model: nn.Module, parameters: Selection = None) -> dict[str, nn.Parameter]:
    """Trainable parameters, by name and in the model's order.

    Args:
        model: the model; the words need one of transformers, with or without peft's adapters.
        parameters: "head" (what lies above the encoder: groups pooler and head of `module_group`), "last_layer" (the
            last layer of the encoder's stack, and "head"), names, or a function of the name; None for all.

    Raises:
        FlatlingoError: if none is trainable or selected, a name is not among them, or the model has no such layers.

    >>> list(selected(nn.Linear(2, 2), ["bias"]))
    ['bias']
    """
    check_trainable(model)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if parameters is None:
        return trainable
    belongs = _test(model, parameters, trainable)
    found = {name: parameter for name, parameter in trainable.items() if belongs(name)}
    if not found:
        word = repr(parameters) if isinstance(parameters, str) else "parameters="
        raise FlatlingoError(f"{word} selects none of the model's trainable parameters; they are {_few(trainable)}")
    return found


def check_trainable(model: nn.Module) -> None:
    """Refuse a model that is frozen altogether, as peft loads one unless told otherwise.

    Raises:
        FlatlingoError: with the remedy.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        of_peft = "load the adapter with is_trainable=True, or, for the weights below it too, "
        remedy = f"{of_peft if hasattr(model, 'peft_config') else ''}call model.requires_grad_(True)"
        raise FlatlingoError(f"no parameter of the model requires a gradient: {remedy}")


def is_above_encoder(model: nn.Module, names: Iterable[str]) -> bool:
    """Whether all of some parameters lie in the pooler or the head, so that gradients need not enter the encoder."""
    return all(module_group(model, name) in ABOVE for name in names)


def module_group(model: nn.Module, name: str) -> str:
    """Group of a parameter: embeddings, other embeddings, encoder, pooler or head; "model" where no encoder is known.

    The encoder is known in models of transformers that keep it where their `base_model_prefix` says.

    "embeddings" is the word embedding matrix alone, half of mBERT; "other embeddings" are position and type embeddings
    and what lies beside them (normalisation, projection); "head" is all that lies outside the encoder and its pooler.
    """
    prefix = _encoder_name(model)
    if prefix is None:
        return "model"
    *path, _ = name.split(".")
    words = word_embeddings(model)
    within = [model.get_submodule(".".join(path[:depth])) for depth in range(1, len(path) + 1)]
    if any(module is words for module in within):  # itself, or what peft trains inside
        return "embeddings"
    if "pooler" in path:
        return "pooler"
    if _inside(path)[:1] != [prefix]:
        return "head"
    module = within[-1]
    beside_words = any(part.startswith("embeddings") for part in path)
    return "other embeddings" if beside_words or isinstance(module, nn.Embedding) else "encoder"


def _test(model: nn.Module, parameters: Selection, trainable: dict[str, nn.Parameter]) -> Callable[[str], bool]:
    """Whether a name is selected."""
    if callable(parameters):
        return parameters
    if isinstance(parameters, str) and parameters in WORDS and parameters not in trainable:
        if _encoder_name(model) is None:
            raise FlatlingoError(
                f"{parameters!r} is for models of transformers, which say where their encoder ends, and "
                f"{type(model).__name__} does not; name the parameters"
            )
        layers = _last_layers(model) if parameters == "last_layer" else ()
        return lambda name: name.startswith(layers) or module_group(model, name) in ABOVE
    wanted = {parameters} if isinstance(parameters, str) else set(parameters)
    if missing := wanted - set(trainable):
        raise FlatlingoError(
            f"not among the model's trainable parameters: {', '.join(sorted(missing))}; name some of "
            f"{_few(trainable)}, or say {' or '.join(f'{word!r} ({what})' for word, what in WORDS.items())}"
        )
    return wanted.__contains__


def _last_layers(model: nn.Module) -> tuple[str, ...]:
    """Prefix of the parameters' names in the last layer of the encoder's stack, the last one if there are two.

    The stack is a `ModuleList`; several that lie side by side (XLM) hold one part of each layer. ALBERT uses one layer
    at every depth, so that its last is all of them.
    """
    stacks = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)]
    stacks = [name for name in stacks if not any(name.startswith(f"{other}.") for other in stacks)]
    stacks = [name for name in stacks if _inside(name.split("."))[:1] == [model.base_model_prefix]]
    if not stacks:
        raise FlatlingoError(
            f"the encoder of {type(model).__name__} is no stack of layers; name the parameters instead"
        )
    parent = stacks[-1].rpartition(".")[0]
    beside = [name for name in stacks if name.rpartition(".")[0] == parent]
    return tuple(f"{name}.{len(model.get_submodule(name)) - 1}." for name in beside)


def _inside(path: list[str]) -> list[str]:
    """The path of a module without what torch.compile and peft wrap around the model."""
    for wrapper in (["_orig_mod"], ["base_model", "model"], ["_orig_mod"]):
        path = path[len(wrapper) :] if path[: len(wrapper)] == wrapper else path
    return path


def _encoder_name(model: nn.Module) -> str | None:
    """The name of the module that holds the encoder; None if the model has none of the name that it gives."""
    prefix = getattr(model, "base_model_prefix", None)
    return prefix if any(_inside(name.split("."))[:1] == [prefix] for name, _ in model.named_parameters()) else None


def word_embeddings(model: nn.Module) -> nn.Module | None:
    """The layer of a model's word embeddings; None if it does not say which: a model of one's own need not."""
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # no model of transformers; one with its encoder under another name
        return None


def _few(trainable: dict[str, nn.Parameter]) -> str:
    names = list(trainable)
    return ", ".join(names if len(names) <= 3 else [names[0], "…", *names[-2:]])
