"""The parts of the GPU session in jax: the machine's limits, kernels, convolutions, and a U-Net.

A part only writes to the report that it receives; `benchmarks.gpu` runs them.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

import densezoo as dz
from benchmarks import breakdown
from benchmarks.gpu_torch import CLASSES, PEAK, STEPS, masks, shape_of
from benchmarks.kernels import KERNELS, is_float, least_bytes, make_inputs
from benchmarks.machine import describe
from benchmarks.timing import compile_apart

KERNEL_NAMES = ("bilinear_x2", "nearest_x2", "max_unpool", "max_pool_3x3_s2", "upsample_concat_conv_nearest")
# Side, channels in and out, kernel size, strides: those of a U-Net-ResNet34 for images of 512x512.
CONVOLUTIONS = (
    (512, 3, 64, 7, 2),
    (128, 64, 64, 3, 1),
    (64, 128, 128, 3, 1),
    (32, 256, 256, 3, 1),
    (16, 512, 512, 3, 1),
    (128, 192, 64, 3, 1),
    (256, 32, 32, 3, 1),
    (512, 16, 16, 3, 1),
)


def limits(report: Any) -> None:
    """Bandwidth of a copy, and the peak of a matrix product of random values (zeros would need less power)."""
    report.content["machine"] = describe()
    side, mib = (256, 1) if report.quick else (8192, 2048)
    for dtype in ("bfloat16", "float32"):

        def copy(dtype: str = dtype) -> tuple[Any, dict[str, Any]]:
            x = _random(dtype, (mib * 2**20 // jnp.dtype(dtype).itemsize,))
            # The compiler does not remove this factor. Both the read and the write are counted.
            call = compile_apart(lambda x: x * jnp.asarray(1.0078125, x.dtype), x).call
            return functools.partial(call, x), {"bytes": 2 * x.nbytes}

        def product(dtype: str = dtype, **options: Any) -> tuple[Any, dict[str, Any]]:
            a, b = _random(dtype, (side, side)), _random(dtype, (side, side), 1)
            call = compile_apart(lambda a, b: jnp.matmul(a, b, **options), a, b).call
            return functools.partial(call, a, b), {"flops": 2 * side**3}

        report.compare({"what": "copy", "dtype": dtype}, {"jax": copy})
        report.compare({"what": "matmul", "dtype": dtype}, {"jax": product})
    # By default, float32 products are computed in TF32.
    report.compare(
        {"what": "matmul, precision highest", "dtype": "float32"},
        {"jax": functools.partial(product, precision="highest")},
    )


def kernels(report: Any) -> None:
    """Forward, and forward and backward, of the kernels that are bound by memory bandwidth."""
    shape = (2, 16, 16, 8) if report.quick else (16, 256, 256, 64)
    for dtype in ("bfloat16", "float32"):
        for name in KERNEL_NAMES[:: 2 if report.quick else 1]:
            inputs = report.attempt(f"{name} {dtype}", lambda n=name, d=dtype: make_inputs(n, shape, d, 0))
            for mode in ("forward", "forward+backward") if inputs is not None else ():
                truth: list[Any] = []
                make = functools.partial(_kernel_call, name, inputs, mode, truth)
                head = {"kernel": name, "shape": list(shape), "dtype": dtype, "mode": mode}
                report.compare(head, {form: functools.partial(make, form) for form in ("reference", "auto")})


def _kernel_call(name: str, inputs: Any, mode: str, truth: list[Any], form: str) -> tuple[Any, dict[str, Any]]:
    """Calls a kernel; `truth` stores the first form's results, and later ones are compared with them."""
    kernel, backward = KERNELS[name], mode != "forward"

    def outputs_of(floats: Sequence[Any], others: Sequence[Any]) -> Any:
        left, right = iter(floats), iter(others)
        with dz.ops.implementation(form):
            return kernel.op(*(next(left) if is_float(x) else next(right) for x in inputs))

    def function(floats: Sequence[Any], others: Sequence[Any], cotangent: Any) -> Any:
        if not backward:
            return outputs_of(floats, others)
        output, pullback = jax.vjp(lambda *floats: outputs_of(floats, others), *floats)
        return output, pullback(cotangent)

    floats, others = [x for x in inputs if is_float(x)], [x for x in inputs if not is_float(x)]
    output = jax.eval_shape(outputs_of, floats, others)
    cotangent = _random(output.dtype, output.shape, 2) if backward else None
    call = functools.partial(compile_apart(function, floats, others, cotangent).call, floats, others, cotangent)
    truth = truth or (truth.append(call()) or truth)
    facts = {"bytes": least_bytes(kernel, inputs, [output], backward=backward), "error": _error(call(), truth[0])}
    return call, facts


def convolutions(report: Any) -> None:
    """Convolutions of a U-Net in bfloat16: alone, with bias and ReLU, and with a batch norm, folded and not."""
    batch = 1 if report.quick else 16
    for side, inside, outside, size, strides in CONVOLUTIONS[:: 3 if report.quick else 1]:
        if report.quick:
            side, inside, outside = side // 8, min(inside, 8), outside // 8
        x = _random("bfloat16", (batch, side, side, inside))
        pixels = batch * (side // strides) ** 2
        work = {
            "flops": 2 * pixels * size**2 * inside * outside,
            "bytes": 2 * (x.size + pixels * outside + size**2 * inside * outside),
        }
        block = dz.ConvNormAct(outside, size, strides, dtype=jnp.bfloat16)
        variables = _cast(_perturbed(block.init(jax.random.key(0), x)))
        kernel, bias = variables["params"]["conv"]["kernel"], variables["params"]["norm"]["bias"]
        conv = functools.partial(dz.ops.conv, strides=strides, padding=size // 2)

        def make(function: Any, *arguments: Any, x: Any = x, work: Any = work) -> tuple[Any, dict[str, Any]]:
            return functools.partial(compile_apart(function, x, *arguments).call, x, *arguments), work

        forms = {
            "plain": functools.partial(make, conv, kernel),
            "bias and ReLU": functools.partial(
                make, lambda x, k, b, conv=conv: jax.nn.relu(conv(x, k) + b), kernel, bias
            ),
            "dz.compile": lambda make=make, block=block, v=variables: make(dz.compile(block, v, dtype=jnp.bfloat16)),
            "batch norm and ReLU": functools.partial(make, lambda x, v, block=block: block.apply(v, x), variables),
        }
        label = f"{side}x{side} {inside}->{outside} {size}x{size}/{strides}"
        report.compare({"convolution": label, "dtype": "bfloat16"}, forms)


def inference(report: Any, encoder: str = "resnet34") -> None:
    """A U-Net in bfloat16: dz.compile, also with convolutions outside of CUDA graphs, and jitted model.apply."""
    make_unet = functools.partial(_unet, report.quick, encoder)
    exact, images = make_unet(), _images(report.quick)
    variables = _perturbed(jax.jit(exact.init)(jax.random.key(0), images[:1, :64, :64]))
    images = images.astype(jnp.bfloat16)
    truth: list[Any] = []
    last: dict[str, Any] = {}

    def finish(function: Any, *arguments: Any) -> tuple[Any, dict[str, Any]]:
        program = last["program"] = compile_apart(function, *arguments)
        call = functools.partial(program.call, *arguments)
        truth.append(call())
        return call, {"compile_seconds": program.compile_seconds, "error": _error(truth[-1], truth[0])}

    def apply(impl: str) -> tuple[Any, dict[str, Any]]:
        model = make_unet(impl=impl, dtype=jnp.bfloat16)
        return finish(lambda v, x: model.apply(v, x), _cast(variables), images)

    def compiled(options: Any = None) -> tuple[Any, dict[str, Any]]:
        infer: Any = dz.compile(make_unet(dtype=jnp.bfloat16), variables, dtype=jnp.bfloat16)
        return finish(jax.jit(infer, compiler_options=options) if options else infer, images)

    forms = {"dz.compile": compiled, f"dz.compile, {OUTSIDE}": lambda: compiled(_graphs(OTHERS))}
    forms |= {impl: functools.partial(apply, impl) for impl in ("auto", "reference")}
    report.compare({"model": f"unet:{encoder}", "mode": "inference", "shape": list(images.shape)}, forms)
    report.attempt("profile", lambda: _profile(report, lambda: compiled(_graphs(""))[0], last))


def training(report: Any, encoder: str = "resnet34") -> None:
    """A train step of a U-Net: float32 parameters, bfloat16 computation, cross-entropy and AdamW."""
    images, make_unet = _images(report.quick), functools.partial(_unet, report.quick, encoder)
    batch = {"image": images, "mask": jnp.asarray(masks(images.shape[:3]))}
    variables = make_unet().init(jax.random.key(0), images[:1, :64, :64])
    last: dict[str, Any] = {}

    def make(options: Any = None) -> tuple[Any, dict[str, Any]]:
        model = make_unet(dtype=jnp.bfloat16)
        optimizer = dz.train.make_optimizer(PEAK, STEPS, weight_decay=1e-4)
        # Copies, because the step donates its state.
        start = jax.tree.map(jnp.array, variables)
        state = [dz.train.create_state(model, optimizer, jax.random.key(0), images, variables=start)]
        step: Any = dz.train.make_train_step(
            lambda apply, batch, key: dz.losses.cross_entropy(apply(batch["image"]), batch["mask"])
        )
        if options:
            step = jax.jit(
                lambda state, batch, step=step: step(state, batch), donate_argnums=0, compiler_options=options
            )
        compiled = last["program"] = compile_apart(step, state[0], batch)

        def call() -> Any:
            state[0], metrics = compiled.call(state[0], batch)
            return metrics

        facts = {key: compiled.costs()[key] for key in ("temp_bytes", "peak_bytes")}
        return call, {"compile_seconds": compiled.compile_seconds, "loss": float(call()["loss"])} | facts

    # Compiling a step takes up to a minute on a GPU, so there is no form "reference".
    head = {"model": f"unet:{encoder}", "mode": "training", "shape": list(images.shape)}
    report.compare(head, {"auto": make, f"auto, {OUTSIDE}": lambda: make(_graphs(OTHERS))})
    report.attempt("profile", lambda: _profile(report, lambda: make(_graphs(""))[0], last))


OTHERS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN"
OUTSIDE = "convolutions outside of CUDA graphs"


def _graphs(kinds: str) -> dict[str, str]:
    """Options by which XLA puts only these kinds of operations into CUDA graphs. In graphs, a profile sees no names."""
    return {"xla_gpu_enable_command_buffer": kinds} if jax.default_backend() == "gpu" else {}


def _profile(report: Any, make: Any, last: dict[str, Any]) -> None:
    """Profiles a compiled program by operation, as Markdown in the part's file."""
    call = make()
    operations = breakdown.operations_of(last["program"].call.as_text())
    times = breakdown.milliseconds_of(call, set(operations), 2 if report.quick else 10)
    report.content["profile"] = breakdown.table(operations, times, 25)
    report.write()


def _unet(quick: bool, encoder: str, **fields: Any) -> Any:
    chosen = dz.PlainEncoder((4, 8), dtype=fields.get("dtype")) if quick else encoder
    return dz.create_model("unet", chosen, CLASSES, **fields)


def _images(quick: bool) -> jax.Array:
    return _random("float32", (*shape_of(quick), 3))


def _random(dtype: Any, shape: Sequence[int], seed: int = 0) -> jax.Array:
    """Normally distributed values, generated on the device."""
    return jax.jit(lambda key: jax.random.normal(key, tuple(shape), dtype))(jax.random.key(seed))


def _perturbed(variables: Any) -> Any:
    """Variables with statistics different from 0 and 1, so that a missing norm is detected."""
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(variables["batch_stats"]))))
    # Means of both signs: with only positive ones, ReLUs would make a deep network's outputs zero.
    stats = jax.tree.map(
        lambda x: x + jax.random.uniform(next(keys), x.shape, minval=-0.5, maxval=0.5), variables["batch_stats"]
    )
    return {**variables, "batch_stats": stats}


def _cast(variables: Any) -> Any:
    return {**variables, "params": jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables["params"])}


def _error(found: Any, truth: Any) -> float:
    """The largest relative error of some arrays against others, in the Euclidean norm."""

    @jax.jit
    def worst(found: Any, truth: Any) -> jax.Array:
        wide = lambda x: x.astype(jnp.float32)  # noqa: E731
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True)
        norm = jnp.linalg.norm
        ratios = [norm((wide(a) - wide(b)).ravel()) / norm(wide(b).ravel()) for a, b in pairs]
        return jnp.max(jnp.stack(ratios))

    return float(worst(found, truth))
