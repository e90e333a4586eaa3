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

CORNERS = "Absolute Clip Maximum Minimum"  # of keras.ops, which make a ReLU of another kind
# Operations of TensorFlow that bend, and hide in layers of a reader's own, wrappers and lambdas.
BENT = "Elu Erf Erfc Exp LeakyRelu LogSoftmax Selu Sigmoid Softmax Softplus Softsign Tanh"


def deconvnet(operation: tf.Operation, gradient: tf.Tensor) -> tf.Tensor:
    """Let through what is positive on the way back."""
    return tf.nn.relu(gradient)


def guided(operation: tf.Operation, gradient: tf.Tensor) -> tf.Tensor:
    """Let through what is positive on the way back, where the unit was active on the way there."""
    gate = {"Relu": tf.raw_ops.ReluGrad, "Relu6": tf.raw_ops.Relu6Grad}[operation.type]
    return gate(gradients=tf.nn.relu(gradient), features=operation.outputs[0])


for each in (deconvnet, guided):
    with contextlib.suppress(KeyError):  # there already: the module was reloaded
        tf.RegisterGradient(f"cam_helpers {each.__name__}")(each)


@contextlib.contextmanager
def applied(rule: Rule) -> Iterator[None]:
    """Give this rule to the ReLUs that are traced meanwhile, inside a ``tf.function``.

    Raises
    ------
    ValueError
        If another activation is traced, or one where the rule does not reach: in a function or with
        a gradient of its own.
    """
    if rule == "backprop":
        yield
        return
    graph = tf.compat.v1.get_default_graph()
    names = dict.fromkeys(("Relu", "Relu6"), f"cam_helpers {rule}")
    with graph.gradient_override_map(names):
        yield
    for each in graph.get_operations():
        own_gradient = each.type == "IdentityN"  # so TensorFlow writes tf.custom_gradient
        if own_gradient or each.type in BENT.split():
            received = "a gradient of its own" if own_gradient else each.type
            raise ValueError(
                f"expected ReLU or ReLU6 as activation, received {received} in '{each.name}': the "
                "rule knows no gate for it; use the plain gradient, as saliency does."
            )
    unreached = {*names, *BENT.split(), "IdentityN"}
    for function in graph.as_graph_def().library.function:
        if unreached & {node.op for node in function.node_def}:
            raise ValueError(
                "expected layers without a tf.function of their own around an activation, received "
                f"'{function.signature.name}': the rule does not reach into it; take @tf.function "
                "off the layer."
            )


def check_relus(model: keras.Model) -> None:
    """Raise ValueError if an activation is none that the rules are made for: ReLU and ReLU6.

    It names the layer. What a layer hides inside, :func:`applied` finds when it is traced.
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
                f"'{operation.name}': the rule knows no gate for it; use the plain gradient, as "
                "saliency does."
            )


def _refused(activation):
    """What to call an activation, or a layer that may be one, if the rules do not cover it."""
    kind = type(activation).__name__
    if kind == "ReLU":
        bent = activation.negative_slope or activation.threshold
        plain = not bent and activation.max_value in (None, 6)
        return None if plain else "a ReLU with a slope, a threshold or another maximum than 6"
    if isinstance(activation, keras.Operation):
        is_layer = isinstance(activation, keras.layers.Layer)
        names = OTHER_ACTIVATIONS if is_layer else OTHER_ACTIVATIONS + CORNERS
        return kind if kind in names.split() else None
    if activation in (None, keras.activations.linear, *RELUS):
        return None
    return getattr(activation, "__name__", kind)
