"""What a ReLU lets through on the way back: backpropagation, deconvnet, guided backpropagation.

The three differ in nothing else. Un-pooling by switches, the transposed convolution, batch
normalisation, additions and strides are the ordinary gradient of their layers. So a rule is one
function: the gradient that TensorFlow's ``Relu`` and ``Relu6`` get while a network is traced. That
reaches every ReLU, whatever layer or nested model it sits in, and changes nothing of the network.
"""

from collections.abc import Iterator
import contextlib
from typing import Literal, get_args

from cam_helpers.backend import keras, tf
from cam_helpers.layers import is_nested, nodes

Rule = Literal["backprop", "deconvnet", "guided"]
RULES = get_args(Rule)

RELUS = (
    keras.activations.relu,
    keras.activations.relu6,
    keras.ops.relu,
    keras.ops.relu6,
    tf.nn.relu,
    tf.nn.relu6,
)
# Names of classes, as not all of them are public: layers, then operations of keras.ops.
OTHER_ACTIVATIONS = """
    ELU LeakyReLU PReLU Softmax
    Celu Elu Exp Gelu Glu HardShrink HardSigmoid HardSilu HardTanh LeakyRelu LogSigmoid LogSoftmax
    Selu Sigmoid Silu SoftShrink Softplus Softsign Sparsemax SparsePlus SparseSigmoid Squareplus
    Tanh TanhShrink Threshold
"""


def deconvnet(operation: tf.Operation, gradient: tf.Tensor) -> tf.Tensor:
    """Let through what is positive on the way back."""
    return tf.nn.relu(gradient)


def guided(operation: tf.Operation, gradient: tf.Tensor) -> tf.Tensor:
    """Let through what is positive on the way back, where the unit was active on the way there."""
    output, gate = (
        operation.outputs[0],
        {"Relu": tf.raw_ops.ReluGrad, "Relu6": tf.raw_ops.Relu6Grad},
    )
    return gate[operation.type](gradients=tf.nn.relu(gradient), features=output)


for each in (deconvnet, guided):
    with contextlib.suppress(KeyError):  # there already: the module was reloaded
        tf.RegisterGradient(f"cam_helpers {each.__name__}")(each)


@contextlib.contextmanager
def applied(rule: Rule) -> Iterator[None]:
    """Give this rule to the ReLUs that are traced meanwhile, inside a ``tf.function``."""
    if rule == "backprop":
        yield
        return
    names = dict.fromkeys(("Relu", "Relu6"), f"cam_helpers {rule}")
    with tf.compat.v1.get_default_graph().gradient_override_map(names):
        yield


def check_relus(model: keras.Model) -> None:
    """Raise ValueError if an activation is none that the rules are made for: ReLU and ReLU6.

    The activations inside a layer class of your own cannot be seen.
    """
    for node in nodes(model):
        operation = node.operation
        if is_nested(operation):
            check_relus(operation)
            continue
        name = _refused(operation) or _refused(getattr(operation, "activation", None))
        if name:
            raise ValueError(
                f"expected ReLU or ReLU6 as activation, received {name} in layer "
                f"'{operation.name}': the rule knows no gate for it; use saliency, smooth_grad or "
                "integrated_gradients."
            )


def _refused(activation):
    """What to call an activation, or a layer that may be one, if the rules do not cover it."""
    kind = type(activation).__name__
    if kind == "ReLU":
        bent = activation.negative_slope or activation.threshold
        plain = not bent and activation.max_value in (None, 6)
        return None if plain else "a ReLU with a slope, a threshold or another maximum than 6"
    if isinstance(activation, keras.Operation):
        return kind if kind in OTHER_ACTIVATIONS.split() else None
    if activation in (None, keras.activations.linear, *RELUS):
        return None
    return getattr(activation, "__name__", kind)
