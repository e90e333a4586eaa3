"""TensorFlow and Keras, imported once and without chatter.

TensorFlow writes lines about CUDA and oneDNN to file descriptor 2 while it is imported; since 2.21
no environment variable silences all of them. In a notebook they would be the first thing a reader
sees, and would differ from machine to machine. Every module of the package takes ``keras`` and
``tf`` from here.
"""

import contextlib
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@contextlib.contextmanager
def _silent_stderr():
    sys.stderr.flush()
    with open(os.devnull, "w") as sink:
        kept = os.dup(2)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


with _silent_stderr():
    import keras
    import tensorflow as tf

    GPUS = tf.config.list_physical_devices("GPU")

__all__ = ["GPUS", "keras", "tf"]
