"""Two other ways to write a reward, made into the one that a rubric calls.

A *one-sample function* says so by its typed, singular argument: ``def f(prompt: str, completion: str) ->
float``. It is called for one sample after the other, and where it raises only that sample fails. An
argument with the name of a dataset column gets that sample's cell.

A *class with set-up* is constructed once per process, with the options, at the first batch; after that
the instance is called like a function, without options.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter
from threading import Lock
from typing import Any

from rewards.base import RewardFunction, completion_text
from rewards.call import is_async
from rewards.signatures.parameters import CONTEXT, parameters
from rollouts.errors import KeelError, UserError, nearest

BATCHED = {"prompt": "prompts", "completion": "completions"}
"""Names of a batch's arguments by the singular name that a one-sample function gives them."""


def takes_one_sample(function: RewardFunction) -> bool:
    """Tell if a function takes a typed ``completion`` and no batch of them."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    if "completion" not in parameters or "completions" in parameters:
        return False
    return parameters["completion"].annotation is not Parameter.empty


def per_sample(function: RewardFunction, options: Mapping[str, Any]) -> RewardFunction:
    """Make a batch function of a one-sample function; ``options`` are the same for every sample."""
    parameters = inspect.signature(function).parameters
    texts = {
        name
        for name in BATCHED
        if name in parameters and parameters[name].annotation in (str, "str")
    }

    singular = {batched: name for name, batched in BATCHED.items()}
    anything = any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())

    def calls(arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        shared = {name: arguments[name] for name in arguments if name in options or name in CONTEXT}
        names = [singular.get(name, name) for name in arguments if name not in shared]
        cells = {
            name: arguments[BATCHED.get(name, name)]
            for name in names
            if name in parameters or anything
        }
        for row in zip(*cells.values(), strict=True):
            sample = dict(zip(cells, row, strict=True))
            yield {**shared, **sample, **{name: completion_text(sample[name]) for name in texts}}

    def batch(**arguments: Any) -> list[Any]:
        return [_attempt(function, call) for call in calls(arguments)]

    async def batch_async(**arguments: Any) -> list[Any]:
        return await asyncio.gather(*(_attempt_async(function, call) for call in calls(arguments)))

    function_of_batch: RewardFunction = batch_async if is_async(function) else batch
    _pretend(
        function_of_batch,
        function,
        [p.replace(name=BATCHED.get(p.name, p.name)) for p in parameters.values()],
    )
    return function_of_batch


def with_set_up(cls: type[Any], construct: Callable[[], Any]) -> RewardFunction:
    """Make a function of a reward class, whose instance is constructed at the first call."""
    lock, instances = Lock(), list[Any]()

    def instance() -> Any:
        with lock:
            if not instances:
                instances.append(construct())
        return instances[0]

    def batch(**arguments: Any) -> Any:
        return instance()(**arguments)

    async def batch_async(**arguments: Any) -> Any:
        return await instance()(**arguments)

    function: RewardFunction = batch_async if inspect.iscoroutinefunction(cls.__call__) else batch
    _, *parameters = inspect.signature(cls.__call__).parameters.values()
    _pretend(function, cls, parameters)
    return function


def check_options(name: str, cls: type[Any], options: Mapping[str, Any], where: str | None) -> None:
    """Refuse a class that cannot be constructed with ``options``, or whose instances are no rewards."""
    # Asking the class itself would find the metaclass's __call__, which constructs.
    if not any("__call__" in vars(base) for base in cls.__mro__):
        raise UserError(
            f"reward {name!r} is a class, not a function",
            where=where,
            cause="its instances cannot be called",
            remedy="give it __call__(self, completions, **columns), or name a function",
        )
    takes = parameters(cls)
    for option in options:
        if not takes.take(option):
            raise UserError(
                f"reward {name!r} does not take the option {option!r}",
                where=where,
                remedy=nearest(option, takes.names) if takes.names else "it takes no options",
            )
    missing = [option for option in takes.required if option not in options]
    if missing:
        raise UserError(
            f"reward {name!r} needs the option {missing[0]!r}",
            where=where,
            remedy=f"add options: {{{missing[0]}: ...}}",
        )


def _attempt(function: RewardFunction, call: Mapping[str, Any]) -> Any:
    try:
        return function(**call)
    except KeelError:
        raise
    except Exception as error:  # of this sample only: a rubric reads it as the sample's failure
        return error


async def _attempt_async(function: RewardFunction, call: Mapping[str, Any]) -> Any:
    try:
        return await function(**call)
    except KeelError:
        raise
    except Exception as error:  # as above
        return error


def _pretend(function: RewardFunction, origin: Any, parameters: Sequence[Parameter]) -> None:
    """Give the function the signature and the documentation of what it wraps."""
    ordered = sorted(parameters, key=lambda p: (p.kind, p.default is not Parameter.empty))
    function.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    function.__doc__, function.__name__ = (
        inspect.getdoc(origin),
        getattr(origin, "__name__", "reward"),
    )
    function.__module__ = getattr(origin, "__module__", __name__)
