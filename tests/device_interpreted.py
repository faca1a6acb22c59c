"""A GPU that is not there: kernels compiled to PTX are interpreted, arrays stand in the host."""

import numpy as np
from device_arrays import BFLOAT16, Adapter
from device_standins import Namespace, StandIn
from numpy.lib.stride_tricks import as_strided
from ptx_machine import Program

from bnnumba.gpu import driver, plan, simulator

# What an H100 says of itself.
TRAITS = plan.Traits((9, 0), 132, 232_448, 50 << 20)


class InterpretedDevice(driver._Simulated):
    """The device whose kernels are interpreted."""

    traits = TRAITS
    mixed = None  # a generator of random numbers has blocks run mixed

    def __init__(self):
        self.programs = {}

    def launch(self, kernel, stream, grid, threads, shared, *arguments):
        assert 0 < grid < 2**31
        assert threads % 32 == 0
        assert shared <= TRAITS.shared
        if kernel not in self.programs:
            _, ptx = kernel.ptx(TRAITS.capability)
            self.programs[kernel] = Program(ptx, kernel.format)
        self.programs[kernel].run(simulator.MEMORY, grid, threads, shared, arguments, self.mixed)


class Array(StandIn):
    """An array of a library that has shapes and bfloat16."""

    @property
    def shape(self):
        return self.host.shape

    def __array_namespace__(self):
        return Library


class Library(Namespace):
    bfloat16 = BFLOAT16

    @staticmethod
    def empty(shape, *, dtype, device):
        return Array(np.full(shape, np.nan, dtype))


class Interpreted(Adapter):
    """Its arrays, for the cases that all libraries run."""

    kind = Array
    in_host_memory = True

    def __init__(self):
        driver._devices[0] = InterpretedDevice()
        driver.device_of = lambda address: 0

    def flat(self, array):
        return Array(np.array(array))

    def view(self, flat, shape, steps, offset):
        host = flat.host
        return Array(as_strided(host[offset:], shape, [s * host.itemsize for s in steps]))

    def host(self, array):
        return np.array(array.host)
