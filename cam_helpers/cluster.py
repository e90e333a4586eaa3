"""Batches explained by a Dask cluster: one model a worker, few batches at a time on their way.

What a lost worker had is done again by another: the scheduler keeps each batch until it is done.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
import contextlib
import functools
import math
import pickle
import threading
import time
import uuid
import warnings

from cam_helpers import archives, dataset, layers
from cam_helpers.backend import keras, tf
from cam_helpers.cams import Scored
from cam_helpers.dataset import Request, Task
import cloudpickle
import distributed
import numpy as np

Found = tuple[slice, np.ndarray, Scored | None]
SECONDS_TO_FIND_A_WORKER = 60
SECONDS_BETWEEN_LOOKS = 1  # at how many there are
_SENT = {}  # on a worker: key -> [pickle], or once it was needed [what it holds]
_ONE_AT_A_TIME = threading.Lock()  # a worker may have several threads


class SendModel(distributed.WorkerPlugin):
    """Brings a pickled model and request to each worker, also to those that come later."""

    def __init__(self, key: str, pickled: bytes) -> None:
        self.name, self.key, self.pickled = key, key, pickled

    def setup(self, worker: distributed.Worker) -> None:
        """Keep the pickle until it is needed; TensorFlow gets the worker's number of threads."""
        with contextlib.suppress(RuntimeError):  # it is at work already
            tf.config.threading.set_intra_op_parallelism_threads(worker.state.nthreads)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        _SENT[self.key] = [self.pickled]

    def teardown(self, worker: distributed.Worker) -> None:
        """Let the model go."""
        _SENT.pop(self.key, None)


def explainer(
    client: distributed.Client, model: keras.Model, request: Request
) -> Callable[[Iterator[Task]], Iterator[Found]]:
    """Return what yields of tasks what :func:`dataset.explain_batch` finds, in any order.

    Raises
    ------
    OSError
        If there is no worker; later, if the cluster is gone, or a batch has killed several workers.
    RuntimeError
        Later, if a worker has other versions of the libraries.
    ValueError
        If the client is asynchronous, the model or ``prepare`` cannot be sent; later, as the
        method.
    """
    if client.asynchronous:
        raise ValueError(
            "expected a client that waits for its results, received an asynchronous one: make it "
            "by distributed.Client(address)."
        )
    pickled = _pickled(model, request)
    try:
        client.wait_for_workers(1, timeout=SECONDS_TO_FIND_A_WORKER)
    except TimeoutError as error:
        raise OSError(
            f"expected a cluster with workers, received one that had none for "
            f"{SECONDS_TO_FIND_A_WORKER} s: start some, and call it again."
        ) from error
    return functools.partial(_explained, client, pickled)


def _explained(client, pickled, tasks):
    sent = SendModel(f"cam-helpers-{uuid.uuid4().hex}", pickled)
    running = distributed.as_completed(loop=client.loop)
    try:
        client.register_plugin(sent)
        yield from _in_turn(client, running, sent.key, tasks)
    finally:
        with contextlib.suppress(Exception):  # the cluster may be gone
            client.cancel(list(running.futures))
            running.clear()  # of what is done, too
            client.unregister_worker_plugin(sent.key)


def _in_turn(client, running, key, tasks):
    """Keep two batches a worker on their way, and yield what comes back."""
    task, looked = next(tasks, None), -math.inf
    while task is not None or not running.is_empty():
        if time.monotonic() > looked + SECONDS_BETWEEN_LOOKS:  # asking takes as long as a batch
            at_once, looked = 2 * max(1, len(client.nthreads())), time.monotonic()
        while task is not None and running.count() < at_once:
            with warnings.catch_warnings(action="ignore"):  # that a batch is large
                running.add(client.submit(_explain, key, cloudpickle.dumps(task), pure=False))
            task = next(tasks, None)
        future = next(running)
        try:
            found, theirs = future.result()
        except distributed.KilledWorker as error:
            raise OSError(
                "expected workers that live, received a batch whose workers died one after the "
                "other, perhaps for want of memory: take a smaller batch_size or larger workers, "
                "and another store."
            ) from error
        except CancelledError as error:
            raise OSError(
                "expected the cluster to last, received none any more: call it again with another."
            ) from error
        finally:
            future.release()  # tracebacks would keep it
        if theirs != dataset.versions():
            raise RuntimeError(
                f"expected workers with {dataset.versions()}, received one with {theirs}: install "
                "the same there."
            )
        yield found


def _explain(key, task):
    """On a worker: explain a batch, with the versions that did it."""
    with _ONE_AT_A_TIME:
        sent = _SENT[key]  # if it is let go meanwhile, it is not put back
        if isinstance(sent[0], bytes):
            sent[0] = _unpickled(sent[0])
        model, request = sent[0]
        return dataset.explain_batch(model, pickle.loads(task), request), dataset.versions()


def _pickled(model, request):
    try:
        kinds = {type(layer) for layer in model._flatten_layers()}  # also of models inside
        own = {
            keras.saving.get_registered_name(kind): kind
            for kind in kinds
            if not kind.__module__.startswith("keras.")
        }
        rest = cloudpickle.dumps((model, layers.is_multi_label(model), request))
        pickled = cloudpickle.dumps((own, rest))
        same = archives.digest_of_model(_unpickled(pickled)[0]) == archives.digest_of_model(model)
    except Exception as error:  # a layer's or function's own code
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"expected a model and a prepare that can be sent, received '{model.name}' "
            f"({type(error).__name__}: {reason}): give layers of your own a get_config, and "
            "leave out of prepare what belongs to this process alone."
        ) from error
    if not same:
        raise ValueError(
            f"expected a model that can be sent, received '{model.name}', which comes back as "
            "another: save it as .keras, load that, and compare."
        )
    return pickled


def _unpickled(pickled):
    own, rest = pickle.loads(pickled)
    with keras.saving.custom_object_scope(own):
        model, is_multi_label, request = pickle.loads(rest)
    if is_multi_label:
        layers.mark_multi_label(model)
    return model, request
