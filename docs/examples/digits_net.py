"""The parts of a small ConvNet in NumPy: what `digits.py` trains.

Images are channels-last, (N, H, W, C): then a convolution is one matrix product and its
result has the channels on the last axis, which is where batch normalization will look.

Every layer is called with the output of the layer before it, keeps what its own backward
pass needs, and turns the gradient of its output into the gradient of its input. A layer
that learns has `weight` and `bias`, and after `backward` also `weight_grad` and `bias_grad`.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


class Dense:
    """y = x @ weight + bias.

    Leave the bias out where batch normalization follows: it would subtract it again.
    """

    def __init__(self, rng, features_in, features_out, bias=True):
        scale = np.sqrt(2 / features_in)  # He et al. (2015), for layers that end in a ReLU
        weight = rng.normal(0, scale, (features_in, features_out))
        self.weight = weight.astype(np.float32)
        self.bias = np.zeros(features_out, np.float32) if bias else None
        self.weight_grad = self.bias_grad = None

    def __call__(self, x):
        self.x = x.reshape(len(x), -1)
        y = self.x @ self.weight
        return y if self.bias is None else y + self.bias

    def backward(self, dy):
        self.weight_grad = self.x.T @ dy
        self.bias_grad = None if self.bias is None else dy.sum(axis=0)
        return dy @ self.weight.T


class FirstConvolution(Dense):
    """A size x size convolution of the images themselves, zeros around the border.

    Every window of the image becomes one row of a matrix (im2col), and a dense layer does
    the rest. Nothing comes before the first layer, so `backward` does not go on to the image.
    """

    def __init__(self, rng, channels_in, channels_out, size=5, bias=True):
        super().__init__(rng, channels_in * size * size, channels_out, bias)
        self.size = size

    def __call__(self, images):
        n, height, width, _ = images.shape
        border = self.size // 2
        padded = np.pad(images, ((0, 0), (border, border), (border, border), (0, 0)))
        windows = sliding_window_view(padded, (self.size, self.size), axis=(1, 2))
        y = super().__call__(windows.reshape(n * height * width, -1))
        return y.reshape(n, height, width, -1)

    def backward(self, dy):
        dy = dy.reshape(len(self.x), -1)
        self.weight_grad = self.x.T @ dy
        self.bias_grad = None if self.bias is None else dy.sum(axis=0)


class ReLU:
    """y = max(x, 0)."""

    def __call__(self, x):
        self.y = np.maximum(x, 0)
        return self.y

    def backward(self, dy):
        return dy * (self.y > 0)


class MaxPool:
    """The largest of each 2 x 2 block; equal values share the gradient."""

    def __call__(self, x):
        n, height, width, channels = x.shape
        self.blocks = x.reshape(n, height // 2, 2, width // 2, 2, channels)
        self.y = self.blocks.max(axis=(2, 4), keepdims=True)
        return self.y[:, :, 0, :, 0, :]

    def backward(self, dy):
        largest = self.blocks == self.y
        share = dy.reshape(self.y.shape) / largest.sum(axis=(2, 4), keepdims=True, dtype=np.float32)
        n, rows, _, columns, _, channels = self.blocks.shape
        return (largest * share).reshape(n, 2 * rows, 2 * columns, channels)


class NumpyBatchNorm:
    """Batch normalization over the last axis in plain NumPy, what bnnumba is compared with.

    It is written with care, but NumPy goes through the array once for every operation: about
    ten times where bnnumba goes through it once or twice.
    """

    def __init__(self, weight, bias, momentum=0.1, eps=1e-5):
        self.weight, self.bias = weight, bias
        self.momentum, self.eps = momentum, eps
        self.running_mean, self.running_var = np.zeros_like(bias), np.ones_like(weight)
        self.training = True

    def train(self):
        self.training = True

    def eval(self):
        self.training = False

    def __call__(self, x):
        rows = x.reshape(-1, x.shape[-1])
        if not self.training:
            scale = self.weight / np.sqrt(self.running_var + self.eps)
            return (rows * scale + (self.bias - self.running_mean * scale)).reshape(x.shape)
        mean = rows.mean(axis=0)
        centred = rows - mean
        var = np.einsum("rc,rc->c", centred, centred) / len(rows)
        self.invstd = 1 / np.sqrt(var + self.eps)
        self.xhat = np.multiply(centred, self.invstd, out=centred)
        self.running_mean += self.momentum * (mean - self.running_mean)
        unbiased = var * (len(rows) / (len(rows) - 1))
        self.running_var += self.momentum * (unbiased - self.running_var)
        return (self.xhat * self.weight + self.bias).reshape(x.shape)

    def backward(self, dy):
        rows = dy.reshape(self.xhat.shape)
        self.bias_grad = rows.sum(axis=0)
        self.weight_grad = np.einsum("rc,rc->c", rows, self.xhat)
        dx = self.xhat * (self.weight_grad / -len(rows))
        dx += rows
        dx -= self.bias_grad / len(rows)
        dx *= self.weight * self.invstd
        return dx.reshape(dy.shape)


class Network:
    """One layer after the other."""

    def __init__(self, *layers):
        self.layers = layers

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

    def backward(self, dy):
        for layer in reversed(self.layers):
            dy = layer.backward(dy)

    def train(self):
        """Normalize with the statistics of each batch, and remember their running average."""
        for layer in self.layers:
            if hasattr(layer, "train"):
                layer.train()

    def eval(self):
        """Normalize with the running statistics."""
        for layer in self.layers:
            if hasattr(layer, "eval"):
                layer.eval()


def cross_entropy(logits, labels):
    """The mean of -log softmax(logits)[label], and its gradient."""
    logits = logits - logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    rows = np.arange(len(labels))
    gradient = np.exp(log_p)
    gradient[rows, labels] -= 1
    return -log_p[rows, labels].mean(), gradient / np.float32(len(labels))


class Adam:
    """Kingma and Ba (2015), on the weights and biases of the given layers, in place."""

    def __init__(self, layers, learning_rate, beta1=0.9, beta2=0.999, eps=1e-8):
        self.learning_rate, self.beta1, self.beta2, self.eps = learning_rate, beta1, beta2, eps
        self.step_count = 0
        self.states = [
            (layer, name, np.zeros_like(value), np.zeros_like(value))
            for layer in layers
            for name in ("weight", "bias")
            if (value := getattr(layer, name, None)) is not None
        ]

    def step(self):
        self.step_count += 1
        correction1 = 1 - self.beta1**self.step_count
        correction2 = 1 - self.beta2**self.step_count
        for layer, name, m, v in self.states:
            gradient = getattr(layer, f"{name}_grad")
            m += (1 - self.beta1) * (gradient - m)
            v += (1 - self.beta2) * (gradient * gradient - v)
            step = m / (np.sqrt(v / correction2) + self.eps)
            getattr(layer, name)[...] -= self.learning_rate / correction1 * step
