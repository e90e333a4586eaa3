"""What is stored of a widget in a notebook: its text, which needs no kernel and never changes."""

from nbconvert.preprocessors import Preprocessor

VIEW = "application/vnd.jupyter.widget-view+json"  # a random number of a model that is gone


class WithoutWidgets(Preprocessor):
    """A step of nbconvert's that takes widgets out of outputs, and leaves what else they show."""

    def preprocess(self, nb, resources):
        """Return the notebook without views and states of widgets."""
        nb.metadata.pop("widgets", None)
        for cell in nb.cells:
            for output in cell.get("outputs", []):
                output.get("data", {}).pop(VIEW, None)
        return nb, resources
