"""Feast's SDK in a process of its own: asked in a loop by one thread or several, as `load` asks servers."""

import gc
import itertools
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from feast import FeatureStore
from load import answer_lines, dues, percentile_ms, questions, summary, wake_on_time


def measure(store: FeatureStore, task: dict[str, Any]) -> dict[str, Any]:
    """Ask with so many threads, each as soon as it has its answer, or at given instants."""

    def ask(ids: list[int]) -> dict[str, Any]:
        found: dict[str, Any] = store.get_online_features(task["features"], {task["entity"]: ids}).to_dict()
        return found

    if "ids" in task:
        return ask(task["ids"])
    asked, lock = itertools.cycle(questions(task)), threading.Lock()
    begun = time.perf_counter()
    instants = iter([begun + due_s for due_s in dues(task)]) if task.get("rate") else None
    end = begun + task["seconds"]
    latencies_s, lates_s = list[float](), list[float]()

    def run() -> None:
        idle_since_s = begun
        while True:
            with lock:
                ids, due_s = next(asked), time.perf_counter() if instants is None else next(instants, None)
            if due_s is None or (instants is None and due_s >= end):
                return
            if instants is not None:
                time.sleep(max(0.0, due_s - time.perf_counter()))
                lates_s.append(time.perf_counter() - max(due_s, idle_since_s))
            ask(ids)
            idle_since_s = time.perf_counter()
            latencies_s.append(idle_since_s - due_s)

    gc.collect()
    cpu_s = time.process_time()
    _in_threads(run, task["connections"])
    took_s = time.perf_counter() - begun
    return {
        **summary(latencies_s, took_s),
        "errors_count": 0,
        "first_error": "",
        "late_p99_ms": percentile_ms(lates_s, 99.0),
        "own_cpu_s": time.process_time() - cpu_s,
        "broken_count": 0,
        "reopened_count": 0,
    }


def _in_threads(run: Callable[[], None], count: int) -> None:
    """Run so many at once, and raise what the first that failed raised."""
    if count == 1:
        return run()
    failed = list[BaseException]()

    def guarded() -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001  # handed to the main thread, which raises it
            failed.append(error)

    threads = [threading.Thread(target=guarded, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return None


def main() -> None:
    """Answer for the repository that the command names."""
    wake_on_time()
    store = FeatureStore(sys.argv[1])
    answer_lines(lambda task: measure(store, task))
