"""Floors of the benchmark on the RTL (`make bench` reports all of its figures)."""

import pytest

from golden.machine import Machine
from hw.config import BASE
from sim.bench import kernel_case, result
from sim.tile import RtlDevice, first_difference
from sw import attention_kernels, kernels
from sw.kernels import Kernel


@pytest.fixture(scope="module")
def device():
    device = RtlDevice(BASE, latency=40)
    yield device
    device.close()


@pytest.mark.parametrize(
    "make,floor",
    [
        (lambda: kernels.gemm_sram(BASE, 64, 64, 64), 0.94),
        (lambda: kernels.gemm_sram(BASE, 192, 192, 192), 0.995),
        (lambda: kernels.gemm_dram(BASE, 128, 512, 256), 0.93),
        (lambda: kernels.gemv(BASE, 2880, 2880, 2), 0.985),
        (lambda: attention_kernels.attention_decode(BASE, 512), 0.90),
        (lambda: attention_kernels.attention_prefill(BASE, 128), 0.80),
    ],
    ids=["gemm-sram-64", "gemm-sram-192", "gemm-dram", "gemv-mxfp4", "attn-decode-512", "attn-prefill-128"],
)
def test_floor(device: RtlDevice, make, floor: float) -> None:
    kernel: Kernel = make()
    name, dram, phases, measured = kernel_case(kernel)
    model = Machine(BASE, dram.data.copy(), trace=True)
    device.attach(dram.data)
    for phase, (address, words, args) in phases.items():
        model.run(address, words, args)
        run = device.run(address, words, args)
        assert first_difference(device.dram, model, dram, {}) is None
        if phase in measured:
            row = result(BASE, name, "ideal", run, *measured[phase][1:])
            assert row["ratio"] >= floor, row
            assert row["bytes_moved"] <= 1.05 * row["bytes_needed"], row
