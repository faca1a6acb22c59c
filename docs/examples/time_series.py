"""Normalize recordings of several sensors: (recordings, time steps, channels).

The channels are on the last axis, where most recorders put them. Three things to see here:
the large offset of a barometer, which the textbook formula E[x^2] - E[x]^2 does not survive
in float32; statistics of known recordings, used on those that come later; and a view with
strides of its own, which needs no preparation.

    python docs/examples/time_series.py
"""

import numpy as np

import bnnumba

SENSORS = ("temperature, K", "pressure, Pa", "acceleration, m/s2")


def record(rng, recordings, steps):
    """Smooth, noisy signals: a few kelvin, a few pascal around 101325, and vibration."""
    t = np.linspace(0, 20, steps)
    phase = rng.uniform(0, 2 * np.pi, (recordings, 1))
    noise = rng.standard_normal((recordings, steps, 3))
    temperature = 290 + 3 * np.sin(t / 3 + phase) + 0.1 * noise[..., 0]
    pressure = 101325 + 2 * np.sin(t / 5 + phase) + 0.3 * noise[..., 1]
    acceleration = 0.02 * np.sin(40 * t + phase) + 0.005 * noise[..., 2]
    return np.stack([temperature, pressure, acceleration], axis=-1).astype(np.float32)


def main():
    rng = np.random.default_rng(0)
    known, later = record(rng, 200, 1000), record(rng, 50, 1000)

    moments = bnnumba.moments(known, axis=-1)
    exact = known.astype(np.float64).std(axis=(0, 1))
    textbook = (known**2).mean(axis=(0, 1)) - known.mean(axis=(0, 1)) ** 2
    print(f"{'':20}{'mean':>12}{'std':>12}{'std, float64':>14}{'E[x^2]-E[x]^2':>16}")
    for name, mean, std, wanted, variance in zip(
        SENSORS, moments.mean, moments.std(), exact, textbook, strict=True
    ):
        naive = f"{np.sqrt(variance):.6f}" if variance >= 0 else "negative!"
        print(f"{name:20}{mean:12.4f}{std:12.6f}{wanted:14.6f}{naive:>16}")
    np.testing.assert_allclose(moments.std(), exact, rtol=1e-12)

    # Recordings that come later are normalized with what the known ones taught.
    y = bnnumba.batch_norm_inference(later, moments.mean, moments.var(), axis=-1)
    print(f"\nlater recordings: {later.shape} in, {y.shape} {y.dtype} out")
    print("mean", np.round(y.mean(axis=(0, 1)), 3), "std", np.round(y.std(axis=(0, 1)), 3))

    # Every other recording: a view with strides of its own, and the same numbers.
    every_other = bnnumba.batch_norm_inference(later[::2], moments.mean, moments.var(), axis=-1)
    np.testing.assert_array_equal(every_other, y[::2])


if __name__ == "__main__":
    main()
