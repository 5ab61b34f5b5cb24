"""The architectures as an ONNX graph: images (B, S, S, 3) uint8 -> age (B,), distribution (B, K).

The graph is written independently of the Flax modules: it uses only the variables, by name and shape. The comparison of
ONNX Runtime with JAX therefore checks both. BatchNorm is folded into the convolution before it, in float64. Inside the
graph the layout is NCHW, which ONNX requires.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lae_jax.export.program import TINY, Program
from lae_jax.models import BACKBONES, ConvNeXt, EfficientNet, ResNet, ViT, convnext, efficientnet, resnet, vit
from lae_jax.models.layers import same_padding

OPSET, IR_VERSION = 17, 8


class _Graph:
    """The nodes and weights of a graph. A tensor is its name; the methods return the name of their output."""

    def __init__(self):
        self.nodes, self.weights = [], {}

    def add(self, operation: str, *inputs: str, **attributes) -> str:
        output = f"{operation.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, [*inputs], [output], name=output, **attributes))
        return output

    def weight(self, name: str, value: np.ndarray, dtype=np.float32) -> str:
        # With `flip` the mirror image passes every layer a second time and sets the same weights again.
        self.weights[name] = np.ascontiguousarray(value, dtype)
        return name


class _Layers:
    """Layers of a backbone. Their variables are found by their path in it."""

    def __init__(self, graph: _Graph, params: dict, statistics: dict, epsilon: float):
        self.graph, self.params, self.statistics, self.epsilon = graph, params, statistics, epsilon

    def conv(self, x: str, side: int, path: tuple, conv: str, norm: str, stride: int = 1, padding=None) -> tuple:
        """Adds a convolution and its BatchNorm.

        Args:
          x: Input.
          side: Side of x in pixels.
          path: Path of the block in the backbone.
          conv: Name of the convolution in the block.
          norm: Name of the BatchNorm in the block.
          stride: Stride in both directions.
          padding: Pixels on each side; None: TensorFlow's 'same'.

        Returns:
          The output and its side.
        """
        params, statistics = _at(self.params, path), _at(self.statistics, path)[norm]
        kernel = np.asarray(params[conv]["kernel"], np.float64)  # (k, k, C / groups, C')
        scale = np.asarray(params[norm]["scale"], np.float64)
        scale = scale / np.sqrt(np.asarray(statistics["var"], np.float64) + self.epsilon)
        bias = np.asarray(params[norm]["bias"], np.float64) - np.asarray(statistics["mean"], np.float64) * scale
        size = kernel.shape[0]
        before, after = same_padding(side, size, stride) if padding is None else (padding, padding)
        name = "/".join((*path, conv))
        x = self.graph.add(
            "Conv",
            x,
            self.graph.weight(f"{name}/kernel", (kernel * scale).transpose(3, 2, 0, 1)),
            self.graph.weight(f"{name}/bias", bias),
            kernel_shape=[size, size],
            strides=[stride, stride],
            pads=[before, before, after, after],
            # The depthwise convolutions of these models have one group per channel.
            group=kernel.shape[3] if conv == "depthwise_conv" else 1,
        )
        return x, (side + before + after - size) // stride + 1

    def swish(self, x: str) -> str:
        return self.graph.add("Mul", x, self.graph.add("Sigmoid", x))

    def relu6(self, x: str) -> str:
        zero, six = (self.graph.weight(f"relu6/{value}", np.array(value)) for value in (0, 6))
        return self.graph.add("Clip", x, zero, six)

    def squeeze_excite(self, x: str, path: tuple) -> str:
        gate = self.graph.add("GlobalAveragePool", x)
        gate = self._with_bias(self.swish(self._with_bias(gate, (*path, "se_reduce"))), (*path, "se_expand"))
        return self.graph.add("Mul", x, self.graph.add("Sigmoid", gate))

    def _with_bias(self, x: str, path: tuple) -> str:
        params, name = _at(self.params, path), "/".join(path)
        kernel = self.graph.weight(f"{name}/kernel", np.asarray(params["kernel"]).transpose(3, 2, 0, 1))
        return self.graph.add("Conv", x, kernel, self.graph.weight(f"{name}/bias", params["bias"]))


class _Tokens:
    """Layers of ViT and ConvNeXt; the channels are the last axis of x, but those of a convolution the second."""

    def __init__(self, graph: _Graph, params: dict, epsilon: float):
        self.graph, self.params, self.epsilon = graph, params, epsilon

    def weight(self, *path: str, scale: np.ndarray | float = 1.0) -> str:
        """Adds a variable as it is, times `scale`; a bias that the layer does not have is zeros."""
        layer = _at(self.params, path[:-1])
        value = layer[path[-1]] if path[-1] in layer else np.zeros(layer["kernel"].shape[-1])
        return self.graph.weight("/".join(path), np.asarray(value, np.float64) * scale)

    def numbers(self, *values: int) -> str:
        return self.graph.weight(f"numbers/{'_'.join(map(str, values))}", np.array(values), np.int64)

    def norm(self, x: str, *path: str) -> str:
        scale, bias = (self.weight(*path, name) for name in ("scale", "bias"))
        return self.graph.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=self.epsilon)

    def dense(self, x: str, *path: str, scale: np.ndarray | float = 1.0) -> str:
        kernel, bias = (self.weight(*path, name, scale=scale) for name in ("kernel", "bias"))
        return self.graph.add("Add", self.graph.add("MatMul", x, kernel), bias)

    def conv(self, x: str, *path: str, stride: int = 1, padding: int = 0, group: int = 1) -> str:
        kernel = np.asarray(_at(self.params, path)["kernel"])
        name = self.graph.weight("/".join((*path, "kernel")), kernel.transpose(3, 2, 0, 1))
        sizes = {"kernel_shape": [*kernel.shape[:2]], "strides": [stride] * 2, "pads": [padding] * 4, "group": group}
        return self.graph.add("Conv", x, name, self.weight(*path, "bias"), **sizes)

    def gelu(self, x: str) -> str:
        root, one, half = (self.graph.weight(f"gelu/{value:.3g}", np.array(value)) for value in (0.5**0.5, 1.0, 0.5))
        bent = self.graph.add("Add", self.graph.add("Erf", self.graph.add("Mul", x, root)), one)
        return self.graph.add("Mul", x, self.graph.add("Mul", bent, half))

    def quick_gelu(self, x: str) -> str:
        factor = self.graph.weight("quick_gelu/factor", np.array(1.702))
        return self.graph.add("Mul", x, self.graph.add("Sigmoid", self.graph.add("Mul", x, factor)))

    def channels_last(self, x: str) -> str:
        return self.graph.add("Transpose", x, perm=[0, 2, 3, 1])

    def channels_second(self, x: str) -> str:
        return self.graph.add("Transpose", x, perm=[0, 3, 1, 2])


def _at(tree, path: tuple):
    for key in path:
        tree = tree[key]
    return tree


def _efficientnet(graph: _Graph, x: str, side: int, params: dict, statistics: dict, architecture) -> str:
    layers = _Layers(graph, params, statistics, efficientnet.EPSILON)
    activation = layers.relu6 if architecture.lite else layers.swish
    x, side = layers.conv(x, side, (), "stem_conv", "stem_bn", 2)
    x = activation(x)
    for i, group in enumerate(architecture.stages, start=1):
        for j in range(group.blocks):
            path, stride, shortcut = (f"block{i}_{j}",), group.stride if j == 0 else 1, x
            if group.fused and group.expand == 1:
                x, side = layers.conv(x, side, path, "project_conv", "project_bn", stride)
                x = activation(x)
            else:
                if group.expand > 1:
                    x, side = layers.conv(x, side, path, "expand_conv", "expand_bn", stride if group.fused else 1)
                    x = activation(x)
                if not group.fused:
                    x, side = layers.conv(x, side, path, "depthwise_conv", "depthwise_bn", stride)
                    x = activation(x)
                    if not architecture.lite:
                        x = layers.squeeze_excite(x, path)
                x, side = layers.conv(x, side, path, "project_conv", "project_bn")
            # The first block of a group has a shortcut only if it keeps the size and the number of channels.
            if stride == 1 and (j > 0 or _features_before(architecture, i) == group.features):
                x = graph.add("Add", shortcut, x)
    x, side = layers.conv(x, side, (), "top_conv", "top_bn")
    return graph.add("GlobalAveragePool", activation(x))


def _features_before(architecture, stage: int) -> int:
    return architecture.stem if stage == 1 else architecture.stages[stage - 2].features


def _resnet(graph: _Graph, x: str, side: int, params: dict, statistics: dict, architecture) -> str:
    layers = _Layers(graph, params, statistics, resnet.EPSILON)
    x, side = layers.conv(x, side, (), "conv1", "bn1", 2, padding=3)
    x = graph.add("Relu", x)
    # ONNX pads MaxPool with -inf.
    x, side = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), (side - 1) // 2 + 1
    sizes = (1, 3, 1) if architecture.bottleneck else (3, 3)
    for i, blocks in enumerate(architecture.layers, start=1):
        for j in range(blocks):
            path, block_stride = (f"layer{i}_{j}",), 2 if j == 0 and i > 1 else 1
            shortcut, before = x, side
            strided = sizes.index(3)  # the first 3x3 convolution has the stride
            for k, size in enumerate(sizes):
                stride = block_stride if k == strided else 1
                x, side = layers.conv(x, side, path, f"conv{k + 1}", f"bn{k + 1}", stride, padding=size // 2)
                if k < len(sizes) - 1:
                    x = graph.add("Relu", x)
            if "downsample_conv" in params[path[0]]:
                shortcut, _ = layers.conv(
                    shortcut, before, path, "downsample_conv", "downsample_bn", block_stride, padding=0
                )
            x = graph.add("Relu", graph.add("Add", shortcut, x))
    return graph.add("GlobalAveragePool", x)


def _vit(graph: _Graph, x: str, side: int, params: dict, statistics: dict, architecture) -> str:
    layers, width, heads = _Tokens(graph, params, architecture.epsilon), architecture.width, architecture.heads
    new, old, each = side // architecture.patch, architecture.grid, width // heads
    x = layers.conv(x, "patches", stride=architecture.patch)
    x = graph.add("Transpose", graph.add("Reshape", x, layers.numbers(0, width, new * new)), perm=[0, 2, 1])
    # A token of zeros in front of the patches, then what is added to every token.
    x = graph.add("Pad", x, layers.numbers(0, 1, 0, 0, 0, 0))
    first, *square = np.asarray(params["positions"], np.float64)
    weights = vit.interpolation(old, new) if old != new else np.eye(old)
    square = np.einsum("ai,bj,ijc->abc", weights, weights, np.reshape(square, (old, old, width)))
    first = first + np.asarray(params["class_token"], np.float64)
    x = graph.add("Add", x, graph.weight("positions", np.concatenate([first[None], square.reshape(-1, width)])[None]))
    if architecture.clip:
        x = layers.norm(x, "norm_pre")
    for index in range(architecture.blocks):
        block = f"block{index}"
        y = layers.dense(layers.norm(x, block, "norm1"), block, "qkv")
        y = graph.add("Reshape", y, layers.numbers(0, new * new + 1, 3 * heads, each))
        parts = [
            graph.add("Slice", y, layers.numbers(part * heads), layers.numbers((part + 1) * heads), layers.numbers(2))
            for part in range(3)
        ]
        query, value = (graph.add("Transpose", part, perm=[0, 2, 1, 3]) for part in (parts[0], parts[2]))
        scores = graph.add("MatMul", query, graph.add("Transpose", parts[1], perm=[0, 2, 3, 1]))
        scores = graph.add("Mul", scores, graph.weight("attention/scale", np.array(each**-0.5)))
        y = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)
        y = graph.add("Reshape", graph.add("Transpose", y, perm=[0, 2, 1, 3]), layers.numbers(0, new * new + 1, width))
        x = graph.add("Add", x, layers.dense(y, block, "proj"))
        y = layers.dense(layers.norm(x, block, "norm2"), block, "fc1")
        y = layers.quick_gelu(y) if architecture.clip else layers.gelu(y)
        x = graph.add("Add", x, layers.dense(y, block, "fc2"))
    x = graph.add("Slice", x, layers.numbers(0), layers.numbers(1), layers.numbers(1))
    return layers.norm(x, "norm")


def _convnext(graph: _Graph, x: str, side: int, params: dict, statistics: dict, architecture) -> str:
    layers = _Tokens(graph, params, convnext.EPSILON)
    for i, (blocks, width) in enumerate(zip(architecture.blocks, architecture.widths, strict=True), start=1):
        if i == 1:
            x = layers.channels_last(layers.conv(x, "stem", stride=architecture.patch))
            x = layers.channels_second(layers.norm(x, "stem_norm"))
        else:
            x = layers.channels_second(layers.norm(layers.channels_last(x), f"downsample{i}_norm"))
            x = layers.conv(x, f"downsample{i}", stride=2)
        for j in range(blocks):
            block = f"block{i}_{j}"
            y = layers.channels_last(layers.conv(x, block, "conv", padding=convnext.KERNEL // 2, group=width))
            y = layers.gelu(layers.dense(layers.norm(y, block, "norm"), block, "fc1"))
            y = layers.dense(y, block, "fc2", scale=np.asarray(params[block]["layer_scale"], np.float64))
            x = graph.add("Add", x, layers.channels_second(y))
    return layers.norm(graph.add("Flatten", graph.add("GlobalAveragePool", x)), "norm")


_FAMILIES = {EfficientNet: _efficientnet, ResNet: _resnet, ViT: _vit, ConvNeXt: _convnext}


def _probabilities(graph: _Graph, x: str, program: Program) -> str:
    """Adds the model: normalised images (B, 3, S, S) -> probabilities (B, K)."""
    backbone, architecture = BACKBONES[program.name]
    params, statistics = program.variables["params"], program.variables.get("batch_stats", {}).get("backbone", {})
    x = _FAMILIES[backbone](graph, x, program.image_size, params["backbone"], statistics, architecture)
    x = graph.add("Flatten", x)
    if "hidden" in params["head"]:
        x = graph.add("Relu", _dense(graph, x, params["head"], "hidden"))
    return graph.add("Softmax", _dense(graph, x, params["head"], "fc"), axis=1)


def _dense(graph: _Graph, x: str, params: dict, layer: str) -> str:
    kernel, bias = (graph.weight(f"head/{layer}/{name}", params[layer][name]) for name in ("kernel", "bias"))
    return graph.add("Gemm", x, kernel, bias)


def model_of(program: Program) -> onnx.ModelProto:
    """Returns an ONNX model of opset 17, for batches of any size.

    Its input is `image`; its outputs are `age` and `distribution`.
    """
    graph, side = _Graph(), program.image_size
    mean, std = np.asarray(program.mean, np.float64), np.asarray(program.std, np.float64)
    x = graph.add("Transpose", graph.add("Cast", "image", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    x = graph.add("Mul", x, graph.weight("normalise/scale", (1 / (255 * std)).reshape(1, 3, 1, 1)))
    x = graph.add("Add", x, graph.weight("normalise/shift", (-mean / std).reshape(1, 3, 1, 1)))
    raw = _probabilities(graph, x, program)
    if program.flip:
        ends = ((-1, "start"), (-(2**31), "end"), (3, "axis"), (-1, "step"))
        slices = [graph.weight(f"mirror/{name}", np.array([value]), np.int64) for value, name in ends]
        raw = graph.add("Add", raw, _probabilities(graph, graph.add("Slice", x, *slices), program))
        raw = graph.add("Mul", raw, graph.weight("mirror/half", np.array(0.5)))
    years = graph.weight("ages", np.arange(program.num_ages).reshape(-1, 1))
    axis = graph.weight("age/axis", np.array([1]), np.int64)
    age = graph.add("Squeeze", graph.add("MatMul", raw, years), axis)
    distribution = raw
    if program.temperature != 1:
        logits = graph.add("Log", graph.add("Max", raw, graph.weight("tiny", np.array(TINY))))
        warm = graph.add("Mul", logits, graph.weight("one_by_temperature", np.array(1 / program.temperature)))
        distribution = graph.add("Softmax", warm, axis=1)
    for name, tensor in (("age", age), ("distribution", distribution)):
        graph.nodes.append(helper.make_node("Identity", [tensor], [name], name=name))
    made = helper.make_graph(
        graph.nodes,
        program.name,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", side, side, 3])],
        [
            helper.make_tensor_value_info("age", TensorProto.FLOAT, ["batch"]),
            helper.make_tensor_value_info("distribution", TensorProto.FLOAT, ["batch", program.num_ages]),
        ],
        [numpy_helper.from_array(value, name) for name, value in graph.weights.items()],
    )
    return helper.make_model(
        made,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="lae_jax",
    )
