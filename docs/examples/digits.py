"""Train a small ConvNet on handwritten digits, with and without batch normalization.

The network is NumPy alone (`digits_net.py`); its batch normalization is bnnumba, forward and
backward. Each batch also goes through batch normalization written in plain NumPy, to time the
two side by side and to see that they agree. Four runs, each with and without batch
normalization: at a learning rate that suits the plain network, and at one a hundred times
as high. That batch normalization reaches its accuracy in fewer epochs, and bears rates at
which the plain network falls behind, is the point of the article that introduced it
(Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167).

    python docs/examples/digits.py [--quick] [--output demo.png] [--seed 0] [--threads 1]
"""

import argparse
import os
import pathlib
import sys
import time
from dataclasses import dataclass, field

try:
    import numba
    import numpy as np
    from digits_net import (
        Adam,
        Dense,
        FirstConvolution,
        MaxPool,
        Network,
        NumpyBatchNorm,
        ReLU,
        cross_entropy,
    )
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from threadpoolctl import threadpool_limits

    import bnnumba
except ModuleNotFoundError as missing:
    sys.exit(
        f"This example needs the package {missing.name!r}. `make demo` installs everything, and so "
        "does, in a clone of bnnumba: pip install '.[demo]'"
    )

BATCH_SIZE = 64
NORMAL_RATE, HIGH_RATE = 0.001, 0.1


class BatchNorm:
    """bnnumba's batch normalization over the last axis, timed against plain NumPy's."""

    def __init__(self, channels):
        self.bnnumba = bnnumba.BatchNorm(channels, axis=-1)
        self.weight, self.bias = self.bnnumba.weight, self.bnnumba.bias
        self.numpy = NumpyBatchNorm(self.weight, self.bias)  # the same parameters, not a copy
        self.order = [self.bnnumba, self.numpy]
        self.seconds = {self.bnnumba: 0.0, self.numpy: 0.0}
        self.difference = 0.0

    def __call__(self, x):
        self.order.reverse()  # take turns: whoever comes second finds x in the cache
        return self.both(lambda layer: layer(x))

    def backward(self, dy):
        dx = self.both(lambda layer: layer.backward(dy))
        self.weight_grad, self.bias_grad = self.bnnumba.weight_grad, self.bnnumba.bias_grad
        return dx

    def both(self, compute):
        """Let both compute; the network goes on with the result of bnnumba."""
        results = {}
        for layer in self.order:
            start = time.perf_counter()
            results[layer] = compute(layer)
            self.seconds[layer] += time.perf_counter() - start
        ours, theirs = results[self.bnnumba], results[self.numpy]
        difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
        self.difference = max(self.difference, float(difference))
        return ours

    def train(self):
        self.bnnumba.train()
        self.numpy.train()

    def eval(self):
        self.bnnumba.eval()
        self.numpy.eval()


def build_network(rng, batch_norm):
    def maybe_batch_norm(channels):
        return [BatchNorm(channels)] if batch_norm else []

    return Network(
        FirstConvolution(rng, 1, 32, size=5, bias=not batch_norm),
        *maybe_batch_norm(32),
        ReLU(),
        MaxPool(),
        Dense(rng, 4 * 4 * 32, 128, bias=not batch_norm),
        *maybe_batch_norm(128),
        ReLU(),
        Dense(rng, 128, 10),
    )


@dataclass
class Run:
    """One training run, and what came of it."""

    batch_norm: bool
    learning_rate: float
    losses: list = field(default_factory=list)  # on the training batches, one mean per epoch
    accuracies: list = field(default_factory=list)  # on the test images, after each epoch
    seconds_bnnumba: float = 0.0
    seconds_numpy: float = 0.0
    difference: float = 0.0

    @property
    def name(self):
        return f"{'with' if self.batch_norm else 'without'}, {self.learning_rate:g}"

    @property
    def epochs_to_95(self):
        return next((e for e, a in enumerate(self.accuracies, start=1) if a >= 0.95), None)

    def train(self, digits, epochs, seed, after_epoch=lambda: None):
        images, test_images, labels, test_labels = digits
        rng = np.random.default_rng(seed)
        network = build_network(rng, self.batch_norm)
        optimizer = Adam(network.layers, self.learning_rate)
        for epoch in range(epochs):
            optimizer.learning_rate = self.learning_rate * (1 - epoch / epochs)
            losses = []
            network.train()
            for batch in np.array_split(rng.permutation(len(images)), len(images) // BATCH_SIZE):
                loss, gradient = cross_entropy(network(images[batch]), labels[batch])
                network.backward(gradient)
                optimizer.step()
                losses.append(loss)
            network.eval()
            correct = network(test_images).argmax(axis=1) == test_labels
            self.losses.append(float(np.mean(losses)))
            self.accuracies.append(float(correct.mean()))
            after_epoch()
        for layer in network.layers:
            if isinstance(layer, BatchNorm):
                self.seconds_bnnumba += layer.seconds[layer.bnnumba]
                self.seconds_numpy += layer.seconds[layer.numpy]
                self.difference = max(self.difference, layer.difference)


def load_data(seed):
    """1797 real digits of 8 x 8 pixels from scikit-learn, a quarter of them held out."""
    digits = load_digits()
    images = (digits.images[..., np.newaxis] / 16).astype(np.float32)
    return train_test_split(
        images, digits.target, test_size=0.25, stratify=digits.target, random_state=seed
    )


def train_all(runs, digits, epochs, seed, console):
    """Train each run in turn, with a progress bar for each."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]:34}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        tasks = [
            progress.add_task(f"{run.name:14}", total=epochs, start=False, state="") for run in runs
        ]
        for run, task in zip(runs, tasks, strict=True):

            def after_epoch(run=run, task=task):
                state = f"loss {run.losses[-1]:.4f}  accuracy {run.accuracies[-1]:.4f}"
                progress.update(task, advance=1, state=state)

            progress.start_task(task)
            run.train(digits, epochs, seed, after_epoch)


def results_table(runs):
    table = Table(title="Accuracy on digits never trained on, and time spent in batch norm")
    table.add_column("batch norm")
    for heading in ("rate", "accuracy", "epochs to 95 %", "bnnumba", "NumPy", "ratio"):
        table.add_column(heading, justify="right")
    for run in runs:
        row = [
            "with" if run.batch_norm else "without",
            f"{run.learning_rate:g}",
            f"{run.accuracies[-1]:.4f}",
            str(run.epochs_to_95 or "never"),
        ]
        if run.batch_norm:
            row.append(f"{run.seconds_bnnumba:.3f} s")
            row.append(f"{run.seconds_numpy:.3f} s")
            row.append(f"{run.seconds_numpy / run.seconds_bnnumba:.1f} x")
        table.add_row(*row)
    return table


def plot(runs, path):
    """Loss and test accuracy against epochs: the colour is the rate, dashes are without."""
    colours = {NORMAL_RATE: "#0072B2", HIGH_RATE: "#D55E00"}  # Okabe and Ito, for all eyes
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for run in runs:
        style = {
            "color": colours[run.learning_rate],
            "linestyle": "-" if run.batch_norm else "--",
            "marker": "o" if run.batch_norm else "s",
            "markersize": 4,
            "markerfacecolor": colours[run.learning_rate] if run.batch_norm else "white",
            "label": f"{'with' if run.batch_norm else 'without'} batch norm, "
            f"learning rate {run.learning_rate:g}",
        }
        epochs = range(1, len(run.losses) + 1)
        left.plot(epochs, run.losses, **style)
        right.plot(epochs, run.accuracies, **style)
    left.set(title="Training loss", xlabel="epoch", ylabel="cross-entropy", yscale="log")
    right.set(title="Accuracy on held-out digits", xlabel="epoch", ylabel="test accuracy")
    right.set_yscale("logit", nonpositive="clip")  # as much room for 0.95 to 0.99 as below
    ticks = (0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
    right.set_yticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    right.set_yticks([], minor=True)
    right.set_ylim(0.07, 0.997)
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)


def main():
    most = numba.config.NUMBA_NUM_THREADS
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few epochs: does it work?")
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default="demo.png",
        metavar="FILE",
        help="where to save the curves (default: demo.png)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the split, weights and order, not negative (default: 0)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help=f"of bnnumba, and of NumPy's BLAS: 1 to {most} here (default: 1)",
    )
    arguments = parser.parse_args()
    # What would be an error only after the training, or one of another package, is said now.
    folder, kind = arguments.output.absolute().parent, arguments.output.suffix[1:]
    if not os.access(folder, os.W_OK):
        parser.error(f"--output: {folder} is not a directory that can be written")
    if kind not in Figure().canvas.get_supported_filetypes():
        parser.error(f"--output: expected an image, such as demo.png, got {arguments.output}")
    if not 0 <= arguments.seed < 2**32:
        parser.error(f"--seed: expected 0 to {2**32 - 1}, got {arguments.seed}")
    if not 1 <= arguments.threads <= most:
        parser.error(f"--threads: expected 1 to {most}, got {arguments.threads}")
    epochs, wanted_accuracy = (4, 0.90) if arguments.quick else (20, 0.97)

    start = time.perf_counter()
    console = Console()
    digits = load_data(arguments.seed)
    console.print(f"{len(digits[0])} digits to train on, {len(digits[1])} to test on")

    # One thread is fair, as NumPy's batch norm has no more, and steady: at this size a thread that
    # waits for another, on a core that some other program wants, loses more than it wins.
    numba.set_num_threads(arguments.threads)
    threadpool_limits(arguments.threads, user_api="blas")

    with console.status("compiling the kernels, or loading them from the cache"):
        Run(batch_norm=True, learning_rate=NORMAL_RATE).train(digits, 1, arguments.seed)
    console.print(f"kernels ready after {time.perf_counter() - start:.1f} s")

    runs = [
        Run(batch_norm, rate) for rate in (NORMAL_RATE, HIGH_RATE) for batch_norm in (True, False)
    ]
    train_all(runs, digits, epochs, arguments.seed, console)
    console.print(results_table(runs))
    plot(runs, arguments.output)

    normalized = [run for run in runs if run.batch_norm]
    difference = max(run.difference for run in normalized)
    console.print(
        f"bnnumba and NumPy differ by at most {difference:.0e} of the largest value\n"
        f"curves in {arguments.output}, {time.perf_counter() - start:.0f} s in all"
    )
    for run in normalized:
        if run.accuracies[-1] < wanted_accuracy:
            sys.exit(
                f"The run with batch norm at learning rate {run.learning_rate:g} reached a test "
                f"accuracy of {run.accuracies[-1]:.4f}; it should reach {wanted_accuracy}."
            )


if __name__ == "__main__":
    main()
