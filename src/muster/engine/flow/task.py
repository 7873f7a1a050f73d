"""Functions marked as tasks."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, overload

from muster.engine.flow.arguments import LEAVES
from muster.engine.flow.directions import IN, Access
from muster.engine.flow.policies import FAIL, Policy
from muster.errors import TaskRefused

P = ParamSpec("P")
R = TypeVar("R")


class Task(Generic[P, R]):
    """A function whose calls are added to the current flow; made by `task`.

    Arguments:
        function: that is marked.
        accesses: directions of its parameters, by name; what is missing is `IN`.
        returns: number of values it returns.
        on_failure: what happens when it raises.
        defaults: its outputs under `IGNORE`.
        cores: that one call takes.
        priority: of two tasks that could run, the one with the higher is first.
        timeout_s: that one attempt may take.
    """

    __name__: str
    __qualname__: str

    def __init__(
        self,
        function: Callable[P, R],
        accesses: dict[str, Access],
        *,
        returns: int = 1,
        on_failure: Policy = FAIL,
        defaults: Sequence[Any] | None = None,
        cores: int | Callable[..., int] = 1,
        priority: float = 0.0,
        timeout_s: float | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        name = self.__name__
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError) as error:
            raise TaskRefused(
                f"@task: {function!r} is no Python function, whose parameters are known"
            ) from error
        kinds = {each.name: each.kind for each in signature.parameters.values()}
        self.parameters = [
            each
            for each, kind in kinds.items()
            if kind not in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
        ]
        open_ended = inspect.Parameter.VAR_KEYWORD in kinds.values()
        for parameter, access in accesses.items():
            if parameter not in kinds and not open_ended:
                raise TaskRefused(
                    f"@task({parameter}=...): {name}() has no parameter {parameter!r}; it has {', '.join(kinds) or 'none'}"
                )
            if not isinstance(access, Access):
                raise TaskRefused(
                    f"@task({parameter}={access!r}): should be a direction such as INOUT, or File(OUT)"
                )
        if returns < 0:
            raise TaskRefused(f"@task(returns={returns}): should be 0 or more")
        if on_failure.end == "IGNORE" and (defaults is None or len(defaults) != returns):
            raise TaskRefused(
                f"@task(on_failure=IGNORE): {name}() needs defaults=(...), one for each of the {returns} values "
                "that it returns"
            )
        self.accesses = {each: access for each, access in accesses.items() if access != IN}
        self.returns, self.on_failure, self.defaults = returns, on_failure, tuple(defaults or ())
        self.cores, self.priority, self.timeout_s = cores, priority, timeout_s

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        from muster.engine.flow.program import current

        return current().submit(self, args, kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        return f"<task {self.__module__}.{self.__qualname__}>"

    def plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether all arguments are numbers, text and the like, so that there is nothing to look for in them."""
        for each in args:
            if type(each) not in LEAVES:
                return False
        return not kwargs or all(type(each) in LEAVES for each in kwargs.values())


def split(name: str, returns: int, returned: Any) -> Sequence[Any]:
    """What a function returned, one value for each of its futures.

    Arguments:
        name: of the task.
        returns: how many there should be.
        returned: by the function.

    Raises:
        TypeError: they are not as many.
    """
    if returns == 1:
        return (returned,)
    if returns == 0:
        return ()
    if not isinstance(returned, tuple | list) or len(returned) != returns:
        count = f"{len(returned)} values" if isinstance(returned, tuple | list) else type(returned).__name__
        raise TypeError(f"{name} returned {count}; @task(returns={returns}) promises {returns}")
    return returned


@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...


@overload
def task(
    *,
    returns: int = 1,
    on_failure: Policy = FAIL,
    defaults: Sequence[Any] | None = None,
    cores: int | Callable[..., int] = 1,
    priority: float = 0.0,
    timeout_s: float | None = None,
    **directions: Access,
) -> Callable[[Callable[P, R]], Task[P, R]]: ...


def task(function: Any = None, /, **options: Any) -> Any:
    """Marks a function as a task: its calls return futures and run as soon as what they need is there.

    ::

        @task
        def simulate(seed): ...

        @task(state=INOUT, on_failure=retry(3, backoff_s=1, on=IOError))
        def advance(state, dt): ...

    Arguments:
        returns: how many values the function returns; each is a future of its own. With 0 a call returns None.
        on_failure: `FAIL`, `IGNORE`, `CANCEL_SUCCESSORS` or `retry`.
        defaults: for `IGNORE`: the values that stand in, one for each that is returned.
        cores: that one call occupies; a function of the same arguments may compute it.
        priority: of tasks that could run, those with a higher one are first.
        timeout_s: for one attempt, in seconds.
        directions: of parameters, by name; `IN` where nothing is said.

    Raises:
        TaskRefused: the declaration does not fit the function.
    """
    if function is not None:
        return Task(function, {})
    known = set(inspect.signature(Task.__init__).parameters) - {"self", "function", "accesses"}
    settings = {
        name: value for name, value in options.items() if name in known and not isinstance(value, Access)
    }
    accesses = {name: value for name, value in options.items() if name not in settings}
    return lambda marked: Task(marked, accesses, **settings)
