"""Evaluation beside a pool: merging does not wait for it."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

from muster.engine.pool.course import Version
from muster.engine.pool.updates import Arrays
from muster.engine.records import TableWriter
from muster.engine.run_folder import RunFolder
from muster.training.application import Application
from muster.training.evaluation import evaluate_exact
from muster.training.federated.local_training import load_weights


class Evaluator:
    """Measures versions of the model in a thread of its own, in their order, and records what it finds.

    Arguments:
        application: says how.
        run: where to.
        attempt: of the run.
        model: the first one, which is measured at once unless that was done before.
    """

    def __init__(self, application: Application, run: RunFolder, attempt: int, model: Arrays) -> None:
        self._application, self._attempt = application, attempt
        self._epoch = run.state()["epoch_unix_s"]
        self._measured = {int(step) for step in run.table("metrics").column("step").to_pylist()}
        self._writer = TableWriter(run.tables, "metrics", "pool")
        self._items = application.evaluation_data()
        self._model = application.build_model()
        self._waiting: queue.Queue[Version | None] = queue.Queue()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._measure_all, name="muster-evaluation", daemon=True)
        self.put(Version(0, model, {}))

    def __enter__(self) -> Evaluator:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._waiting.put(None)
        self._thread.join()
        self._writer.close()

    def put(self, version: Version) -> None:
        """Has a version measured, if it was not before.

        Raises:
            Exception: whatever the application raised while it measured an earlier one.
        """
        if self._failure is not None:
            raise self._failure
        if len(self._items):
            self._waiting.put(version)

    def last(self, version: Version) -> None:
        """Has the last version measured, and waits until all are.

        Raises:
            Exception: whatever the application raised.
        """
        self.put(version)
        self._waiting.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _measure_all(self) -> None:
        while (version := self._waiting.get()) is not None:
            try:
                self._measure(version)
            except BaseException as error:
                self._failure = error
                return

    def _measure(self, version: Version) -> None:
        if version.number in self._measured:
            return
        self._measured.add(version.number)
        load_weights(self._model, version.model)
        found = evaluate_exact(self._model, self._items, self._application.evaluate)
        row = {
            "attempt": self._attempt,
            "step": version.number,
            "time": time.time() - self._epoch,
            "split": "evaluation",
        }
        for index, (item, qualities) in enumerate(zip(self._items, found.items, strict=True)):
            for name, value in qualities.items():
                self._writer.append(**row, name=name, value=value, item=str(getattr(item, "name", index)))
        for name, value in found.means().items():
            self._writer.append(**row, name=name, value=value, item="")
        self._writer.flush()
