"""Data, models and methods of the tutorial: what does a convolutional network look at?"""

__version__ = "0.1.0"


def __getattr__(name):
    """Import ``diagnose`` when it is asked for, and TensorFlow no sooner."""
    if name == "diagnose":
        from cam_helpers.diagnosis import diagnose

        return diagnose
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
