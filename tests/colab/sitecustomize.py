"""Makes a kernel look like Colab's: the module is there before the first cell runs."""

import google.colab  # noqa: F401
