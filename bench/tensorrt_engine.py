"""TensorRT engines built from exported ONNX files against the networks: answers and time.

    python bench/tensorrt_engine.py [--models squeezenet1_0 ...] [--rounds 30] [--fp16]

Needs a CUDA device and `pip install tensorrt`. Each network of bench/parity.py is exported to ONNX
through the gate, TensorRT builds an engine of it, in 32 bits without TF32 or, with `--fp16`, in 16
bits where it likes, and both answer the same photographs on the device. The bound of 32 bits is the
gate's own; of 16 bits the share of equal top classes is what counts. Exit 1 where a 32-bit engine
breaks the bound. Milliseconds are of one photograph, the median over the rounds, taking turns.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from parity import TOLERANCE, bound, card, network, photographs, ready, table
from runtimes import MODELS, turns

from xfer.export import Evidence, Onnx, export


class Engine:
    """An engine that was built of an ONNX file, for batches of 1 to ``most`` images."""

    def __init__(self, path, most, fp16):
        import tensorrt as trt

        logger = trt.Logger(trt.Logger.WARNING)
        builder = trt.Builder(logger)
        self.network = builder.create_network(0)
        parser = trt.OnnxParser(self.network, logger)
        if not parser.parse(path.read_bytes()):
            errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
            raise SystemExit(f"{path}: {'; '.join(errors)}")
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        config.clear_flag(trt.BuilderFlag.TF32)
        if fp16:
            config.set_flag(trt.BuilderFlag.FP16)
        entry, self.answer = self.network.get_input(0), self.network.get_output(0).name
        self.entry, size = entry.name, tuple(entry.shape)[1:]
        profile.set_shape(self.entry, (1, *size), (most, *size), (most, *size))
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(self.network, config)
        if plan is None:
            raise SystemExit(f"{path}: TensorRT built no engine")
        self.runtime = trt.Runtime(logger)  # which the engine needs as long as it lives
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        self.context = self.engine.create_execution_context()

    def __call__(self, images):
        """Logits (n, classes) on the device for images float32 (n, 3, height, width) there."""
        images = images.contiguous()
        self.context.set_input_shape(self.entry, tuple(images.shape))
        shape = tuple(self.context.get_tensor_shape(self.answer))
        logits = torch.empty(shape, dtype=torch.float32, device=images.device)
        self.context.set_tensor_address(self.entry, images.data_ptr())
        self.context.set_tensor_address(self.answer, logits.data_ptr())
        stream = torch.cuda.current_stream()
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise SystemExit("TensorRT could not run the engine")
        stream.synchronize()
        return logits


def finished(net):
    """The network as a run that ends when the device has."""

    def run(images):
        answers = net(images)
        torch.cuda.synchronize()
        return answers

    return run


def measured(name, options, folder):
    """A row, and whether the engine is within the bound."""
    net, head, classes, spec = network(name)
    images = ready(photographs("val", options.images), spec)
    with torch.inference_mode():
        want = net(torch.from_numpy(images)).numpy()
        top = want.argmax(1)
        own = Evidence(None, top, None, lambda: [(images, top)], 1.0)
        export(net, images, [Onnx()], card(name, head, classes, spec), folder, TOLERANCE, own)
        engine = Engine(folder / Onnx().file, len(images), options.fp16)
        given, net = torch.from_numpy(images).cuda(), net.cuda()
        got = engine(given).cpu().numpy()
        apart, agree = float(np.abs(got - want).max()), float((got.argmax(1) == top).mean())
        times = turns({"torch": finished(net), "engine": engine}, given[:1], options.rounds)
    row = [name, f"{apart:.1e}", f"{bound(want):.1e}", f"{100 * agree:.1f} %"]
    row += [f"{np.median(found[:, 0]):.2f}" for found in times.values()]
    return row, options.fp16 or apart <= bound(want)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--fp16", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("tensorrt_engine.py: torch sees no CUDA device", file=sys.stderr)
        raise SystemExit(2)
    import tensorrt

    rows, sound = [], True
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            row, within = measured(name, options, Path(folder))
        rows, sound = [*rows, row], sound and within
    kind = "16 bits where it likes" if options.fp16 else "32 bits"
    title = f"TensorRT {tensorrt.__version__}, {kind}, {torch.cuda.get_device_name()}"
    head = ["network", "largest difference", "allowed", "same top class", "torch ms", "engine ms"]
    table(title, head, rows)
    raise SystemExit(not sound)


if __name__ == "__main__":
    main()
