"""What a reader sees of TensorFlow's import: nothing."""

import subprocess
import sys


def test_import_is_silent_and_gives_stderr_back():
    code = (
        "import sys; from cam_helpers.backend import keras, tf; tf.constant(1.0); "
        "print('after', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "after\n")
