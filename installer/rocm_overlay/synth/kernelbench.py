"""Rules of our own for what is too near to KernelBench level 2, the test set that training data must not contain.

Level 2 is about fusing one heavy operator with the simple ones behind it: a convolution or a matrix product, then
activations, norms, pools, scaling and reductions, in one chain. A program is rejected when its main class is that.
"""

from __future__ import annotations

import ast

HEAVY = frozenset(
    [
        "Conv1d",
        "Conv2d",
        "Conv3d",
        "ConvTranspose1d",
        "ConvTranspose2d",
        "ConvTranspose3d",
        "Linear",
        "Bilinear",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "linear",
        "matmul",
        "bmm",
        "mm",
        "addmm",
        "einsum",
    ]
)
SIMPLE = frozenset(
    [
        "relu",
        "silu",
        "gelu",
        "tanh",
        "sigmoid",
        "softplus",
        "mish",
        "hardswish",
        "elu",
        "selu",
        "celu",
        "leaky_relu",
        "relu6",
        "hardtanh",
        "hardsigmoid",
        "glu",
        "logsigmoid",
        "softmax",
        "log_softmax",
        "softmin",
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "batchnorm1d",
        "batchnorm2d",
        "batchnorm3d",
        "instancenorm1d",
        "instancenorm2d",
        "instancenorm3d",
        "groupnorm",
        "layernorm",
        "rmsnorm",
        "group_norm",
        "layer_norm",
        "rms_norm",
        "maxpool1d",
        "maxpool2d",
        "maxpool3d",
        "avgpool1d",
        "avgpool2d",
        "avgpool3d",
        "adaptiveavgpool1d",
        "adaptiveavgpool2d",
        "adaptiveavgpool3d",
        "max_pool2d",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "sum",
        "mean",
        "max",
        "min",
        "amax",
        "amin",
        "logsumexp",
        "clamp",
        "add",
        "mul",
        "sub",
        "div",
        "abs",
        "pow",
        "exp",
        "sqrt",
        "square",
        "neg",
        "flatten",
        "squeeze",
        "unsqueeze",
        "view",
        "reshape",
        "identity",
        "threshold",
    ]
)
MOST_STEPS = 8


def resembles_level_2(tree: ast.Module, main: ast.ClassDef) -> str:
    """Return why a program is too near to KernelBench level 2, or ""."""
    if main.name in ("Model", "ModelNew"):
        return f"the class is called {main.name}, as in KernelBench"
    forward = next(node for node in main.body if isinstance(node, ast.FunctionDef) and node.name == "forward")
    modules = _modules(main)
    own = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    steps = _steps(forward, modules, own)
    if steps is None or not 2 <= len(steps) <= MOST_STEPS or not _is_chain(forward):
        return ""
    heavy = [step for step in steps if step in HEAVY]
    rest = [step for step in steps if step not in HEAVY]
    if len(heavy) == 1 and all(step.lower() in SIMPLE for step in rest):
        return f"a chain of one {heavy[0]} and simple operators ({', '.join(rest)}), as in KernelBench level 2"
    return ""


def _modules(main: ast.ClassDef) -> dict[str, str]:
    """The class of every ``self.x = nn.Class(...)``."""
    found = {}
    for node in ast.walk(main):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            function = node.value.func
            for target in node.targets:
                if isinstance(target, ast.Attribute):
                    word = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
                    found[target.attr] = word
    return found


def _steps(forward: ast.FunctionDef, modules: dict[str, str], own: set[str]) -> list[str] | None:
    """The last words of all operators in forward; None where a class or function of the program itself is used."""
    steps = []
    for node in ast.walk(forward):
        if isinstance(node, ast.BinOp):
            steps.append("matmul" if isinstance(node.op, ast.MatMult) else "mul")
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        word = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if isinstance(function, ast.Attribute) and getattr(function.value, "id", "") == "self":
            word = modules.get(function.attr, function.attr)
        if word in own:
            return None
        steps.append(word)
    return steps


def _is_chain(forward: ast.FunctionDef) -> bool:
    """Say whether every value is read once: no residual, no gate, no second path."""
    reads: dict[str, int] = {}
    inputs = {argument.arg for argument in forward.args.args[1:]}
    assigned = set(inputs)
    for node in ast.walk(forward):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            assigned.add(node.id)
    stores: dict[str, int] = dict.fromkeys(inputs, 1)
    for node in ast.walk(forward):
        if isinstance(node, ast.Name) and node.id in assigned:
            counts = stores if isinstance(node.ctx, ast.Store) else reads
            counts[node.id] = counts.get(node.id, 0) + 1
    return len(inputs) == 1 and all(reads.get(name, 0) <= count for name, count in stores.items())
